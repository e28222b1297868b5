"""Frames to success as a survival curve with its band (Kaplan and Meier). Pure functions of arrays."""

from fractions import Fraction
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np

from attacks.group_bootstrap import LEVEL, RESAMPLES, effective_wilson, ratio, resampled_sums, strata_of


class Survival(NamedTuple):
    """Share of the attacked units that still stand after so many perturbed frames (Kaplan and Meier)."""

    standing: np.ndarray
    """(T+1,) for 0 … T frames; nan from the first on where no unit was given any"""
    low: np.ndarray
    high: np.ndarray
    median: int | None
    """frames after which at most half still stand; None when more than half stand at T"""
    median_interval: tuple[int | None, int | None]
    """where the band crosses one half; None beyond T"""


def survival(
    frames: np.ndarray,
    success: np.ndarray,
    last: int,
    groups: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Survival:
    """Frames to success as a survival curve: a unit that withstood is censored at the frames it was given.

    The band is pointwise, made as that of `clustered_rates`; each unit is its own group when `groups` is None.

    Args:
        frames: (N,) frames that the unit was given, 0 … last. One that was given none, as its gradient was zero from
            the start, is censored at once: it tells nothing, and counts neither as standing nor in the band.
        success: (N,) bool.
        last: T, all frames of a stack.
        groups: (N,) index of each unit's group.
        strata: (G,) class of each group.
    """
    frames, success = np.asarray(frames, int), np.asarray(success, bool)
    if not len(frames) or frames.min() < 0 or frames.max() > last or (frames[success] == 0).any():
        raise ValueError(
            f"{len(frames)} units, frames {frames.tolist()[:5]} …: at least one attacked unit is needed, "
            f"with 0 to {last} frames, and 1 at least where it fell"
        )
    groups = np.arange(len(frames)) if groups is None else np.asarray(groups)
    moved = frames > 0
    if not moved.any():
        unknown = np.where(np.arange(last + 1) > 0, np.nan, 1.0)
        return Survival(unknown, unknown, unknown, None, (None, None))
    frames, success, groups = frames[moved], success[moved], groups[moved]
    found, groups = np.unique(groups, return_inverse=True)
    strata = strata_of(None if strata is None else np.asarray(strata)[found], len(found))
    times = np.arange(last + 1)
    # Of each group at each time: units that fell, and units that had stood until then.
    fell = np.zeros((len(found), last + 1))
    np.add.at(fell, (groups[success], frames[success]), 1)
    left = np.zeros_like(fell)
    np.add.at(left, (groups, frames), 1)
    risk = left[:, ::-1].cumsum(1)[:, ::-1]
    shares = _kaplan_meier(fell.sum(0), risk.sum(0))
    standing = np.array(shares, float)
    hazards = ratio(resampled_sums(fell, strata, resamples, seed), resampled_sums(risk, strata, resamples, seed))
    variances = (1 - np.nan_to_num(hazards)).cumprod(1).var(0, dtype=np.float64)
    hazard, at_risk = np.nan_to_num(ratio(fell.sum(0), risk.sum(0))), risk.sum(0)
    steps = np.nan_to_num(ratio(fell - hazard * risk, at_risk * (1 - hazard)))
    influence = -standing * steps.cumsum(1)
    low, high = effective_wilson(standing, variances, influence, strata, level)
    low[0] = high[0] = 1.0  # before the first frame all stand, by definition
    crossings = [next((int(t) for t in times if side[t] <= 0.5), None) for side in (shares, low, high)]
    return Survival(standing, low, high, crossings[0], (crossings[1], crossings[2]))


def _kaplan_meier(fell: np.ndarray, risk: np.ndarray) -> list[Fraction]:
    """The product of the shares that stood each time, exact: floats often miss one half where half have fallen."""
    stood = (Fraction(int(n - d), int(n)) if n else Fraction(1) for d, n in zip(fell, risk, strict=True))
    return list(accumulate(stood, mul))
