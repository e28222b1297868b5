"""Frames of any size for networks that take only multiples of some number: one rule, there and back.

The rule is an argument of the estimator, so that fine-tuning, extraction and attack share it; manifests and checkpoints
record it.
"""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

SizeRule = Literal["pad", "resize"]


def check_size_rule(rule: str) -> None:
    """Raise ValueError that names an unknown rule."""
    if rule not in get_args(SizeRule):
        raise ValueError(f"unknown size rule {rule!r}: choose {' or '.join(get_args(SizeRule))}")


def check_frames(frames: Tensor, estimator: str) -> None:
    """Raise ValueError that names the shape of frames that are not (B, T >= 2, 3, H, W)."""
    if frames.dim() != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
        raise ValueError(f"{estimator} needs frames (B, T >= 2, 3, H, W), not {tuple(frames.shape)}")


def fit_frames(frames: Tensor, rule: SizeRule, *, multiple: int, least: int = 0) -> Tensor:
    """Frames (B, T, 3, H, W) at the next multiple of `multiple` that is at least `least`.

    "pad" repeats the last row and column at the bottom and right; "resize" scales bilinearly.
    """
    height, width = (max(-(-size // multiple) * multiple, least) for size in frames.shape[-2:])
    if (height, width) == tuple(frames.shape[-2:]):
        return frames
    flat = frames.flatten(0, 1)
    if rule == "pad":
        flat = F.pad(flat, (0, width - frames.shape[-1], 0, height - frames.shape[-2]), mode="replicate")
    else:
        flat = F.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return flat.unflatten(0, frames.shape[:2])


def flow_at_size(flow: Tensor, rule: SizeRule, *, height: int, width: int) -> Tensor:
    """Flow (N, 2, h, w) of fitted frames at the frames' own size: cropped, or resized with its vectors."""
    if rule == "pad" or flow.shape[-2:] == (height, width):
        return flow[..., :height, :width]
    scale = flow.new_tensor((width / flow.shape[-1], height / flow.shape[-2])).view(2, 1, 1)
    return F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * scale
