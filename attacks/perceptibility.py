"""How visible an attack is: PSNR, SSIM, temporal flicker, and how far it moves the flow. Pure functions.

PSNR and SSIM are of the frames that an attack perturbed: the clean ones of a sparse attack (section 3.4) would flatter
it. Flicker and end-point error are of the whole stack, which is what a viewer sees and what the classifier gets.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

FRAMES_AT_ONCE = {"cpu": 1, "cuda": 64}
"""of SSIM: what a cache holds is 2.6 times as fast on a CPU"""


class Quality(NamedTuple):
    """One adversarial stack beside the clean one, to six digits; all None where no frame was perturbed."""

    psnr: float | None
    """dB, peak 1, of the mean squared error over the perturbed frames"""
    ssim: float | None
    """structural similarity (Wang et al. 2004: Gaussian window, σ 1.5), mean over colours and perturbed frames"""
    flicker: float | None
    """`temporal_flicker`, grey levels of 255"""
    flow_epe: float | None
    """`end_point_error` of the attacked flow against the clean one, pixels; None without flow, too"""


def stack_quality(
    clean: Tensor, adversarial: Tensor, clean_flow: Tensor | None = None, adversarial_flow: Tensor | None = None
) -> list[list[Quality]]:
    """Quality of B stacks under E values of ε, [ε][stack].

    Args:
        clean: (B, T, 3, H, W) in [0, 1].
        adversarial: (E, B, T, 3, H, W) in [0, 1].
        clean_flow: (B, T-1, 2, H, W) in pixels; None for a system that estimates none.
        adversarial_flow: (E, B, T-1, 2, H, W) of the same system.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if adversarial.shape[1:] != clean.shape:
        raise ValueError(
            f"adversarial is {tuple(adversarial.shape)} and clean {tuple(clean.shape)}: (E, *clean) is needed"
        )
    if (clean_flow is None) != (adversarial_flow is None):
        raise ValueError("clean and adversarial flow: both are needed, or neither")
    with torch.inference_mode():
        perturbed = (adversarial != clean).flatten(3).any(3)
        similarity = _similarity(clean, adversarial, perturbed)
        epe: list[list[float | None]] = [[None] * len(clean)] * len(adversarial)
        if clean_flow is not None and adversarial_flow is not None:
            epe = end_point_error(adversarial_flow, clean_flow).tolist()
        ratio, flicker = peak_signal_to_noise(clean, adversarial, perturbed), temporal_flicker(clean, adversarial)
        found = zip(perturbed.any(2).tolist(), ratio.tolist(), similarity.tolist(), flicker.tolist(), epe, strict=True)
    return [
        [
            Quality(*map(_rounded, values)) if touched else Quality(*[None] * 4)
            for touched, *values in zip(*row, strict=True)
        ]
        for row in found
    ]


def peak_signal_to_noise(clean: Tensor, adversarial: Tensor, perturbed: Tensor) -> Tensor:
    """PSNR in dB (E, B), peak 1, over the frames set in `perturbed` (E, B, T); infinite where they are equal."""
    squares = (adversarial - clean).square().flatten(3).mean(3, dtype=torch.float64)
    return -10 * ((squares * perturbed).sum(2) / perturbed.sum(2).clamp(min=1)).log10()


def temporal_flicker(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Mean absolute change (E, B) of the perturbation from each frame to the next, in grey levels of 255.

    Our measure: a perturbation that stands still, like dirt on a lens, has none, however large.
    """
    perturbation = adversarial - clean
    change = perturbation[:, :, 1:] - perturbation[:, :, :-1]
    return 255 * change.abs().flatten(2).mean(2, dtype=torch.float64)


def end_point_error(flow: Tensor, other: Tensor) -> Tensor:
    """Mean length of flow - other over pairs and pixels, both (…, T-1, 2, H, W)."""
    return (flow - other).norm(dim=-3).flatten(-3).mean(-1, dtype=torch.float64)


def _similarity(clean: Tensor, adversarial: Tensor, perturbed: Tensor) -> Tensor:
    """SSIM (E, B), mean over the perturbed frames; of these only, since it costs more than all the rest."""
    of_frames = torch.zeros(perturbed.shape, dtype=torch.float64, device=clean.device)
    index = perturbed.nonzero()
    for part in index.split(FRAMES_AT_ONCE.get(clean.device.type, 16)):
        if not len(part):  # no frame of any stack: torchmetrics takes no empty batch
            continue
        e, b, t = part.unbind(1)
        similar = structural_similarity_index_measure(
            adversarial[e, b, t], clean[b, t], data_range=1.0, reduction="none"
        )
        of_frames[e, b, t] = similar.double()  # type: ignore[union-attr]
    return of_frames.sum(2) / perturbed.sum(2).clamp(min=1)


def _rounded(value: float | None) -> float | None:
    """What is below six digits is rounding of the machine, and would make equal sweeps differ in bytes."""
    return value if value is None or math.isinf(value) else round(value, 6)
