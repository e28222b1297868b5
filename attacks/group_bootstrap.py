"""The bootstrap of whole groups, and Wilson's interval at the number of units that its variance tells.

Stacks of a clip and clips of a group are cut from one video and not independent, so the bootstrap draws whole groups,
class by class. Percentiles of such resamples cover less than they claim below about 50 groups and have no width at 0
or 1; here the resamples give the variance, and that gives Wilson's interval for as many independent units as would be
as sure. Simulated coverage of 95 %: `tests/attacks/test_coverage.py`.

A group without a unit of a rate tells nothing of it: callers leave such groups out before they call this module.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95
RESAMPLES = 10_000

FEW = 64
"""up to so many groups of a stratum their weights are kept, 2.5 MB at most; of more only the last two are"""


class Interval(NamedTuple):
    low: float
    high: float


def alike(present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rates by the groups that have a unit of them, from (G, k) bool: (G,) bool, those groups; their rates' indices."""
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for number, groups in enumerate(patterns.T):
        yield groups, np.flatnonzero(which.reshape(-1) == number)


def strata_of(strata: np.ndarray | None, groups: int) -> np.ndarray:
    """Strata with two groups at least: those with one have no variance of their own, and are taken together.

    Numbered 0, 1, …; one stratum when None.
    """
    if strata is None:
        return np.zeros(groups, int)
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    sizes = np.bincount(labels)
    alone = sizes[labels] == 1
    if alone.sum() == 1 and groups > 1:  # nothing to be taken together with but the smallest other stratum
        together = np.where(alone, np.where(sizes > 1, sizes, groups).argmin(), labels)
    else:
        together = np.where(alone, len(sizes), labels)
    return np.unique(together, return_inverse=True)[1]


def resampled_sums(counts: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, k) float32 sums of (G, k) over the groups that each resample drew: a bootstrap of whole groups.

    Within a stratum of n groups n - 1 are drawn, each with weight n / (n - 1): the variance is then unbiased for few
    groups (Rao and Wu 1988).
    """
    counts = np.asarray(counts, np.float32)
    total = np.zeros((resamples, counts.shape[1]), np.float32)
    for stratum, members in enumerate(_members(strata)):
        sums = _weights(len(members), resamples, seed) @ counts[members]
        # Strata of one size share their draws, each in an order of its own, which makes them independent.
        total += sums[_order(stratum, resamples, seed)] if stratum else sums
    return total


def _members(strata: np.ndarray) -> list[np.ndarray]:
    """The groups of each stratum."""
    return np.split(np.argsort(strata, kind="stable"), np.bincount(strata).cumsum()[:-1])


def _weights(groups: int, resamples: int, seed: int) -> np.ndarray:
    """How much each resample weighs each group of one stratum, (resamples, groups) float32."""
    return (_weights_of_few if groups <= FEW else _weights_of_many)(groups, resamples, seed)


def _draw(groups: int, resamples: int, seed: int) -> np.ndarray:
    if groups == 1:
        return np.ones((resamples, 1), np.float32)
    places = np.random.default_rng((seed, groups)).integers(groups, size=(resamples, groups - 1))
    places += groups * np.arange(resamples)[:, None]
    weights = np.bincount(places.reshape(-1), minlength=resamples * groups).astype(np.float32)
    weights *= groups / (groups - 1)
    weights.flags.writeable = False
    return weights.reshape(resamples, groups)


_weights_of_few = lru_cache(maxsize=FEW)(_draw)
_weights_of_many = lru_cache(maxsize=2)(_draw)


@lru_cache(maxsize=1024)
def _order(stratum: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, stratum)).permutation(resamples)


def resampled_ratios(
    numerators: np.ndarray, denominators: np.ndarray, strata: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """(R, k) ratios of sums; each group has a unit of each rate, so that no resample is without one."""
    rates = numerators.shape[1]
    sums = resampled_sums(np.concatenate([numerators, denominators], 1), strata, resamples, seed)
    return sums[:, :rates] / sums[:, rates:]


def rate_intervals(
    successes: np.ndarray, totals: np.ndarray, replicates: np.ndarray, strata: np.ndarray, level: float
) -> list[Interval]:
    """Wilson's intervals of k rates: counts (G, k), their `resampled_ratios` (R, k), the groups' strata (G,)."""
    units = totals.sum(0)
    rates = successes.sum(0) / units
    influence = (successes - rates * totals) / units
    low, high = effective_wilson(rates, replicates.var(0, dtype=np.float64), influence, strata, level)
    return list(map(Interval, low.tolist(), high.tolist()))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """nan where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def effective_wilson(
    rates: np.ndarray, variances: np.ndarray, influence: np.ndarray, strata: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's intervals of k rates at as many units as their variances, by the bootstrap, tell: p(1-p) over them.

    Where nothing varies each group counts as one unit.

    Args:
        rates, variances: (k,).
        influence: (G, k), what each group adds to the rate's deviation.
        strata: (G,), from `strata_of`.

    Returns:
        The lower and the upper ends, (k,) each.
    """
    spread = rates * (1 - rates)
    units, z = effective_units(spread, variances, influence, strata, level)
    middle = (rates + z * z / (2 * units)) / (1 + z * z / units)
    half = z / (1 + z * z / units) * np.sqrt(spread / units + (z / (2 * units)) ** 2)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def effective_units(
    spread: np.ndarray, variances: np.ndarray, influence: np.ndarray, strata: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Effective sample size and Student's quantile, (k,) each.

    Args:
        spread: (k,) variance of one unit; the others as of `effective_wilson`.
    """
    groups = len(strata)
    still = (spread < 1e-12) | (variances < 1e-9)
    units = np.where(still, groups, spread / np.where(still, 1, variances))
    return units, np.where(still, quantile_of_groups(groups, level), student_quantile(influence, strata, level))


def quantile_of_groups(groups: int, level: float) -> float:
    """Student's, where each group counts as one unit."""
    return float(_student(max(groups - 1, 1), level))


def student_quantile(influence: np.ndarray, strata: np.ndarray, level: float) -> np.ndarray:
    """Student's two-sided, (k,), for variances that are estimated from the groups: degrees of freedom by Satterthwaite.

    The estimate's own variance follows from the fourth moments of the groups' contributions, (G, k).
    """
    members, sizes = _members(strata), np.bincount(strata)
    means = np.stack([influence[of].mean(0) for of in members])
    size = np.maximum(sizes, 2)[strata][:, None]
    squares = (influence - means[strata]) ** 2 * size / (size - 1)
    most = max(len(strata) - len(sizes), 1)
    total = squares.sum(0)
    excess = (squares**2).sum(0) - total**2 / len(strata)
    freedom = np.divide(2 * total**2, excess, out=np.full(total.shape, float(most)), where=excess > 0)
    return _student(freedom.clip(1, most), level)


def _student(freedom: np.ndarray | int, level: float) -> np.ndarray:
    return special.stdtrit(freedom, (1 + level) / 2)
