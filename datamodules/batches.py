"""What the DataModules hand out. Shapes and ranges stand here once.

frames: float32 RGB in [0, 1]. flow: float32, pixels per frame step, channel 0 = u (right), 1 = v (down).
"""

from typing import NamedTuple

from torch import Tensor


class FlowPairBatch(NamedTuple):
    """Frame pairs with their target flow."""

    frames: Tensor
    """(B, 2, 3, H, W)"""
    flow: Tensor
    """(B, 1, 2, H, W)"""


class FlowStackBatch(NamedTuple):
    """Stacks of stored flow, u0 v0 u1 v1 …, with their class."""

    flow: Tensor
    """(B, 2(T-1), h, w), in pixels at this resolution, within ±20"""
    label: Tensor
    """(B,) int64"""
    clip: Tensor
    """(B,) int64, index of the clip in its subset"""


class VideoBatch(NamedTuple):
    """One video: its non-overlapping stacks, from the first on (section 5.2)."""

    frames: Tensor
    """(S, T, 3, H, W)"""
    label: Tensor
    """() int64"""
    clip: Tensor
    """() int64, index of the clip in its subset"""
