"""Training a classifier of flow stacks (section 4): cross-entropy on random stacks, stack-level and video-level top-1
on all non-overlapping stacks of the test clips."""

from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from datamodules.batches import FlowStackBatch
from lightning_modules.classifiers.factory import ClassifierFactory
from lightning_modules.optimization import Interval, configure
from lightning_modules.video_accuracy import VideoAccuracy, counted_once


class FlowClassification(LightningModule):
    """Any classifier on FlowStackBatch.

    Args:
        classifier: the network, without its number of classes.
        num_classes: from the dataset; the command line links it.
        optimizer: its class and arguments.
        lr_scheduler: its class and arguments; none keeps the rate.
        lr_interval: what the scheduler counts.
        label_smoothing: share of the target spread over all classes in training.
    """

    def __init__(
        self,
        *,
        classifier: ClassifierFactory,
        num_classes: int,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Interval = "epoch",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.classifier = classifier(num_classes=num_classes)
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.label_smoothing = label_smoothing
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.stack_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.video_accuracy = VideoAccuracy()
        self.confusion = MulticlassConfusionMatrix(num_classes)
        """of the last validation or test, stack level, row = class (`ConfusionMatrix` draws it)"""
        self.loss = MeanMetric()

    @property
    def trained(self) -> nn.Module:
        """The network whose weights a finished run leaves."""
        return self.classifier

    def forward(self, flow: Tensor) -> Tensor:
        """Flow stack (B, 2(T-1), h, w) in pixels to logits (B, C)."""
        return self.classifier(flow)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure(self.classifier.parameters(), self.optimizer, self.lr_scheduler, self.lr_interval)

    def training_step(self, batch: FlowStackBatch, batch_idx: int) -> Tensor:
        logits = self(batch.flow)
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.label_smoothing)
        self.train_accuracy(logits, batch.label)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: FlowStackBatch, batch_idx: int) -> None:
        self._evaluate(batch, counted_once(self.trainer.val_dataloaders, batch_idx, len(batch.label)), "val")

    def test_step(self, batch: FlowStackBatch, batch_idx: int) -> None:
        self._evaluate(batch, counted_once(self.trainer.test_dataloaders, batch_idx, len(batch.label)), "test")

    def _evaluate(self, batch: FlowStackBatch, counted: Tensor, stage: str) -> None:
        counted = counted.to(batch.label.device)
        logits, labels, clips = self(batch.flow)[counted], batch.label[counted], batch.clip[counted]
        if len(labels):
            self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
            self.stack_accuracy.update(logits, labels)
            self.confusion.update(logits, labels)
            self.video_accuracy.update(logits.softmax(1), labels, clips)
        self.log_dict(
            {
                f"{stage}/loss": self.loss,
                f"{stage}/stack_accuracy": self.stack_accuracy,
                f"{stage}/video_accuracy": self.video_accuracy,
            },
            on_step=False,
            on_epoch=True,
            batch_size=len(counted),
        )
