"""ResNet on a flow stack (section 4: ResNet-152, input 20×224×224, one network per flow algorithm).

torchvision's network with another first convolution. Departures: any depth, any input of 32 pixels or more, dropout,
mean flow subtraction.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from lightning_modules.checkpoints import CheckpointError, load_weights

UNIT_SCALE = 20 * 0.226 / 0.5
"""Pixels; divides ±20 into ±2.2, the range of an 8-bit plane under ImageNet's mean 0.5 and deviation 0.226."""


class ResNet(nn.Module):
    """Flow stack (B, 2·stack_length, h, w), in pixels within ±20, to logits (B, num_classes).

    Args:
        num_classes: number of classes.
        depth: 18, 34, 50, 101 or 152; 152 is the paper's.
        stack_length: flow fields in a stack, u and v each.
        imagenet: start from ImageNet weights: `true` takes torchvision's (downloaded once), a path takes a file with a
            state dict of torchvision's ResNet of this depth. The first convolution is averaged over RGB and replicated
            (Wang et al. 2016, cross-modality pre-training); the last layer stays random.
        dropout: share of the features dropped before the last layer in training.
        flow_scale: pixels of flow that become 1.
        subtract_mean: take its mean vector from each flow field first, and with it most of the camera's motion ("mean
            flow subtraction", Simonyan and Zisserman 2014, section 3.1). Not in the paper; wrong where the classes
            differ by the motion of the whole picture.

    Raises:
        FileNotFoundError, CheckpointError: the ImageNet file is missing, or is not of this depth; names it.
        ConnectionError: torchvision's weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: Literal[18, 34, 50, 101, 152] = 152,
        stack_length: int = 10,
        imagenet: bool | Path = False,
        dropout: float = 0.0,
        flow_scale: float = UNIT_SCALE,
        subtract_mean: bool = False,
    ) -> None:
        super().__init__()
        self.depth, self.stack_length, self.dropout, self.flow_scale = depth, stack_length, dropout, flow_scale
        self.subtract_mean = subtract_mean
        network = torchvision.models.get_model(f"resnet{depth}")
        if imagenet:
            _load_imagenet(network, depth, imagenet)
        network.conv1 = _on_flow(network.conv1, 2 * stack_length, pretrained=bool(imagenet))
        network.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.fc.in_features, num_classes))
        self.network = network.to(memory_format=torch.channels_last)  # a fifth faster on a CPU, more on a GPU

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the output, apart from the weights."""
        return {
            "classifier": "resnet",
            "depth": self.depth,
            "stack_length": self.stack_length,
            "flow_scale": self.flow_scale,
            "subtract_mean": self.subtract_mean,
            "torchvision": torchvision.__version__,
        }

    def forward(self, flow: Tensor) -> Tensor:
        """Flow stack (B, 2·stack_length, h, w) in pixels to logits (B, num_classes).

        Raises:
            ValueError: the stack has another number of channels; names both.
        """
        expected = 2 * self.stack_length
        if flow.dim() != 4 or flow.shape[1] != expected:
            raise ValueError(
                f"a flow stack of shape {tuple(flow.shape)} reached a ResNet for (B, {expected}, h, w): it takes "
                f"{expected} channels, u and v of {self.stack_length} flow fields; make `stack_length` of the "
                "classifier one less than the frames of a stack"
            )
        if self.subtract_mean:
            flow = flow - flow.mean((-2, -1), keepdim=True)
        return self.network((flow / self.flow_scale).contiguous(memory_format=torch.channels_last))


def _on_flow(convolution: nn.Conv2d, channels: int, *, pretrained: bool) -> nn.Conv2d:
    """The first convolution on `channels` planes."""
    changed = nn.Conv2d(
        channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
        stride=convolution.stride,  # type: ignore[arg-type]
        padding=convolution.padding,  # type: ignore[arg-type]
        bias=False,
    )
    nn.init.kaiming_normal_(changed.weight, mode="fan_out", nonlinearity="relu")
    if pretrained:
        with torch.no_grad():
            changed.weight.copy_(convolution.weight.mean(dim=1, keepdim=True).expand_as(changed.weight))
    return changed


def _load_imagenet(network: nn.Module, depth: int, source: bool | Path) -> None:
    if isinstance(source, Path):
        try:
            load_weights(network, source)
        except CheckpointError as error:
            raise CheckpointError(f"imagenet={source} is not torchvision's ResNet-{depth}: {error}") from error
        return
    weights = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        network.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise ConnectionError(
            f"ImageNet weights of ResNet-{depth} could not be downloaded from {weights.url} ({error}): download that "
            "file elsewhere and give its path as `imagenet`, or set `imagenet: false` to train from scratch"
        ) from error
