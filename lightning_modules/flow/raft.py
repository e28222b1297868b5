"""RAFT (Teed and Deng 2020): torchvision's networks and weights behind the estimator contract.

Departure: the gradient passes through the whole recurrence. Published code, torchvision's forward included, stops it at
the coordinates of every iteration (section 3.3), which trains well but is not the derivative that a white box needs.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.settings import weights_sha256
from lightning_modules.checkpoints import State, check_trained_with, load_weights
from lightning_modules.flow.flownet_layers import full_precision
from lightning_modules.flow.frame_size import SizeRule, check_frames, check_size_rule, fit_frames, flow_at_size

CELL = 8  # the networks work at an eighth of the frame's size
LEAST = 128  # four levels of correlation need 16 x 16 cells
SIZES = ("large", "small")


class RAFT(nn.Module):
    """Flow between neighbouring frames by torchvision's RAFT, `self.network`; differentiable to the frames.

    Computed in float32 (or wider) whatever autocast is active. Has no multi-scale flows: it is fine-tuned on the L1
    distance of its last iteration's.

    Args:
        size: "large" (5.3 M parameters) or "small" (1.0 M).
        weights: torchvision's name of published weights, "C_T_SKHT_V2" for one or "DEFAULT", downloaded once.
        checkpoint: weights from a file instead: torchvision's, or those of our fine-tuning. With neither the network
            is untrained.
        iterations: of the recurrence; 12 as in the paper's training.
        size_rule: what is done with sides that are no multiple of 8 or below 128: "pad" repeats the last row and column
            and crops the flow, "resize" scales the frames and the flow, vectors included, back.
        whole_gradient: differentiate through every iteration's coordinates; False stops the gradient there, as RAFT is
            trained. The flow is the same.

    Raises:
        ValueError: an unknown size, name of weights or size rule; `weights` and `checkpoint` both given.
        FileNotFoundError, CheckpointError: the file is missing, is none, holds another network's weights, or was
            trained by us with another size_rule.
        ConnectionError: torchvision's weights cannot be downloaded.
    """

    differentiable = True

    def __init__(
        self,
        *,
        size: Literal["large", "small"] = "large",
        weights: str | None = None,
        checkpoint: Path | None = None,
        iterations: int = 12,
        size_rule: SizeRule = "pad",
        whole_gradient: bool = True,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r} of RAFT: choose {' or '.join(SIZES)}")
        if weights is not None and checkpoint is not None:
            raise ValueError(f"RAFT: weights {weights!r} and checkpoint {checkpoint} were given: give one of them")
        if iterations < 1:
            raise ValueError(f"RAFT: iterations is {iterations}, at least 1 is needed")
        check_size_rule(size_rule)
        self.size, self.iterations, self.size_rule, self.whole_gradient = size, iterations, size_rule, whole_gradient
        self.checkpoint = checkpoint
        self.network = torchvision.models.get_model(f"raft_{size}", weights=None)
        if weights is not None:
            self.network.load_state_dict(_published(size, weights))
        if checkpoint is not None:
            load_weights(self.network, checkpoint, prefix="estimator.network.", identify=identify)
            check_trained_with(checkpoint, {"size_rule": size_rule})

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] -> flow (B, T-1, 2, H, W) in pixels of that size."""
        check_frames(frames, "RAFT")
        fitted = fit_frames(frames, self.size_rule, multiple=CELL, least=LEAST)
        with torch.autocast(frames.device.type, enabled=False):
            x = 2 * full_precision(fitted) - 1
            flow = self._estimate(x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1))
        flow = flow_at_size(flow, self.size_rule, height=frames.shape[-2], width=frames.shape[-1])
        return flow.unflatten(0, (len(frames), -1))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the flow, for manifests and records."""
        return {
            "algorithm": "raft",
            "size": self.size,
            "iterations": self.iterations,
            "size_rule": self.size_rule,
            "torch": str(torch.__version__),
            "torchvision": torchvision.__version__,
            "weights_sha256": weights_sha256(self.network),
        }

    @property
    def gradient_settings(self) -> dict[str, Any]:
        """Everything else that decides the gradient; the flow is the same, and so a store's manifest does not name
        it."""
        return {"whole_gradient": self.whole_gradient}

    def _estimate(self, first: Tensor, second: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1] -> flow (N, 2, H, W): section 3, by torchvision's parts."""
        network = self.network
        network.corr_block.build_pyramid(*network.feature_encoder(torch.cat((first, second))).chunk(2))
        hidden, context = network.context_encoder(first).tensor_split([network.update_block.hidden_state_size], dim=1)
        hidden, context = hidden.tanh(), context.relu()

        start = _cell_coordinates(hidden)
        coordinates = start
        for _ in range(self.iterations):
            if not self.whole_gradient:
                coordinates = coordinates.detach()
            matches = network.corr_block.index_pyramid(centroids_coords=coordinates)
            hidden, step = network.update_block(hidden, context, matches, coordinates - start)
            coordinates = coordinates + step
        network.corr_block.corr_pyramid = []  # the largest tensor: not kept until the next call
        mask = None if network.mask_predictor is None else network.mask_predictor(hidden)
        return _upsampled(coordinates - start, mask)


def identify(state: State) -> str | None:
    """Which of torchvision's RAFTs a state dict belongs to; None where it is none."""
    for size in SIZES:
        with torch.device("meta"):
            expected = torchvision.models.get_model(f"raft_{size}", weights=None).state_dict()
        if {key: tensor.shape for key, tensor in state.items()} == {k: v.shape for k, v in expected.items()}:
            return f"torchvision's raft_{size}"
    return None


def _published(size: str, name: str) -> dict[str, Any]:
    known = torchvision.models.get_model_weights(f"raft_{size}")
    if name not in known.__members__:
        raise ValueError(f"RAFT: torchvision has no weights {name!r} of raft_{size}: {', '.join(known.__members__)}")
    try:
        return known[name].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise ConnectionError(
            f"weights {name} of raft_{size} could not be downloaded from {known[name].url} ({error}): download that "
            "file elsewhere and give its path as `checkpoint`"
        ) from error


def _cell_coordinates(features: Tensor) -> Tensor:
    """Column and row of each cell, (N, 2, h, w)."""
    height, width = (torch.arange(size, dtype=features.dtype, device=features.device) for size in features.shape[-2:])
    row, column = torch.meshgrid(height, width, indexing="ij")
    return torch.stack((column, row)).expand(len(features), -1, -1, -1)


def _upsampled(flow: Tensor, mask: Tensor | None) -> Tensor:
    """Flow (N, 2, h, w) of cells -> (N, 2, 8h, 8w) in pixels: by the convex mask (section 3.3), or bilinearly."""
    if mask is None:
        return CELL * F.interpolate(flow, scale_factor=CELL, mode="bilinear", align_corners=True)
    count, _, height, width = flow.shape
    shares = mask.view(count, 1, 9, CELL, CELL, height, width).softmax(2)
    neighbours = F.unfold(CELL * flow, kernel_size=3, padding=1).view(count, 2, 9, 1, 1, height, width)
    fine = (shares * neighbours).sum(2)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(count, 2, CELL * height, CELL * width)
