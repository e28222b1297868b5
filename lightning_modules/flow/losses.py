"""NVIDIA's training losses for FlowNet2 (flownet2-pytorch, losses.py; the multi-scale loss of Dosovitskiy et al. 2015).

Departure: a cell that reaches over the frame's edge (sizes that are no multiples of 64) averages the pixels it has.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

FLOW_SCALE = 0.05  # C, S and SD are trained on twentieths of a pixel step
FINEST_CELL = 4
FINEST_WEIGHT = 0.32
Norm = Literal["L1", "L2"]


def end_point_error(flow: Tensor, target: Tensor) -> Tensor:
    """Mean length of flow - target, both (..., 2, H, W) in pixels."""
    return (flow - target).norm(dim=-3).mean()


def l1(flow: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of |flow - target|."""
    return (flow - target).abs().mean()


def flow_loss(flow: Tensor, target: Tensor, *, norm: Norm = "L1") -> Tensor:
    """L1: mean over the elements; L2: mean end-point error. flow, target (B, 2, H, W)."""
    return l1(flow, target) if norm == "L1" else end_point_error(flow, target)


def multi_scale(flows: tuple[Tensor, ...], target: Tensor, *, norm: Norm = "L1") -> Tensor:
    """Weighted sum over the scales, 0.32 for the finest and half of that for each coarser one.

    flows: fine to coarse in twentieths of a pixel, cells of 4, 8 ... pixels; target (B, 2, H, W) in pixels, which is
    averaged over each cell.
    """
    loss = target.new_zeros(())
    for scale, flow in enumerate(flows):
        cell = FINEST_CELL * 2**scale
        cells = F.avg_pool2d(target * FLOW_SCALE, cell, ceil_mode=True)
        if cells.shape != flow.shape:
            raise ValueError(
                f"flow {scale} of the pyramid is {tuple(flow.shape)}, but a target of {tuple(target.shape)} has "
                f"{tuple(cells.shape)} cells of {cell} pixels: give the estimator's training_flows of the same frames"
            )
        loss = loss + FINEST_WEIGHT / 2**scale * flow_loss(flow, cells, norm=norm)
    return loss


class MultiScale(nn.Module):
    """NVIDIA's loss for every variant: five flows are compared scale by scale, a full-size one directly.

    Args:
        norm: "L1" or "L2" (end-point error) at each scale.
    """

    def __init__(self, norm: Norm = "L1") -> None:
        super().__init__()
        if norm not in ("L1", "L2"):
            raise ValueError(f"unknown norm {norm!r} of the flow loss: choose L1 or L2")
        self.norm: Norm = norm

    def forward(self, flows: tuple[Tensor, ...] | Tensor, target: Tensor) -> Tensor:
        """An estimator's `training_flows` (or one flow in pixels) and the target (B, 2, H, W) in pixels -> scalar."""
        if isinstance(flows, Tensor):
            return flow_loss(flows, target, norm=self.norm)
        if len(flows) == 1:
            return flow_loss(flows[0], target, norm=self.norm)
        return multi_scale(flows, target, norm=self.norm)
