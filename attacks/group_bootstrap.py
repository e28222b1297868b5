"""The bootstrap of whole groups, and Wilson's interval at the number of units that its variance tells.

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


def strata_of(strata: np.ndarray | None, groups: int) -> np.ndarray:
    """Strata with two groups at least: those with one have no variance of their own, and are taken together."""
    if strata is None:
        return np.zeros(groups, int)
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    sizes = np.bincount(labels)
    alone = sizes[labels] == 1
    if alone.sum() == 1 and groups > 1:  # nothing to be taken together with but the smallest other stratum
        return np.where(alone, np.where(sizes > 1, sizes, groups).argmin(), labels)
    return np.where(alone, len(sizes), labels)


def resampled_sums(counts: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, k) sums over the groups that each resample drew."""
    return group_weights(strata, resamples=resamples, seed=seed) @ counts.astype(np.float32)


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, strata: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """(R, k) ratios of sums; a resample without a unit takes the estimate itself."""
    rates = numerators.shape[1]
    sums = resampled_sums(np.concatenate([numerators, denominators], 1), strata, resamples, seed)
    ratios = ratio(sums[:, :rates], sums[:, rates:])
    return np.where(np.isnan(ratios), ratio(numerators.sum(0), denominators.sum(0)), ratios)


def rate_intervals(
    successes: np.ndarray, totals: np.ndarray, replicates: np.ndarray, strata: np.ndarray, level: float
) -> list[Interval]:
    """Wilson's intervals of k rates: counts (G, k), their `resampled_ratios` (R, k), the groups' strata (G,)."""
    variances = replicates.var(0, dtype=np.float64)
    units = np.where(totals.sum(0) > 0, totals.sum(0), np.nan)
    rates = successes.sum(0) / units
    influence = (successes - rates * totals) / units
    groups = np.broadcast_to((totals > 0).sum(0), rates.shape)
    return [
        effective_wilson(rates[i], variances[i], influence[:, i], strata, int(groups[i]), level)
        for i in range(len(rates))
    ]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """nan where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def effective_wilson(
    rate: float, variance: float, influence: np.ndarray, strata: np.ndarray, groups: int, level: float
) -> Interval:
    """Wilson's interval of a rate at as many units as its variance, by the bootstrap, tells: p(1-p) over it.

    Where nothing varies, each of the `groups` that have a unit counts as one. `influence` (G,) is what each group adds
    to the rate's deviation. (nan, nan) where there is no unit.
    """
    if groups == 0 or np.isnan(rate):
        return Interval(np.nan, np.nan)
    spread = rate * (1 - rate)
    if spread < 1e-12 or variance < 1e-9:
        units, z = float(groups), float(stats.t.ppf((1 + level) / 2, max(groups - 1, 1)))
    else:
        units, z = spread / variance, student_quantile(influence, strata, level)
    middle = (rate + z * z / (2 * units)) / (1 + z * z / units)
    half = z / (1 + z * z / units) * np.sqrt(spread / units + (z / (2 * units)) ** 2)
    return Interval(float(max(middle - half, 0.0)), float(min(middle + half, 1.0)))


def student_quantile(influence: np.ndarray, strata: np.ndarray, level: float) -> float:
    """Student's two-sided, for a variance that is estimated from the groups: degrees of freedom by Satterthwaite.

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
