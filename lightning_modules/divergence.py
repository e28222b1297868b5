"""Stops a training that has diverged, so that nothing looks finished, resumes, or computes flow with broken weights."""

from typing import Any, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.run_folder import RunFolder


class FiniteTraining(Callback):
    """Stops all processes at the first loss that is not finite, before it reaches the weights.

    A gradient can diverge where the loss does not: no checkpoint and no final.ckpt is written of weights that are not
    finite.

    Raises:
        FloatingPointError: in all processes; names epoch, step, value and what to do.
    """

    def __init__(self) -> None:
        self.infinite_by_design: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An attention mask of -inf, and `start_error` before the first validation.
        self.infinite_by_design = set(_not_finite(dict(pl_module.named_buffers())))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # All or none: a process that goes on alone would wait for the others.
        if trainer.strategy.reduce_boolean_decision(bool(loss.isfinite().all())):
            return
        value = loss.detach().float().mean()
        if trainer.world_size == 1:
            self._stop(trainer, pl_module, f"the training loss is {value.item()}")
        values = [torch.zeros_like(value) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(values, value)
        process = next(number for number, value in enumerate(values) if not value.isfinite())
        self._stop(trainer, pl_module, f"the training loss of process {process} is {values[process].item()}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_weights(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_weights(trainer, pl_module)

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = [name for name in _not_finite(pl_module.state_dict()) if name not in self.infinite_by_design]
        if not trainer.strategy.reduce_boolean_decision(not found):
            self._stop(trainer, pl_module, f"weights are not finite ({found[0] if found else 'of another process'})")

    def _stop(self, trainer: Trainer, pl_module: LightningModule, what: str) -> NoReturn:
        raise FloatingPointError(
            f"epoch {trainer.current_epoch}, step {trainer.global_step}: {what}. The training has diverged and stops "
            f"here, without final.ckpt. {_way_out(trainer, pl_module)}"
        )


def _not_finite(state: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in state.items() if torch.is_tensor(tensor) and not tensor.isfinite().all()]


def _way_out(trainer: Trainer, pl_module: LightningModule) -> str:
    """What to change, and where: a folder that holds weights refuses another config."""
    changes = [] if str(trainer.precision).startswith(("32", "64")) else ["--trainer.precision=32-true"]
    if trainer.global_step == 0:
        start = "Nothing was learned before: look at the data, and at the weights that the network starts from"
        return "; ".join([start, *(f"or train with {change}" for change in changes)])
    if pl_module.automatic_optimization:
        clipped = trainer.gradient_clip_val
        changes.insert(0, f"--trainer.gradient_clip_val={clipped / 10 if clipped else 1:g}")
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    changes.insert(0, f"a learning rate below {float(rate):.3g}")
    return f"Train again with {' or '.join(changes)}{_where(RunFolder(trainer.default_root_dir))}"


def _where(run: RunFolder) -> str:
    if not run.started:
        return ""
    own = run.path.resolve()
    beside = sorted(path.name for path in own.parent.iterdir() if path != own and RunFolder(path).started)
    others = f" (make gives the change to {', '.join(beside)}, too: remove these as well)" if beside else ""
    return (
        f", after removing {run.path}, whose checkpoint another config does not continue{others}; or in another folder "
        "(RUNS=… of make, or --trainer.default_root_dir)"
    )
