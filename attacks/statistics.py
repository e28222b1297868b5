"""Intervals of rates and means, and attacks paired on the same units. Pure functions; scipy where it has them."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from attacks.group_bootstrap import (
    LEVEL,
    RESAMPLES,
    Interval,
    alike,
    effective_units,
    effective_wilson,
    quantile_of_groups,
    rate_intervals,
    resampled_ratios,
    resampled_sums,
    strata_of,
    student_quantile,
)

AT_ONCE = 100
"""rates whose resamples are in memory together"""
_HALVINGS = 50
"""of the range in which an end of an interval lies: to the last digit"""


class Paired(NamedTuple):
    """Two attacks on the same units."""

    units: int
    first_only: int
    """units on which the first alone succeeded"""
    second_only: int
    difference: float
    """success rate of the first less that of the second"""
    interval: Interval
    p_value: float
    """McNemar's exact test. It takes units for independent: where they come in groups, the interval is what counts"""


def wilson(successes: int, total: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a rate, for independent units."""
    low, high = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    return Interval(float(low), float(high))


def clustered_rates(
    successes: np.ndarray,
    totals: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of k rates whose units come in groups: Wilson's at the effective number of units.

    That number is p(1-p) over the bootstrap's variance; the quantile is Student's, with the degrees of freedom that the
    groups' kurtosis leaves (few, where few groups hold all successes). Where nothing varies, with all or none
    succeeding in every group or class, each group counts as one unit, so that no interval has zero width. It takes
    about 20 groups: below ten an interval is an indication only.

    Args:
        successes, totals: (G, k) counts of each group. A group without a unit of a rate is left out of that rate: it
            counts neither in the variance nor in the degrees of freedom.
        strata: (G,) class of each group, whose share is fixed; one stratum when None.

    Returns:
        k intervals; (nan, nan) where there is no unit.
    """
    successes, totals = np.asarray(successes, float), np.asarray(totals, float)
    intervals = [Interval(np.nan, np.nan)] * totals.shape[1]
    for groups, rates in alike(totals > 0):
        if not groups.any():
            continue
        of = _strata_of(strata, groups)
        for some in np.split(rates, range(AT_ONCE, len(rates), AT_ONCE)):
            counts = successes[np.ix_(groups, some)], totals[np.ix_(groups, some)]
            replicates = resampled_ratios(*counts, of, resamples, seed)
            for rate, interval in zip(some, rate_intervals(*counts, replicates, of, level), strict=True):
                intervals[rate] = interval
    return intervals


def clustered_rate(
    successes: np.ndarray, totals: np.ndarray, strata: np.ndarray | None = None, *, level: float = LEVEL
) -> Interval:
    """`clustered_rates` of one rate: (G,) and (G,)."""
    return clustered_rates(np.asarray(successes)[:, None], np.asarray(totals)[:, None], strata, level=level)[0]


def averaged_rates(
    successes: np.ndarray,
    totals: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """`clustered_rates` of the mean of E rates of the same groups, such as a share at each ε (Fig. 5).

    Args:
        successes: (G, E, k) counts.
        totals: (G, E), each of the E with a unit in some group.
    """
    some = np.any(np.asarray(totals) > 0, axis=1)
    successes, totals, strata = successes[some], totals[some], _strata_of(strata, some)
    groups, averaged, rates = successes.shape
    sums = resampled_sums(successes.reshape(groups, -1), strata, resamples, seed).reshape(-1, averaged, rates)
    units = np.asarray(totals, float)[:, :, None]
    resampled = resampled_sums(totals, strata, resamples, seed)[:, :, None]
    estimates = successes.sum(0) / units.sum(0)
    replicates = np.where(resampled > 0, sums / np.maximum(resampled, 1e-9), estimates).mean(1)
    influence = ((successes - estimates * units) / units.sum(0)).mean(1)
    low, high = effective_wilson(estimates.mean(0), replicates.var(0), influence, strata, level)
    return list(map(Interval, low.tolist(), high.tolist()))


def clustered_mean(
    sums: np.ndarray,
    counts: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a positive mean, from each group's sum and count (G,): Student's, on the logarithm.

    Groups without a unit are left out. (nan, nan) where the rest do not vary: nothing then tells how sure the mean is.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    some = counts > 0
    sums, counts, strata = sums[some], counts[some], _strata_of(strata, some)
    if len(counts) < 2 or sums.sum() <= 0:
        return Interval(np.nan, np.nan)
    mean = sums.sum() / counts.sum()
    error = resampled_ratios(sums[:, None], counts[:, None], strata, resamples, seed).std(0, dtype=np.float64)[0]
    if error <= 1e-5 * mean:  # the resamples are summed in single precision
        return Interval(np.nan, np.nan)
    influence = (sums - mean * counts) / counts.sum()
    width = np.exp(student_quantile(influence[:, None], strata, level)[0] * error / mean)
    return Interval(float(mean / width), float(mean * width))


def mcnemar(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Exact test on the units that only one of two attacks fooled, and the difference of the rates with its interval.

    The interval is Tango's (1998) score interval; for grouped units, at the effective sample size (`clustered_rates`).
    Two attacks that agree on all of N units may still differ by z²/(N + z²), some 4/N: no interval has zero width.

    Args:
        first, second: (N,) bool, success on the same units.
        groups: (N,) index of each unit's group; independent units when None.
        strata: (G,) class of each group.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"{first.shape} and {second.shape} units: two attacks on the same units are needed, at least 1"
        )
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    p, q = first.mean(), second.mean()
    if groups is None:
        interval = tango(only_first, only_second, len(first), float(stats.norm.ppf((1 + level) / 2)))
    else:
        interval = _clustered_tango(first, second, groups, strata, level, resamples, seed)
    return Paired(len(first), only_first, only_second, float(p - q), interval, p_value)


def tango(only_first: float, only_second: float, units: float, z: float) -> Interval:
    """Tango's score interval of a difference of paired rates (1998, Statistics in Medicine 17:891).

    Its ends are the differences that a score test, with the discordance that is likeliest under each, just does not
    reject.

    Args:
        only_first, only_second: units on which one alone succeeded; fractions where `units` is an effective number.
        z: quantile of the test.
    """
    found = (only_first - only_second) / units

    def rejected(delta: float) -> bool:
        a = 2 * units
        b = (2 * units - only_first + only_second) * delta - only_first - only_second
        c = -only_second * delta * (1 - delta)
        second = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
        return units * (found - delta) ** 2 > z * z * (2 * second + delta * (1 - delta))

    def end(inside: float, outside: float) -> float:
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    return Interval(end(found, -1.0), end(found, 1.0))


def _clustered_tango(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    strata: np.ndarray | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    found, groups = np.unique(groups, return_inverse=True)
    strata = strata_of(None if strata is None else np.asarray(strata)[found], len(found))
    only = [np.bincount(groups, mask, minlength=len(found)) for mask in (first & ~second, second & ~first)]
    totals = np.bincount(groups).astype(float)
    difference = (only[0] - only[1])[:, None]
    shares = [one.sum() / totals.sum() for one in only]
    delta = shares[0] - shares[1]
    variance = resampled_ratios(difference, totals[:, None], strata, resamples, seed).var(0, dtype=np.float64)
    influence = (difference - delta * totals[:, None]) / totals.sum()
    (units,), (z,) = effective_units(np.array([sum(shares) - delta**2]), variance, influence, strata, level)
    interval = tango(shares[0] * units, shares[1] * units, units, z)
    # Where few groups hold all that differs, the variance is hardly known, and Student's quantile grows without end.
    # The interval is never wider than with one unit per group (of unequal groups, at their effective number).
    whole = totals.sum() ** 2 / (totals**2).sum()
    widest = tango(shares[0] * whole, shares[1] * whole, whole, quantile_of_groups(len(found), level))
    return Interval(max(interval.low, widest.low), min(interval.high, widest.high))


def difference(p: float, q: float, first: Interval, second: Interval) -> Interval:
    """Interval of p - q from those of two independent rates (Newcombe 1998; Zou and Donner 2008)."""
    low = p - q - math.hypot(p - first.low, second.high - q)
    return Interval(max(low, -1.0), min(p - q + math.hypot(first.high - p, q - second.low), 1.0))


def _strata_of(strata: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """`strata_of` these groups (G,) bool alone."""
    return strata_of(None if strata is None else np.asarray(strata)[groups], int(groups.sum()))
