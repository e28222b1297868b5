"""Intervals, paired comparison and survival of what a sweep counts. Pure functions of arrays; scipy where it has them.

Stacks of a clip and clips of a group are cut from one video and not independent, so the bootstrap draws whole groups,
class by class. Percentiles of such resamples cover less than they claim below about 50 groups and have no width at 0
or 1; here the resamples give the variance, and that gives Wilson's interval for as many independent units as would be
as sure. Simulated coverage of 95 %: `tests/attacks/test_coverage.py`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000


class Interval(NamedTuple):
    low: float
    high: float


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


class Survival(NamedTuple):
    """Share of the attacked units that still stand after so many perturbed frames (Kaplan and Meier)."""

    standing: np.ndarray
    """(T+1,) for 0 … T frames"""
    low: np.ndarray
    high: np.ndarray
    median: int | None
    """frames after which at most half still stand; None when more than half stand at T"""
    median_interval: tuple[int | None, int | None]
    """where the band crosses one half; None beyond T"""


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
        successes, totals: (G, k) counts of each group; a group may have no unit.
        strata: (G,) class of each group, whose share is fixed; one stratum when None.

    Returns:
        k intervals; (nan, nan) where there is no unit.
    """
    successes, totals = np.asarray(successes, float), np.asarray(totals, float)
    strata = _strata(strata, len(totals))
    replicates = _replicates(successes, totals, strata, resamples, seed)
    return _rate_intervals(successes, totals, replicates, strata, level)


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
    groups, averaged, rates = successes.shape
    strata = _strata(strata, groups)
    sums = _resampled(successes.reshape(groups, -1), strata, resamples, seed).reshape(-1, averaged, rates)
    units = np.asarray(totals, float)[:, :, None]
    resampled = _resampled(totals, strata, resamples, seed)[:, :, None]
    estimates = successes.sum(0) / units.sum(0)
    replicates = np.where(resampled > 0, sums / np.maximum(resampled, 1e-9), estimates).mean(1)
    influence = ((successes - estimates * units) / units.sum(0)).mean(1)
    of = int((totals.sum(1) > 0).sum())
    return [
        _effective_wilson(float(rate), float(variance), influence[:, k], strata, of, level)
        for k, (rate, variance) in enumerate(zip(estimates.mean(0), replicates.var(0), strict=True))
    ]


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

    (nan, nan) where the groups do not vary: nothing then tells how sure the mean is.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    strata = _strata(strata, len(counts))
    if (counts > 0).sum() < 2 or sums.sum() <= 0:
        return Interval(np.nan, np.nan)
    mean = sums.sum() / counts.sum()
    error = _replicates(sums[:, None], counts[:, None], strata, resamples, seed).std(0)[0]
    if error <= 1e-5 * mean:  # the resamples are summed in single precision
        return Interval(np.nan, np.nan)
    width = np.exp(_quantile((sums - mean * counts) / counts.sum(), strata, level) * error / mean)
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
        strata = _strata(strata, int(groups.max()) + 1 if strata is None else len(strata))
        successes = np.stack([np.bincount(groups, column, minlength=len(strata)) for column in both.T], 1)
        totals = np.bincount(groups, minlength=len(strata))[:, None].repeat(2, 1).astype(float)
        pairs = _replicates(successes, totals, strata, resamples, seed)
        intervals = _rate_intervals(successes, totals, pairs, strata, level)
    varying = (pairs.std(0) > 1e-5).all()  # the resamples are summed in single precision
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
        frames: (N,) frames perturbed, 1 … last.
        success: (N,) bool.
        last: T, all frames of a stack.
        groups: (N,) index of each unit's group.
        strata: (G,) class of each group.
    """
    frames, success = np.asarray(frames, int), np.asarray(success, bool)
    if not len(frames) or frames.min() < 1 or frames.max() > last:
        raise ValueError(f"{len(frames)} units with frames outside 1 … {last}: attacked units are needed, at least 1")
    groups = np.arange(len(frames)) if groups is None else np.asarray(groups)
    curve = stats.ecdf(stats.CensoredData.right_censored(frames, ~success)).sf
    times = np.arange(last + 1)
    standing = curve.evaluate(times)
    # Of each group at each time: units that fell, and units that had stood until then.
    strata = _strata(strata, int(groups.max()) + 1 if strata is None else len(strata))
    fell = np.zeros((len(strata), last + 1))
    np.add.at(fell, (groups[success], frames[success]), 1)
    left = np.zeros_like(fell)
    np.add.at(left, (groups, frames), 1)
    risk = left[:, ::-1].cumsum(1)[:, ::-1]
    hazards = _ratio(_resampled(fell, strata, resamples, seed), _resampled(risk, strata, resamples, seed))
    variances = (1 - np.nan_to_num(hazards)).cumprod(1).var(0)
    hazard, at_risk = np.nan_to_num(_ratio(fell.sum(0), risk.sum(0))), risk.sum(0)
    steps = np.nan_to_num(_ratio(fell - hazard * risk, at_risk * (1 - hazard)))
    influence = -standing * steps.cumsum(1)
    units = int((left.sum(1) > 0).sum())
    band = [_effective_wilson(standing[t], variances[t], influence[:, t], strata, units, level) for t in times]
    low, high = (np.array(side) for side in zip(*band, strict=True))
    low[0] = high[0] = 1.0  # before the first frame all stand, by definition
    crossings = [next((int(t) for t in times if side[t] <= 0.5), None) for side in (standing, low, high)]
    return Survival(standing, low, high, crossings[0], (crossings[1], crossings[2]))


def group_weights(strata: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How much each resample weighs each group, (resamples, G) float32: a bootstrap of whole groups.

    Within a stratum of n groups n - 1 are drawn, each with weight n / (n - 1): the variance is then unbiased for few
    groups (Rao and Wu 1988).
    """
    return _group_weights(tuple(np.asarray(strata).tolist()), resamples, seed)


@lru_cache(maxsize=4)
def _group_weights(strata: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    labels = np.array(strata)
    weights = np.ones((resamples, len(labels)), np.float32)
    for stratum in np.unique(labels):
        members = np.flatnonzero(labels == stratum)
        n = len(members)
        if n > 1:
            weights[:, members] = random.multinomial(n - 1, np.full(n, 1 / n), resamples) * np.float32(n / (n - 1))
    weights.flags.writeable = False
    return weights


def _strata(strata: np.ndarray | None, groups: int) -> np.ndarray:
    """Strata with two groups at least: those with one have no variance of their own, and are taken together."""
    if strata is None:
        return np.zeros(groups, int)
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    sizes = np.bincount(labels)
    alone = sizes[labels] == 1
    if alone.sum() == 1 and groups > 1:  # nothing to be taken together with but the smallest other stratum
        return np.where(alone, np.where(sizes > 1, sizes, groups).argmin(), labels)
    return np.where(alone, len(sizes), labels)


def _resampled(counts: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, k) sums over the groups that each resample drew."""
    return group_weights(strata, resamples=resamples, seed=seed) @ counts.astype(np.float32)


def _replicates(
    numerators: np.ndarray, denominators: np.ndarray, strata: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """(R, k) ratios of sums; a resample without a unit takes the estimate itself."""
    rates = numerators.shape[1]
    sums = _resampled(np.concatenate([numerators, denominators], 1), strata, resamples, seed)
    ratios = _ratio(sums[:, :rates], sums[:, rates:])
    return np.where(np.isnan(ratios), _ratio(numerators.sum(0), denominators.sum(0)), ratios)


def _rate_intervals(
    successes: np.ndarray, totals: np.ndarray, replicates: np.ndarray, strata: np.ndarray, level: float
) -> list[Interval]:
    variances = replicates.var(0, dtype=np.float64)
    units = np.where(totals.sum(0) > 0, totals.sum(0), np.nan)
    rates = successes.sum(0) / units
    influence = (successes - rates * totals) / units
    groups = np.broadcast_to((totals > 0).sum(0), rates.shape)
    return [
        _effective_wilson(rates[i], variances[i], influence[:, i], strata, int(groups[i]), level)
        for i in range(len(rates))
    ]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """nan where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _effective_wilson(
    rate: float, variance: float, influence: np.ndarray, strata: np.ndarray, groups: int, level: float
) -> Interval:
    if groups == 0 or np.isnan(rate):
        return Interval(np.nan, np.nan)
    spread = rate * (1 - rate)
    if spread < 1e-12 or variance < 1e-9:
        units, z = float(groups), float(stats.t.ppf((1 + level) / 2, max(groups - 1, 1)))
    else:
        units, z = spread / variance, _quantile(influence, strata, level)
    middle = (rate + z * z / (2 * units)) / (1 + z * z / units)
    half = z / (1 + z * z / units) * np.sqrt(spread / units + (z / (2 * units)) ** 2)
    return Interval(float(max(middle - half, 0.0)), float(min(middle + half, 1.0)))


def _quantile(influence: np.ndarray, strata: np.ndarray, level: float) -> float:
    """Student's, for a variance that is estimated from the groups: degrees of freedom by Satterthwaite.

    The estimate's own variance follows from the fourth moments of the groups' contributions.
    """
    sizes = np.bincount(strata)
    means = np.bincount(strata, influence) / np.maximum(sizes, 1)
    size = np.maximum(sizes, 2)[strata]
    squares = ((influence - means[strata]) * np.sqrt(size / (size - 1))) ** 2
    most = max(len(influence) - int((sizes > 0).sum()), 1)
    excess = (squares**2).sum() - squares.sum() ** 2 / len(squares)
    freedom = min(most, 2 * squares.sum() ** 2 / excess) if excess > 0 else most
    return float(stats.t.ppf((1 + level) / 2, max(freedom, 1)))
