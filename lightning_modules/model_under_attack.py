"""The model under attack (sections 3.1, 3.2): frames -> flow of each adjacent pair -> stack -> class, with gradient
from the class to the frames where the flow estimator has one.

The classifier was trained on 8-bit flow; whether the attacked system rounds its flow too is the option `eight_bit`.
"""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchmetrics import MeanMetric

from attacks.processor import has_bf16_units, processor_name
from attacks.settings import weights_sha256
from datamodules.batches import VideoBatch
from datamodules.flow_codec import FLOW_BOUND, quantise
from datamodules.flow_store import differences
from datamodules.transforms import centre_crop
from lightning_modules.checkpoints import load_weights, read_entry
from lightning_modules.classifiers.factory import ClassifierFactory
from lightning_modules.video_accuracy import VideoAccuracy, counted_once

Precision = Literal["float32", "bfloat16"]


class ModelUnderAttack(LightningModule):
    """A flow estimator and a classifier as one system, always frozen and in eval mode; needs no Trainer.

    Args:
        estimator: frames (B, T, 3, H, W) to flow; its weights come by its own `checkpoint`.
        classifier: flow stack to logits: the network without its number of classes, or one that is ready.
        classifier_checkpoint: its weights, a run's `final.ckpt`; the classes stored there give their number.
        crop: side of the centre crop that the classifier sees, pixels.
        eight_bit: round the flow to the codec's 8-bit levels, as the stored flow is; the gradient passes the rounding.
        precision: "float32", or "bfloat16" for autocast, about twice as fast or more where the hardware has it, with
            5 % of the gradient's signs another. Flow, warps, norms and the classifier's last layer stay float32 (TF32
            where it is allowed), and so do the logits. The last layer is the module with weights that the classifier
            registers last. Where another module computes the logits, or TorchScript, they are bfloat16 values, and a
            warning says so. An estimator whose last layer is bfloat16 gives bfloat16 values of flow, too.
        num_classes: needed without a checkpoint that stores its classes; the command line links the dataset's.

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint is missing or of another network; names it.
        ValueError: the number of classes is unknown, or not the checkpoint's; the classifier was trained on other flow
            than the estimator's; an unknown precision.
    """

    pairwise = True

    def __init__(
        self,
        *,
        estimator: nn.Module,
        classifier: ClassifierFactory | nn.Module,
        classifier_checkpoint: Path | None = None,
        crop: int,
        eight_bit: bool = False,
        precision: Precision = "float32",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise ValueError(f"unknown precision {precision!r}: choose {' or '.join(get_args(Precision))}")
        self.crop, self.eight_bit, self.precision = crop, eight_bit, precision
        self.classifier_checkpoint = classifier_checkpoint
        self.classes = None if classifier_checkpoint is None else read_entry(classifier_checkpoint, "classes")
        self.estimator = estimator
        if not isinstance(classifier, nn.Module):
            classifier = classifier(num_classes=self._number_of_classes(num_classes))
        self.classifier: nn.Module = classifier
        if classifier_checkpoint is not None:
            load_weights(self.classifier, classifier_checkpoint, prefix="classifier.")
        _keep_last_layer_in_float32(self.classifier)
        self.stack_accuracy = MeanMetric()
        self.video_accuracy = VideoAccuracy()
        self._check_flow()
        self.requires_grad_(False)
        self.train(False)

    @property
    def differentiable(self) -> bool:
        """Whether the frames get a gradient."""
        return bool(getattr(self.estimator, "differentiable", True))

    @property
    def rounds_frames(self) -> bool:
        """Whether frames and frames rounded to 8 bits give the same logits, because the estimator rounds them
        itself."""
        return bool(getattr(self.estimator, "rounds_frames", False))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the logits and their gradient, JSON-able."""
        of_flow: Any = self.estimator.settings
        return {
            "estimator": {**of_flow, **getattr(self.estimator, "gradient_settings", {})},
            "classifier": {
                **getattr(self.classifier, "settings", {"classifier": type(self.classifier).__qualname__}),
                "weights_sha256": weights_sha256(self.classifier),
            },
            "classes": self.classes,
            "crop": self.crop,
            "eight_bit": self.eight_bit,
            "precision": self._precision_in_use(),
            "flow_bound": FLOW_BOUND,
        }

    def train(self, mode: bool = True) -> "ModelUnderAttack":
        """Stays in eval mode: an attack must not move a batch norm, nor meet dropout."""
        return super().train(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.classify(self._flow(frames))

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Frames (N, 3, H, W) and their successors to flow (N, 2, H, W) in pixels."""
        return self._flow(torch.stack((first, second), 1))[:, 0]

    def classify(self, flow: Tensor) -> Tensor:
        """Flow (B, T-1, 2, H, W) in pixels to logits (B, C): clip to ±20, 8 bits if wanted, centre crop, classifier.

        Raises:
            ValueError: the frames are smaller than the crop; names both.
        """
        flow = centre_crop(flow, self.crop)
        flow = quantise(flow) if self.eight_bit else flow.clamp(-FLOW_BOUND, FLOW_BOUND)
        with self._autocast(flow):
            logits = self.classifier(flow.flatten(1, 2))
        if self.precision == "bfloat16" and logits.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            _warn_of_coarse_logits(type(self.classifier).__qualname__)
        return logits.to(flow.dtype)

    def setup(self, stage: str) -> None:
        """Check the classes against those of the attached DataModule."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "classes", None)
        if classes is not None:
            self.check_classes(classes)

    def check_classes(self, classes: list[str]) -> None:
        """Whether the classifier was trained on these classes, in this order.

        Raises:
            ValueError: it was not; names the checkpoint and the difference.
        """
        if self.classes is not None and list(classes) != self.classes:
            raise ValueError(
                f"{self.classifier_checkpoint} was trained on other classes than the dataset's: "
                f"{_difference(self.classes, list(classes))}; train a classifier on this dataset, or attack with the "
                "dataset that it was trained on"
            )

    def _flow(self, frames: Tensor) -> Tensor:
        with self._autocast(frames):
            flow = self.estimator(frames)
        # A user's network may end in bfloat16; clip, rounding and logits are not to.
        return flow.to(frames.dtype) if self.precision == "bfloat16" else flow

    def _autocast(self, x: Tensor) -> torch.autocast:
        if self.precision == "bfloat16" and not torch.compiler.is_compiling():
            _warn_of_slow_bfloat16(x.device)
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _precision_in_use(self) -> str:
        if torch.get_float32_matmul_precision() == "highest":
            return self.precision
        return "tf32" if self.precision == "float32" else f"{self.precision}, tf32"

    def _check_flow(self) -> None:
        """Whether the classifier was trained on this estimator's flow, where its checkpoint says on which."""
        trained_on = None if self.classifier_checkpoint is None else read_entry(self.classifier_checkpoint, "flow")
        if trained_on is None:
            return
        differing = differences(trained_on, json.loads(json.dumps(self.estimator.settings)))
        if differing:
            raise ValueError(
                f"{self.classifier_checkpoint} was trained on other flow than the estimator's: {'; '.join(differing)}; "
                "remove that training's folder to train the classifier anew, or attack with the estimator it "
                "was trained on"
            )

    accuracy_from_sweep = True
    """A sweep makes the clean pass itself, or made it in an earlier run: its records give the accuracies."""

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:
        if any(getattr(callback, "gives_accuracy", False) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            return
        # Stack by stack: a long video's flow pairs would not fit a small device at once.
        logits = torch.cat([self(stack) for stack in batch.frames.split(1)])
        if counted_once(self.trainer.test_dataloaders, batch_idx, 1).item():
            labels = batch.label.expand(len(logits))
            self.stack_accuracy.update((logits.argmax(1) == labels).float())
            self.video_accuracy.update(logits.softmax(1), labels, batch.clip.expand(len(logits)))
        self.log_dict(
            {"test/stack_accuracy": self.stack_accuracy, "test/video_accuracy": self.video_accuracy},
            on_step=False,
            on_epoch=True,
            batch_size=len(logits),
        )

    def _number_of_classes(self, given: int | None) -> int:
        if self.classes is None and given is None:
            raise ValueError(
                f"the classifier's number of classes is unknown: {self.classifier_checkpoint or 'no checkpoint'} "
                "stores none; give `classifier_checkpoint` the final.ckpt of a training, or give `num_classes`"
            )
        if self.classes is not None and given not in (None, len(self.classes)):
            raise ValueError(
                f"{self.classifier_checkpoint} was trained on {len(self.classes)} classes ({_few(self.classes)}), but "
                f"the dataset has {given}; train a classifier on this dataset, or use the one that it was trained on"
            )
        return len(self.classes) if self.classes is not None else int(given or 0)


def _keep_last_layer_in_float32(classifier: nn.Module) -> None:
    """Its logits are then float32; those of autocast are bfloat16, 0.125 apart near 16."""
    with_weights = [m for m in classifier.modules() if next(m.parameters(recurse=False), None) is not None]
    last = with_weights[-1] if with_weights else None
    # TorchScript takes no hooks. A classifier may be part of several systems.
    if last is None or isinstance(last, torch.jit.ScriptModule) or _in_float32 in last._forward_hooks.values():
        return
    last.register_forward_hook(_in_float32, with_kwargs=True)


def _in_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook: under autocast, compute the output again without it.

    It computes a small layer twice. But it keeps no state between two hooks, so that threads, exceptions, copies and
    torch.compile need no care, and it leaves the state dict's keys alone.
    """
    device = next(module.parameters()).device.type
    if not torch.is_autocast_enabled(device) or any(p.dtype != torch.float32 for p in module.parameters()):
        return None
    low = (torch.bfloat16, torch.float16)
    args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.dtype in low else x, (args, kwargs))
    with torch.autocast(device, enabled=False):
        return module.forward(*args, **kwargs)


@cache
def _warn_of_slow_bfloat16(device: torch.device) -> None:
    if device.type in ("cpu", "cuda") and not has_bf16_units(device):
        warnings.warn(
            f"precision=bfloat16 on {processor_name(device)}, which has no usable bfloat16 units: it is slower than "
            "float32; give the model under attack `precision: float32`",
            stacklevel=2,
        )


@cache
def _warn_of_coarse_logits(classifier: str) -> None:
    warnings.warn(
        f"precision=bfloat16: the logits of {classifier} are bfloat16 values, 0.125 apart near 16. Its last registered "
        "layer does not compute them, or is TorchScript. Register the layer that computes them last, or give the model "
        "under attack `precision: float32`",
        stacklevel=2,
    )


def _difference(stored: list[str], dataset: list[str]) -> str:
    if len(stored) != len(dataset):
        return f"{len(stored)} there ({_few(stored)}), {len(dataset)} here ({_few(dataset)})"
    index = next(i for i, (a, b) in enumerate(zip(stored, dataset, strict=True)) if a != b)
    return f"class {index} is {stored[index]!r} there and {dataset[index]!r} here"


def _few(classes: list[str]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
