"""Rounding inside the ball as it must be, by trying all 256 levels; bytes and frames; the difference made visible."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.eight_bit import amplified_difference, gain_of, is_8bit, round_inside_ball, to_bytes, to_frames

EPSILONS = (0.001, 1 / 255, 0.005, 2 / 255, 0.01, 0.02, 0.035, 0.2)


def levels(count: int = 4000) -> Tensor:
    """8-bit values with both ends among them."""
    values = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0))
    values[:100], values[100:200] = 0, 255
    return values.float() / 255


def inside(clean: Tensor, epsilon: float) -> Tensor:
    """Anywhere in the ball, and on its surface as an attack by signs leaves it."""
    generator = torch.Generator().manual_seed(1)
    offset = 2 * torch.rand(clean.shape, generator=generator) - 1
    offset[::2] = offset[::2].sign()
    return (clean + epsilon * offset).clamp(0, 1)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_rounding_inside_the_ball(epsilon: float) -> None:
    clean = levels()
    adversarial = inside(clean, epsilon)
    rounded = round_inside_ball(clean, adversarial, epsilon)
    assert torch.equal(rounded, (rounded * 255).round() / 255), "8-bit"
    assert rounded.min() >= 0 and rounded.max() <= 1
    assert (rounded.double() - clean.double()).abs().max() <= epsilon + 1e-7
    assert torch.equal(round_inside_ball(clean, rounded, epsilon), rounded), "idempotent"
    # No level inside the ball lies nearer: by trying all 256.
    every = torch.arange(256, dtype=torch.float64) / 255
    allowed = (every[None] - clean.double()[:, None]).abs() <= epsilon + 1e-9
    distance = (every[None] - adversarial.double()[:, None]).abs().masked_fill(~allowed, torch.inf)
    assert ((rounded - adversarial).abs().double() <= distance.amin(1) + 1e-6).all()


@pytest.mark.parametrize("epsilon", [0.0005, 0.0019])
def test_below_half_a_level_nothing_is_left(epsilon: float) -> None:
    clean = levels()
    assert torch.equal(round_inside_ball(clean, inside(clean, epsilon), epsilon), clean)


def test_plain_rounding_would_leave_the_ball() -> None:
    """8.925 levels round to 9, which is further than 0.035: the ninth level is not taken."""
    clean = torch.full((4,), 100 / 255)
    adversarial = clean + 0.035
    assert torch.equal((adversarial * 255).round(), torch.full((4,), 109.0))
    assert torch.equal((round_inside_ball(clean, adversarial, 0.035) * 255).round(), torch.full((4,), 108.0))


def test_clean_frames_of_no_8_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not 8-bit.*`realise: 0`"):
        round_inside_ball(torch.full((3,), 0.3), torch.full((3,), 0.31), 0.01)


def test_bytes_and_frames_are_inverse() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 9, 3), dtype=np.uint8)
    frames = to_frames(images, torch.zeros(()))
    assert frames.shape == (2, 3, 3, 8, 9)
    assert np.array_equal(to_bytes(frames), images)


def test_all_levels_are_8_bit_and_half_of_one_is_not() -> None:
    every = torch.arange(256) / 255
    assert is_8bit(every) and is_8bit(every.double())
    assert not is_8bit(torch.cat([every, torch.tensor([100.5 / 255])]))


def test_amplified_difference_fills_the_range() -> None:
    """A perturbation of eight levels is ε = 8/255: from black to white."""
    clean = np.full((2, 2, 3), 100, np.uint8)
    adversarial = (clean + np.array([8, 0, -8])).astype(np.uint8)
    assert amplified_difference(clean, adversarial, gain_of(8 / 255))[0, 0].tolist() == [255, 128, 0]
    assert amplified_difference(clean, adversarial, 100)[0, 0].tolist() == [255, 128, 0], "cut off"
