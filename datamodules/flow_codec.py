"""Float flow <-> 8-bit planes <-> PNG; the project's only quantiser (section 4).

The paper clips flow to [-20, 20] pixels and stores u and v as gray-scale PNG. It does not say how values are rounded:
here linearly onto 0 … 255, half to even, so that zero flow (127.5) becomes 128. Every step is float32 in NumPy and in
torch alike, so that flow from PNGs and flow quantised in memory agree bit for bit.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

FLOW_BOUND = 20.0
"""Pixels; flow beyond it is clipped."""

LEVELS_PER_PIXEL = 255 / (2 * FLOW_BOUND)
"""6.375, exact in binary."""

SETTINGS = {
    "bound": FLOW_BOUND,
    "levels": 256,
    "rounding": "half to even",
    "image": "PNG, one gray plane each for u and v",
}


def encode(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels, any shape, to uint8 of the same shape.

    Raises:
        ValueError: a value is not finite.
    """
    flow = np.asarray(flow, dtype=np.float32)
    if not np.isfinite(flow).all():
        raise ValueError(
            f"the flow holds {np.count_nonzero(~np.isfinite(flow))} values that are not finite; it cannot be stored"
        )
    clipped = np.clip(flow, np.float32(-FLOW_BOUND), np.float32(FLOW_BOUND))
    return np.rint((clipped + np.float32(FLOW_BOUND)) * np.float32(LEVELS_PER_PIXEL)).astype(np.uint8)


def decode(planes: np.ndarray) -> np.ndarray:
    """uint8 of any shape to float32 flow in pixels, within ±20."""
    return planes.astype(np.float32) / np.float32(LEVELS_PER_PIXEL) - np.float32(FLOW_BOUND)


def quantise(flow: Tensor) -> Tensor:
    """What `decode(encode(flow))` gives, for tensors, with a straight-through gradient: the rounding passes it
    unchanged, the clipping stops it outside ±20."""
    clipped = flow.clamp(-FLOW_BOUND, FLOW_BOUND)
    with torch.no_grad():
        levels = torch.round((clipped.float() + FLOW_BOUND) * LEVELS_PER_PIXEL)
        stored = (levels / LEVELS_PER_PIXEL - FLOW_BOUND).to(flow.dtype)
    return _StraightThrough.apply(clipped, stored)


class _StraightThrough(torch.autograd.Function):
    """Forward `stored` exactly (an added difference would round), backward as if it were `clipped`."""

    @staticmethod
    def forward(ctx, clipped: Tensor, stored: Tensor) -> Tensor:
        return stored.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def to_png(plane: np.ndarray) -> bytes:
    """One uint8 plane (H, W) as the bytes of a gray-scale PNG."""
    done, data = cv2.imencode(".png", plane)
    if not done:
        raise ValueError(f"OpenCV could not encode a plane of shape {plane.shape} and type {plane.dtype} as PNG")
    return data.tobytes()


def from_png(data: bytes | memoryview, origin: str) -> np.ndarray:
    """The uint8 plane (H, W) of a gray-scale PNG.

    Raises:
        ValueError: the bytes are no readable image; names `origin`.
    """
    plane = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if len(data) else None
    if plane is None or plane.dtype != np.uint8 or plane.ndim != 2:
        raise ValueError(f"{origin}: not a gray-scale 8-bit PNG; `make repair-…` computes the clip again")
    return plane
