"""The layers of FlowNet2's networks (Ilg et al. 2017), in NVIDIA's arrangement so that its state-dict keys fit.

Flow predictions, warps and norms are computed in float32 (or wider) whatever autocast is active.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def conv(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution, optional batch norm, leaky ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=not batch_norm)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE, inplace=True))


def inter_conv(inputs: int, outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Convolution without activation that smooths the features before a flow is predicted (SD and fusion)."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


def deconv(inputs: int, outputs: int) -> nn.Sequential:
    """Transposed convolution that doubles the size, leaky ReLU; never batch-normed."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(SLOPE, inplace=True))


class PredictFlow(nn.Conv2d):
    """Features (B, C, h, w) -> flow (B, 2, h, w), float32 under autocast."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(full_precision(x))


class UpsampledFlow(nn.ConvTranspose2d):
    """Flow (B, 2, h, w) -> (B, 2, 2h, 2w) by learned weights, float32 under autocast."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__(2, 2, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(full_precision(x))


def join(features: Tensor, upsampled: Tensor, flow: Tensor) -> Tensor:
    """What a refinement stage reads: encoder features, decoder features and the coarser flow, on one channel axis."""
    return torch.cat((features, upsampled, flow.to(features.dtype)), 1)


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """Warp `image` (B, C, H, W) backwards by `flow` (B, 2, H, W) in pixels: out(x, y) = image(x + u, y + v), bilinear.

    The four neighbour *indices* are clamped to the frame, the fractions are not. `grid_sample` gives the same values,
    but another gradient with respect to the flow at whole pixels. NaN flow gives NaN, never an index.
    """
    batch, channels, height, width = image.shape
    image, flow = full_precision(image), full_precision(flow)
    x = flow[:, 0] + torch.arange(width, device=flow.device, dtype=flow.dtype)
    y = flow[:, 1] + torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None]
    left, top = x.detach().floor(), y.detach().floor()
    right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]

    def index(coordinate: Tensor, size: int) -> Tensor:
        return coordinate.nan_to_num(0.0).clamp(0, size - 1).long()

    columns = index(left, width), index(left + 1, width)
    rows = index(top, height), index(top + 1, height)
    corners = torch.stack([row * width + column for row in rows for column in columns], 1)
    values = image.flatten(2).gather(2, corners.view(batch, 1, -1).expand(-1, channels, -1))
    top_left, top_right, bottom_left, bottom_right = values.view(batch, channels, 4, height, width).unbind(2)
    upper = top_left * (1 - right_share) + top_right * right_share
    lower = bottom_left * (1 - right_share) + bottom_right * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


class _ChannelNorm(torch.autograd.Function):
    """The norm with the gradient of NVIDIA's kernel, x / (norm + 1e-9)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        ctx.save_for_backward(x, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        return gradient * x / (norm + 1e-9)


def channelnorm(x: Tensor) -> Tensor:
    """Euclidean norm over the channels, (B, C, H, W) -> (B, 1, H, W); its gradient at zero is zero, not NaN."""
    return _ChannelNorm.apply(full_precision(x))


def upsample(flow: Tensor, *, mode: str, align_corners: bool = False) -> Tensor:
    """Flow (B, 2, h, w) at four times the size, the vectors unchanged; `align_corners` counts for "bilinear" only."""
    if mode == "nearest":
        return F.interpolate(flow, scale_factor=4, mode="nearest")
    return F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=align_corners)
