"""Frames as 8-bit images: to bytes and back, rounded inside the ball, and a perturbation made visible."""

import numpy as np
import torch
from torch import Tensor


def to_bytes(frames: Tensor) -> np.ndarray:
    """Frames (…, 3, H, W) in [0, 1] to the nearest uint8 (…, H, W, 3)."""
    return frames.mul(255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def to_frames(images: np.ndarray, like: Tensor) -> Tensor:
    """uint8 (…, H, W, 3) to frames (…, 3, H, W) in [0, 1], in the type and on the device of `like`."""
    return torch.from_numpy(images).movedim(-1, -3).to(like.device, like.dtype) / 255


def is_8bit(frames: Tensor) -> bool:
    """Frames in [0, 1] are levels k/255, as video has them, up to the rounding of float32."""
    levels = frames * 255
    return bool((levels - levels.round()).abs().max() <= 1e-3)


def round_inside_ball(clean: Tensor, adversarial: Tensor, epsilon: float) -> Tensor:
    """The nearest 8-bit frames that no value leaves the ε-ball for.

    Where the nearest level lies further than ε from the clean one, the next towards the clean one is taken; an ε below
    a level (1/255) so leaves nothing.

    Args:
        clean: 8-bit frames on the [0, 1] scale.
        adversarial: of the same shape.
        epsilon: on the [0, 1] scale.

    Raises:
        ValueError: the clean frames are not 8-bit, so that no 8-bit level need lie in the ball.
    """
    if not is_8bit(clean):
        raise ValueError(
            "the clean frames are not 8-bit: rounding inside the ball needs frames k/255, as video has them; a sweep "
            "of others does without, with `realise: 0`"
        )
    levels = (clean * 255).round()
    reach = int(epsilon * 255 + 1e-6)  # ε = 2/255 is two levels, whatever its last bit
    nearest = (adversarial * 255).round()
    return nearest.clamp(levels - reach, levels + reach).clamp(0, 255) / 255


def gain_of(epsilon: float) -> float:
    """The gain by which ±ε, on the [0, 1] scale, spans the grey scale; at least 1."""
    return max(1.0, 0.5 / epsilon)


def amplified_difference(clean: np.ndarray, adversarial: np.ndarray, gain: float) -> np.ndarray:
    """`gain` times adversarial - clean, two uint8 arrays, around grey, cut off at black and white; uint8."""
    difference = adversarial.astype(np.float32) - clean.astype(np.float32)
    return np.rint(127.5 + gain * difference).clip(0, 255).astype(np.uint8)
