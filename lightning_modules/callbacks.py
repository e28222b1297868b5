"""What a training leaves beside its checkpoints: the config it ran with, its last metrics, its final weights; and what
makes a resumed training the same as one that was not interrupted."""

import json
import math
import os
import platform
import random
import re
from typing import Any

import numpy as np
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from attacks.processor import processor_name
from lightning_modules.run_folder import RunFolder, whole_file


class RunConfig(SaveConfigCallback):
    """Writes config.yaml when training or testing starts, and hands it to the loggers.

    Lightning's own refuses to overwrite the file at the second run; here the command line has checked before that the
    folder and the config belong together. A test in a training's folder leaves the training's config alone.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero or stage not in ("fit", "test"):
            return
        self.already_saved = True
        dumped = self.parser.dump(self.config)
        run = RunFolder(trainer.default_root_dir)
        if stage == "fit" or not (run.started or run.config.exists()):
            with whole_file(run.config) as partial:
                partial.write_text(dumped)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(dumped))


class FinalWeights(Callback):
    """When a training is finished: metrics.json, then final.ckpt with the trained network's weights, its settings, its
    classes and the flow it was trained on; all but the weights are in each checkpoint before, too.

    final.ckpt appears last and whole, so that its presence means a finished training. With a W&B logger it is also an
    artifact of the run.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = state_dict["metrics"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(_beside_weights(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            values = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.metrics = {"epoch": trainer.current_epoch, "global_step": trainer.global_step, **values}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.global_step == 0:
            raise ValueError(
                "the training took no step: its DataLoader has no whole batch for each process; lower `batch_size` or "
                "the number of processes"
            )
        if trainer.is_global_zero:
            self._leave_final_weights(trainer, pl_module)
        trainer.strategy.barrier("final weights")

    def _leave_final_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = RunFolder(trainer.default_root_dir)
        metrics = {key: _as_json(value) for key, value in self.metrics.items()}
        with whole_file(run.metrics) as partial:
            partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        with whole_file(run.final) as partial:
            weights = _trained(pl_module).state_dict()
            torch.save({"state_dict": weights, **_beside_weights(trainer, pl_module)}, partial)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                _log_artifact(logger, run, metrics)


class OnePrecision(Callback):
    """Refuses processes that compute in different precisions: each has chosen by its own machine.

    Raises:
        ValueError: in all processes; names the precisions and what to give.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own = str(trainer.precision)
        first = trainer.strategy.broadcast(own)
        # All or none: a process that goes on alone would wait for the others.
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise ValueError(
                f"process {trainer.global_rank} on {platform.node()} ({processor_name(trainer.strategy.root_device)}) "
                f"computes in {own}, process 0 in {first}, and not all processes in the same: give "
                "--trainer.precision=32-true, which all machines can, or machines of one kind"
            )


class EpochSeed(Callback):
    """Seeds every training epoch by itself, from the run's seed, the epoch and the process.

    A checkpoint holds no random state; with this, an epoch draws the same numbers whether or not the training was
    interrupted before it. The seed must come before the data iterator, which draws: Lightning makes that of a run's
    first epoch before the epoch starts, the others after. Workers that live on over epochs (`persistent_workers`) keep
    a state of their own, which nothing restores.
    """

    def __init__(self) -> None:
        self.next_epoch = 0
        self.first_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next_epoch": self.next_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.next_epoch = state_dict["next_epoch"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_epoch = self.next_epoch
        _seed(self.first_epoch, trainer.global_rank)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch != self.first_epoch:
            _seed(trainer.current_epoch, trainer.global_rank)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.next_epoch = trainer.current_epoch + 1


def _seed(*position: int) -> None:
    run_seed = os.environ.get("PL_GLOBAL_SEED")
    if run_seed is not None:
        seed = int(np.random.SeedSequence([int(run_seed), *position]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def _as_json(value: Any) -> Any:
    """null for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trained(pl_module: LightningModule) -> nn.Module:
    return getattr(pl_module, "trained", pl_module)


def _beside_weights(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What `checkpoints.read_entry` finds: whoever loads the weights checks that they are used as they were trained."""
    return {
        "classes": _classes(trainer),
        "flow": _flow(trainer),
        "settings": getattr(_trained(pl_module), "settings", None),
    }


def _classes(trainer: Trainer) -> list[str] | None:
    classes = getattr(getattr(trainer, "datamodule", None), "classes", None)
    return None if classes is None else list(classes)


def _flow(trainer: Trainer) -> dict[str, Any] | None:
    """Settings of the estimator whose flow the network was trained on."""
    store = getattr(getattr(trainer, "datamodule", None), "store", None)
    return None if store is None else store.manifest["estimator"]


def _log_artifact(logger: WandbLogger, run: RunFolder, metrics: dict[str, Any]) -> None:
    import wandb

    path = run.path.resolve()
    name = re.sub(r"[^\w.-]", "-", f"{path.parent.name}-{path.name}")
    artifact = wandb.Artifact(name, type="model", metadata=metrics)
    # Immutable: no second copy of the weights in W&B's staging folder.
    artifact.add_file(str(run.final), policy="immutable")
    logger.experiment.log_artifact(artifact)
