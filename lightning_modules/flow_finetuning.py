"""Fine-tuning a flow network on stored flow (section 4: FlowNet2 on TV-L1), with NVIDIA's multi-scale loss where the
network has several scales, and L1 where it has one."""

import copy

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.batches import FlowPairBatch
from lightning_modules.flow.losses import MultiScale, Norm
from lightning_modules.optimization import Interval, configure
from lightning_modules.video_accuracy import counted_once


class FlowFinetuning(LightningModule):
    """Any differentiable estimator on FlowPairBatch.

    Validation and test log the loss, the end-point error against the target in pixels (`epe`) and, as its yardsticks,
    that of zero flow (`epe_zero`) and of the estimator as it was before the training (`epe_start`).

    Args:
        estimator: frames (B, T, 3, H, W) to flow (B, T-1, 2, H, W); it starts from its own `checkpoint`.
        optimizer: its class and arguments.
        lr_scheduler: its class and arguments; none keeps the rate.
        lr_interval: what the scheduler counts.
        norm: of the loss at each scale.
        freeze: prefixes of parameter names of the estimator that keep their weights, "network.flownetc" for one.

    Raises:
        ValueError: the estimator has no gradient; a prefix names no parameter; nothing is left to train.
    """

    start_error: Tensor

    def __init__(
        self,
        *,
        estimator: nn.Module,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Interval = "epoch",
        norm: Norm = "L1",
        freeze: list[str] | None = None,
    ) -> None:
        super().__init__()
        if not getattr(estimator, "differentiable", True):
            raise ValueError(f"{type(estimator).__name__} has no gradient and so cannot be trained: choose a network")
        self.estimator = estimator
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.criterion = MultiScale(norm)
        self.frozen = _freeze(estimator, freeze or [])
        # in a list, so that it is no part of this module: not trained, not saved, not moved
        self._start = [copy.deepcopy(estimator).requires_grad_(False).eval()]
        self.register_buffer("start_error", torch.tensor(torch.nan))
        self.loss, self.epe, self.epe_zero, self.epe_start = MeanMetric(), MeanMetric(), MeanMetric(), MeanMetric()
        self.train()

    @property
    def trained(self) -> nn.Module:
        """The network whose weights a finished run leaves."""
        return self.estimator

    def train(self, mode: bool = True) -> "FlowFinetuning":
        """As always, but batch norms of frozen parts keep their statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] to flow (B, T-1, 2, H, W) in pixels."""
        return self.estimator(frames)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure(self.estimator.parameters(), self.optimizer, self.lr_scheduler, self.lr_interval)

    def training_step(self, batch: FlowPairBatch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.frames))
        return loss

    def validation_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        self._evaluate(batch, counted_once(self.trainer.val_dataloaders, batch_idx, len(batch.frames)), "val")

    def on_validation_epoch_end(self) -> None:
        # the validation pairs stay the same, and so does what the estimator made of them before the training
        if not self.trainer.sanity_checking and self.start_error.isnan():
            self.start_error.copy_(self.epe_start.compute())

    def test_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        self._evaluate(batch, counted_once(self.trainer.test_dataloaders, batch_idx, len(batch.frames)), "test")

    def _loss(self, batch: FlowPairBatch) -> Tensor:
        training_flows = getattr(self.estimator, "training_flows", None)
        flows = self.estimator(batch.frames)[:, 0] if training_flows is None else training_flows(batch.frames)
        return self.criterion(flows, batch.flow[:, 0])

    def _evaluate(self, batch: FlowPairBatch, counted: Tensor, stage: str) -> None:
        counted = counted.to(batch.flow.device)
        batch = FlowPairBatch(batch.frames[counted], batch.flow[counted])
        if len(batch.frames):
            self.loss.update(self._loss(batch), len(batch.frames))
            self.epe.update(end_point_errors(self(batch.frames), batch.flow))
            self.epe_zero.update(end_point_errors(torch.zeros_like(batch.flow), batch.flow))
            if stage == "val" and not self.start_error.isnan():
                self.epe_start.update(self.start_error, len(batch.frames))
            else:
                self.epe_start.update(end_point_errors(self._start[0].to(self.device)(batch.frames), batch.flow))
        self.log_dict(
            {
                f"{stage}/loss": self.loss,
                f"{stage}/epe": self.epe,
                f"{stage}/epe_zero": self.epe_zero,
                f"{stage}/epe_start": self.epe_start,
            },
            on_step=False,
            on_epoch=True,
            batch_size=len(counted),
        )


def end_point_errors(flow: Tensor, target: Tensor) -> Tensor:
    """Mean length of flow - target of each item (B,), both (B, T-1, 2, H, W) in pixels."""
    return (flow - target).norm(dim=2).flatten(1).mean(1)


def _freeze(estimator: nn.Module, prefixes: list[str]) -> list[nn.Module]:
    """Take the gradient from the named parameters; the modules that are frozen whole."""
    parameters = dict(estimator.named_parameters())
    for prefix in prefixes:
        named = [p for name, p in parameters.items() if name == prefix or name.startswith(f"{prefix}.")]
        if not named:
            raise ValueError(
                f"freeze: {prefix!r} names no parameter of {type(estimator).__name__}; its parts are "
                + ", ".join(sorted(_parts(estimator)))
            )
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"freeze: {prefixes} leaves no parameter of {type(estimator).__name__} to train")
    return [
        module
        for module in estimator.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    ]


def _parts(estimator: nn.Module) -> set[str]:
    """Parameter names, cut to as many levels as give more than one."""
    names = [name.split(".") for name, _ in estimator.named_parameters()]
    for level in range(1, max(map(len, names)) + 1):
        parts = {".".join(name[:level]) for name in names}
        if len(parts) > 1:
            return parts
    return {".".join(name) for name in names}
