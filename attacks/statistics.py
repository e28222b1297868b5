"""Intervals of rates and means, and attacks paired on the same units. Pure functions; scipy where it has them."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from attacks.group_bootstrap import (
    LEVEL,
    RESAMPLES,
    Interval,
    alike,
    effective_wilson,
    rate_intervals,
    resampled_ratios,
    resampled_sums,
    strata_of,
    student_quantile,
)

AT_ONCE = 100
"""rates whose resamples are in memory together"""


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

    The interval joins those of the two rates through their correlation (Newcombe 1998; Zou and Donner 2008):
    Wilson's for independent units, `clustered_rates` for units in groups.

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
    both = np.stack([first, second], 1).astype(float)
    if groups is None:
        intervals = [wilson(int(successes), len(first), level=level) for successes in both.sum(0)]
        pairs = both
    else:
        found, groups = np.unique(groups, return_inverse=True)
        strata = strata_of(None if strata is None else np.asarray(strata)[found], len(found))
        successes = np.stack([np.bincount(groups, column) for column in both.T], 1)
        totals = np.bincount(groups)[:, None].repeat(2, 1).astype(float)
        pairs = resampled_ratios(successes, totals, strata, resamples, seed)
        intervals = rate_intervals(successes, totals, pairs, strata, level)
    varying = (pairs.std(0, dtype=np.float64) > 1e-5).all()  # the resamples are summed in single precision
    together = float(np.corrcoef(pairs.T)[0, 1]) if varying else 0.0
    p, q = both.mean(0)
    interval = difference(p, q, intervals[0], intervals[1], together)
    return Paired(len(first), only_first, only_second, float(p - q), interval, p_value)


def difference(p: float, q: float, first: Interval, second: Interval, together: float = 0.0) -> Interval:
    """Interval of p - q from those of p and q and the correlation of their estimates, 0 where they are independent."""

    def reach(a: float, b: float) -> float:
        return float(np.sqrt(max(a * a - 2 * together * a * b + b * b, 0)))

    low = p - q - reach(p - first.low, second.high - q)
    return Interval(max(low, -1.0), min(p - q + reach(first.high - p, q - second.low), 1.0))


def _strata_of(strata: np.ndarray | None, groups: np.ndarray) -> np.ndarray:
    """`strata_of` these groups (G,) bool alone."""
    return strata_of(None if strata is None else np.asarray(strata)[groups], int(groups.sum()))
