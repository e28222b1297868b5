"""FlowNet2 (Ilg et al. 2017) as a flow estimator: frames of any size in [0, 1] through one of `flownet_networks`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.settings import weights_sha256
from lightning_modules.checkpoints import check_trained_with, load_weights
from lightning_modules.flow.flownet_networks import MULTIPLE, VARIANTS, Flows, Variant, identify
from lightning_modules.flow.frame_size import SizeRule, check_frames, check_size_rule, fit_frames, flow_at_size


class FlowNet2Estimator(nn.Module):
    """Flow between neighbouring frames by a FlowNet2 network, `self.network`; differentiable to the frames.

    Args:
        variant: the network.
        width: channel counts as a share of the published network's, 1.0.
        batch_norm: the batch-normed form of NVIDIA's code (no published weights).
        size_rule: what is done where height or width is no multiple of 64. "pad" repeats the last row and column at
            the bottom and right up to the next multiple and crops the flow; "resize" scales the frames bilinearly to
            that size and the flow, vectors included, back. The rule is the same in training, extraction and attack.
        checkpoint: weights to start from: NVIDIA's file, a Lightning checkpoint of our fine-tuning, a bare state dict.
        align_corners: how flow is upsampled bilinearly; NVIDIA trained with what is True today, and the same code now
            computes False (0.5 px apart on random weights).
        sd_factor: what SD's output is multiplied by to be pixels. None is what NVIDIA's code does: 20 in FlowNet2SD and
            1/20 inside FlowNet2, for the same weights; with the published ones, one of the two is off by 400.
        compiled: run the network through torch.compile: minutes at the first call of a size, then faster.

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint is missing, is none, holds another network's weights, or was
            trained by us with another size_rule, align_corners or sd_factor.
    """

    differentiable = True

    def __init__(
        self,
        *,
        variant: Variant = "FlowNet2",
        width: float = 1.0,
        batch_norm: bool = False,
        size_rule: SizeRule = "pad",
        checkpoint: Path | None = None,
        align_corners: bool = False,
        sd_factor: float | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown FlowNet2 variant {variant!r}: choose one of {', '.join(VARIANTS)}")
        check_size_rule(size_rule)
        if not width > 0:
            raise ValueError(f"the width of FlowNet2 is {width}: it must be positive (1.0 is the published network)")
        options: dict[str, Any] = {}
        if sd_factor is not None:
            if variant not in ("FlowNet2", "FlowNet2SD"):
                raise ValueError(f"sd_factor {sd_factor} was given, but {variant} has no SD network: leave it out")
            options["sd_factor"] = sd_factor
        self.variant, self.width, self.batch_norm, self.size_rule = variant, width, batch_norm, size_rule
        network = VARIANTS[variant](width=width, batch_norm=batch_norm, align_corners=align_corners, **options)
        if checkpoint is not None:
            load_weights(network, checkpoint, prefix="estimator.network.", identify=identify)
            check_trained_with(
                checkpoint, {"size_rule": size_rule, "align_corners": align_corners, "sd_factor": sd_factor}
            )
        self.network = network.to(memory_format=torch.channels_last)
        self.align_corners, self.sd_factor, self.compiled = align_corners, sd_factor, compiled
        self.checkpoint = checkpoint

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] -> flow (B, T-1, 2, H, W) in pixels of that size."""
        check_frames(frames, "FlowNet2")
        fitted = fit_frames(frames, self.size_rule, multiple=MULTIPLE)
        pair = torch.stack((fitted[:, :-1], fitted[:, 1:]), 3).flatten(0, 1) * 255
        flow = flow_at_size(self._run("flow", pair), self.size_rule, height=frames.shape[-2], width=frames.shape[-1])
        return flow.unflatten(0, (len(frames), -1))

    def training_flows(self, frames: Tensor) -> Flows:
        """Frames (B, 2, 3, H, W) in [0, 1] -> the flows that the loss compares with the target, fine to coarse.

        C, S, SD: five flows in twentieths of a pixel, their cells 4, 8 ... 64 pixels of the *given* frames wide, as
        many as cover them, ceil(H / cell) x ceil(W / cell). FlowNet2, CS, CSS: one flow (B, 2, H, W) in pixels.
        So the loss needs no size rule: it averages the target over the pixels of each cell that exist.
        """
        check_frames(frames, "FlowNet2")
        height, width = frames.shape[-2:]
        fitted = fit_frames(frames, self.size_rule, multiple=MULTIPLE)
        flows = self._run("training_flows", torch.stack((fitted[:, 0], fitted[:, 1]), 2) * 255)
        cells = [fitted.shape[-1] // flow.shape[-1] for flow in flows]
        if self.size_rule == "pad":
            return tuple(f[:, :, : -(-height // s), : -(-width // s)] for f, s in zip(flows, cells, strict=True))
        return tuple(_at_cells(f, s, height, width, fitted.shape[-2:]) for f, s in zip(flows, cells, strict=True))

    def _run(self, method: str, pair: Tensor) -> Any:
        return _compiled(method)(self.network, pair) if self.compiled else getattr(self.network, method)(pair)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the flow, for manifests and records."""
        return {
            "algorithm": "flownet2",
            "variant": self.variant,
            "width": self.width,
            "batch_norm": self.batch_norm,
            "size_rule": self.size_rule,
            "align_corners": self.align_corners,
            "sd_factor": self.sd_factor,
            "torch": str(torch.__version__),
            "weights_sha256": weights_sha256(self.network),
        }


@cache
def _compiled(method: str) -> Callable[[nn.Module, Tensor], Any]:
    # one function for all networks and none held by an estimator, so that estimators can be copied and sent to workers
    return torch.compile(lambda network, pair: getattr(network, method)(pair))


def _at_cells(flow: Tensor, cell: int, height: int, width: int, fitted: torch.Size) -> Tensor:
    """Flow of resized frames, read at the centres of `cell`-pixel cells of the frames, in their pixels."""

    def centres(size: int) -> Tensor:
        start = torch.arange(0, size, cell, device=flow.device, dtype=flow.dtype)
        return (start + (start + cell).clamp(max=size)) / size - 1

    y, x = torch.meshgrid(centres(height), centres(width), indexing="ij")
    grid = torch.stack((x, y), -1).expand(len(flow), -1, -1, -1)
    scale = flow.new_tensor((width / fitted[1], height / fitted[0])).view(2, 1, 1)
    return F.grid_sample(flow, grid, mode="bilinear", padding_mode="border", align_corners=False) * scale
