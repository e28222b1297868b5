"""PSNR, flicker and end-point error against what they must be for known perturbations, SSIM against its definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.perceptibility import stack_quality


def grey(batch: int = 1, length: int = 5, size: tuple[int, int] = (16, 20)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.25 + 0.5 * torch.rand(batch, length, 3, *size, generator=generator)


def signs(clean: Tensor, seed: int = 1) -> Tensor:
    return (torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(clean) * 2 - 1


@pytest.mark.parametrize("epsilon", [0.005, 0.02, 0.035])
def test_psnr_of_signs_of_size_epsilon(epsilon: float) -> None:
    """Every value off by ε: the mean square is ε², 20 log₁₀(1/ε) dB."""
    clean = grey()
    ((quality,),) = stack_quality(clean, (clean + epsilon * signs(clean))[None])
    assert quality.psnr == pytest.approx(-20 * math.log10(epsilon), abs=1e-3)


def test_only_perturbed_frames_count() -> None:
    """One frame of five: the same PSNR and SSIM as that frame alone has."""
    clean = grey()
    adversarial = clean.clone()
    adversarial[:, 2] += 0.02 * signs(clean)[:, 2]
    ((sparse,),) = stack_quality(clean, adversarial[None])
    ((alone,),) = stack_quality(clean[:, 2:3], adversarial[None, :, 2:3])
    assert sparse.psnr == alone.psnr == pytest.approx(-20 * math.log10(0.02), abs=1e-3)
    assert sparse.ssim == alone.ssim < 1


def test_a_stack_left_alone_has_no_quality_and_every_stack_its_own() -> None:
    clean = grey(batch=3)
    adversarial = torch.stack([clean, clean.clone()])
    adversarial[1, 2, 0] += 0.01
    adversarial[1, 0, 1:3] += 0.03
    quality = stack_quality(clean, adversarial, torch.zeros(3, 4, 2, 16, 20), torch.zeros(2, 3, 4, 2, 16, 20))
    assert [[q.psnr is None for q in row] for row in quality] == [[True] * 3, [False, True, False]]
    assert quality[0][0] == (None,) * 4
    assert stack_quality(clean, clean[None]) == [[(None,) * 4] * 3]
    assert [quality[1][b].psnr for b in (0, 2)] == pytest.approx([-20 * math.log10(e) for e in (0.03, 0.01)], abs=1e-3)
    for b in (0, 2):
        flow = torch.zeros(1, 4, 2, 16, 20)
        assert stack_quality(clean[b : b + 1], adversarial[1:, b : b + 1], flow, flow[None])[0][0] == quality[1][b]


def test_flicker() -> None:
    """A perturbation that stands still has none; alternating signs change by 2 ε; one frame of T by ε, twice."""
    clean = grey()
    still = signs(clean)[:, :1].expand_as(clean)
    alternating = still * torch.tensor([1, -1, 1, -1, 1]).view(5, 1, 1, 1)
    single = still * torch.tensor([0, 0, 1, 0, 0]).view(5, 1, 1, 1)
    adversarial = torch.stack([clean + 0.02 * pattern for pattern in (still, alternating, single)])
    found = [quality.flicker for (quality,) in stack_quality(clean, adversarial)]
    assert found == pytest.approx([0, 255 * 0.04, 2 / 4 * 255 * 0.02], abs=1e-4)


def test_flow_end_point_error() -> None:
    """(3, 4) more everywhere is 5 pixels; in one of four fields, 5 quarters."""
    clean = grey()
    flow = torch.randn(1, 4, 2, 16, 20, generator=torch.Generator().manual_seed(3))
    moved = torch.stack([flow, flow.clone()])
    moved[0] += torch.tensor([3.0, 4.0]).view(2, 1, 1)
    moved[1, :, 1] += torch.tensor([3.0, 4.0]).view(2, 1, 1)
    quality = stack_quality(clean, (clean + 0.01)[None].expand(2, *clean.shape), flow, moved)
    assert [q.flow_epe for (q,) in quality] == pytest.approx([5, 1.25], abs=1e-5)
    assert stack_quality(clean, (clean + 0.01)[None])[0][0].flow_epe is None


def ssim_by_hand(image: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, pixel by pixel: a Gaussian window of 11 and σ 1.5, edges mirrored."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    x, y = (np.pad(plane, 5, mode="reflect") for plane in (image, other))
    total = 0.0
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 0.01**2, 0.03**2
            total += (
                (2 * mean_a * mean_b + c1)
                * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return total / image.size


def test_ssim_is_wangs() -> None:
    clean = grey(length=2)
    adversarial = clean + torch.tensor([0.02, 0.2]).view(2, 1, 1, 1) * signs(clean)
    ((quality,),) = stack_quality(clean, adversarial[None])
    pairs = zip(clean.double().flatten(0, 2).numpy(), adversarial.double().flatten(0, 2).numpy(), strict=True)
    assert quality.ssim == pytest.approx(np.mean([ssim_by_hand(a, b) for a, b in pairs]), abs=2e-5)


def test_shapes_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 5, 3, 16, 20\) is needed|\(E, \*clean\)"):
        stack_quality(grey(), grey())
    with pytest.raises(ValueError, match="both are needed, or neither"):
        stack_quality(grey(), grey()[None], torch.zeros(1, 4, 2, 16, 20))
