"""Against published numbers, formulas written out here, and scipy's own estimators."""

import time

import numpy as np
import pytest
from scipy import stats

from attacks.group_bootstrap import RESAMPLES, resampled_ratios, resampled_sums
from attacks.statistics import (
    averaged_rates,
    clustered_mean,
    clustered_rate,
    clustered_rates,
    difference,
    mcnemar,
    wilson,
)
from attacks.survival import survival


def test_wilson_is_newcombes_example() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17:857, table I, method 3)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_bootstrap_variance_is_the_linearised_one() -> None:
    """The ratio's textbook variance over groups, within strata (Cochran 1977, 6.10), that many groups approach."""
    random = np.random.default_rng(0)
    strata = np.repeat(np.arange(4), 50)
    totals = random.integers(2, 10, 200)
    successes = random.binomial(totals, random.beta(2, 2, 200))
    rate = successes.sum() / totals.sum()
    residual = (successes - rate * totals) / totals.sum()
    variance = sum(50 / 49 * ((e - e.mean()) ** 2).sum() for e in (residual[strata == s] for s in range(4)))
    replicates = resampled_ratios(successes[:, None], totals[:, None], strata, RESAMPLES, seed=0)
    assert replicates.var() == pytest.approx(variance, rel=0.06)
    assert replicates.mean() == pytest.approx(rate, abs=0.002)


def test_groups_of_one_unit_are_independent_units() -> None:
    """Wilson's interval but for Student's quantile and the n - 1 of the variance."""
    successes = np.repeat([1, 0], [120, 280])
    assert clustered_rate(successes, np.ones(400)) == pytest.approx(wilson(120, 400), abs=0.002)


def test_copies_of_a_unit_add_nothing() -> None:
    """Ten equal stacks a clip are worth one."""
    one = clustered_rate(np.repeat([1, 0], [12, 28]), np.ones(40))
    ten = clustered_rate(10 * np.repeat([1, 0], [12, 28]), np.full(40, 10))
    assert ten == pytest.approx(one)
    low, high = wilson(120, 400)
    assert ten.high - ten.low > 2.5 * (high - low)


def test_no_rate_is_certain() -> None:
    """All or none fooled, or each class all or none: as wide as Wilson's for as many units as there are groups."""
    strata = np.repeat([0, 1], 10)
    for rate, successes in ((0, np.zeros(20)), (1, np.full(20, 5)), (0.5, np.repeat([0, 5], 10))):
        low, high = clustered_rate(successes, np.full(20, 5), strata)
        expected = wilson(round(20 * rate), 20)
        assert low <= rate <= high
        assert high - low == pytest.approx(expected.high - expected.low, rel=0.15)
        assert high - low >= expected.high - expected.low


def test_groups_without_a_unit_and_rates_without_any() -> None:
    successes = np.array([[1, 0], [0, 0], [2, 0], [0, 0]])
    totals = np.array([[2, 0], [2, 0], [2, 0], [0, 0]])
    first, none = clustered_rates(successes, totals)
    assert 0 <= first.low < 0.5 < first.high <= 1
    assert np.isnan(none).all()


def test_classes_with_one_group_are_taken_together() -> None:
    """One clip of each class, as in a limited sweep: nothing can be said within a class."""
    random = np.random.default_rng(1)
    totals = np.full(12, 4)
    successes = random.binomial(totals, 0.4)
    assert clustered_rate(successes, totals, np.arange(12)) == clustered_rate(successes, totals)
    lone = np.array([0] * 11 + [1])
    assert clustered_rate(successes, totals, lone) == clustered_rate(successes, totals)


def test_ten_thousand_resamples_of_a_hundred_groups_take_milliseconds() -> None:
    totals = np.full((100, 1), 6)
    successes = np.random.default_rng(2).binomial(totals, 0.3)
    clustered_rates(successes, totals)  # draws the resamples, once for all rates of a sweep
    start = time.perf_counter()
    again = clustered_rates(successes, totals)
    assert time.perf_counter() - start < 0.1
    assert again == clustered_rates(successes, totals)  # and the same ones whenever


def test_mean_of_independent_values_is_students() -> None:
    values = np.random.default_rng(3).integers(1, 11, 500).astype(float)
    error = stats.t.ppf(0.975, 499) * values.std(ddof=1) / np.sqrt(500)
    interval = clustered_mean(values, np.ones(500))
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert np.isnan(clustered_mean(np.full(5, 11.0), np.ones(5))).all()


def test_mcnemar_by_hand() -> None:
    """20 both, 12 the first alone, 2 the second alone, 16 neither: 14 coins, 2 heads or fewer, 12 or more."""
    first = np.repeat([1, 1, 0, 0], [20, 12, 2, 16])
    second = np.repeat([1, 0, 1, 0], [20, 12, 2, 16])
    paired = mcnemar(first, second)
    assert (paired.units, paired.first_only, paired.second_only) == (50, 12, 2)
    assert paired.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert paired.difference == pytest.approx(0.2)
    # Newcombe's square-and-add, written out.
    (l1, u1), (l2, u2) = wilson(32, 50), wilson(22, 50)
    phi = (20 * 16 - 12 * 2) / np.sqrt(32 * 18 * 22 * 28)
    below, above = 0.64 - l1, u1 - 0.64
    low = 0.2 - np.sqrt(below**2 - 2 * phi * below * (u2 - 0.44) + (u2 - 0.44) ** 2)
    high = 0.2 + np.sqrt(above**2 - 2 * phi * above * (0.44 - l2) + (0.44 - l2) ** 2)
    assert paired.interval == pytest.approx((low, high))


def test_equal_attacks_differ_by_nothing_but_not_certainly() -> None:
    always = np.ones(30, bool)
    for groups in (None, np.repeat(np.arange(10), 3)):
        paired = mcnemar(always, always, groups)
        assert (paired.difference, paired.p_value) == (0, 1)
        assert paired.interval.low < 0 < paired.interval.high
    swapped = mcnemar(np.arange(30) < 20, np.arange(30) < 5, np.repeat(np.arange(10), 3))
    back = mcnemar(np.arange(30) < 5, np.arange(30) < 20, np.repeat(np.arange(10), 3))
    assert swapped.difference == -back.difference
    assert swapped.interval == pytest.approx((-back.interval.high, -back.interval.low))


@pytest.mark.parametrize("falls, stands", [(6, 3), (4, 5), (7, 2)])
def test_an_attack_that_varies_between_classes_alone_is_uncorrelated(falls: int, stands: int) -> None:
    """All of one class and none of another fall to it: it has no correlation, whatever single precision adds up to."""
    strata, clips = np.repeat([0, 1], [falls, stands]), np.arange(falls + stands)
    first, second = strata == 0, clips % 3 > 0
    p, q = (clustered_rate(success, np.ones(len(clips)), strata) for success in (first, second))
    expected = difference(first.mean(), second.mean(), p, q)
    assert mcnemar(first, second, clips, strata).interval == pytest.approx(expected)


def test_strata_are_drawn_independently() -> None:
    """Thirty classes that are equal group by group: the variance of their sum is thirty times that of one."""
    values, strata = np.tile([0.0, 1.0, 3.0, 7.0], 30)[:, None], np.repeat(np.arange(30), 4)
    of_one = 4 * values[:4].var(ddof=1)
    for seed in range(3):
        assert resampled_sums(values, strata, RESAMPLES, seed).var() == pytest.approx(30 * of_one, rel=0.06)


def test_groups_without_a_unit_change_nothing() -> None:
    """The same four groups alone, and among twelve that have no unit: neither of a class of theirs nor of others."""
    successes, totals, places = np.array([3, 1, 4, 2]), np.array([4, 5, 4, 3]), np.array([2, 5, 9, 14])

    def among(values: np.ndarray) -> np.ndarray:
        spread = np.zeros((16, *values.shape[1:]), int)
        spread[places] = values
        return spread

    alone = clustered_rate(successes, totals)
    assert clustered_rate(among(successes), among(totals)) == alone
    for strata in (np.zeros(16, int), np.arange(16) // 6, np.arange(16)):
        of_four = np.unique(strata[places], return_inverse=True)[1]
        assert clustered_rate(among(successes), among(totals), strata) == clustered_rate(successes, totals, of_four)
    assert clustered_mean(among(7 * successes), among(totals)) == clustered_mean(7 * successes, totals)
    by_epsilon = np.stack([successes, successes[::-1]], 1), np.stack([totals, totals[::-1]], 1)
    averaged = averaged_rates(by_epsilon[0][:, :, None], by_epsilon[1])
    assert averaged_rates(among(by_epsilon[0])[:, :, None], among(by_epsilon[1])) == averaged
    groups = np.repeat(np.arange(4), totals)
    first = np.concatenate([np.arange(n) < s for s, n in zip(successes, totals, strict=True)])
    second, frames = np.roll(first, 3), np.where(first, 2, 11)
    paired = mcnemar(first, second, groups, np.zeros(4, int))
    assert mcnemar(first, second, places[groups], np.zeros(16, int)) == paired
    curve = survival(frames, first, 11, groups, np.zeros(4, int))
    beside = survival(frames, first, 11, places[groups], np.zeros(16, int))
    assert (beside.low == curve.low).all() and (beside.high == curve.high).all()


def test_a_rate_is_the_same_beside_rates_of_other_groups() -> None:
    """Rates that leave out different groups, and more of them than fit in one pass."""
    random = np.random.default_rng(6)
    totals = random.integers(0, 3, (12, 230))
    totals[:, 7] = 0
    successes, strata = random.binomial(totals, 0.4), np.arange(12) // 4
    together = clustered_rates(successes, totals, strata, resamples=500)
    alone = [
        clustered_rates(successes[:, [k]], totals[:, [k]], strata, resamples=500)[0] for k in range(totals.shape[1])
    ]
    assert np.allclose(together, alone, rtol=1e-5, equal_nan=True) and np.isnan(together[7]).all()


def test_survival_is_kaplan_and_meiers() -> None:
    """The 6-MP arm of Freireich's leukaemia trial (1963), the estimator's textbook example; here weeks are frames."""
    weeks = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35])
    fell = np.arange(21) < 9
    curve = survival(weeks, fell, last=35)
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for week, share in published.items():
        assert curve.standing[week] == pytest.approx(share, abs=6e-4)
    assert curve.median == 23
    greenwood = stats.ecdf(stats.CensoredData.right_censored(weeks, ~fell)).sf.confidence_interval()
    for week in published:  # scipy's band (Greenwood) is plain symmetric; the widths agree where it is away from 1
        width = float(greenwood.high.evaluate(week) - greenwood.low.evaluate(week))
        if week > 7:
            assert curve.high[week] - curve.low[week] == pytest.approx(width, rel=0.25)


def test_survival_censors_what_withstands() -> None:
    """Four fall at 1, 2, 2 and 5 frames, six withstand all eleven and are at risk to the end: there is no median."""
    frames = np.array([1, 2, 2, 5] + [11] * 6)
    curve = survival(frames, frames < 11, last=11)
    assert curve.standing.tolist() == pytest.approx([1, 0.9, 0.7, 0.7, 0.7, 0.6, *[0.6] * 6])
    assert curve.median is None and curve.median_interval[0] is not None
    assert (curve.low <= curve.standing).all() and (curve.standing <= curve.high).all()
    all_fall = survival(np.array([1, 2, 3, 3]), np.ones(4, bool), last=11)
    assert all_fall.median == 2 and all_fall.standing[3] == 0 < all_fall.high[3]
    # One that the attack left alone tells nothing of any frame.
    left_alone = survival(np.append(frames, 0), np.append(frames < 11, False), last=11)
    assert left_alone.standing.tolist() == pytest.approx(curve.standing.tolist())
    with pytest.raises(ValueError, match=r"with 0 to 11 frames"):
        survival(np.array([0, 3]), np.array([True, True]), last=11)


def test_median_where_exactly_half_have_fallen() -> None:
    """Whatever the number of stacks and the frames at which they fall: the median is the frame of the last of them."""
    random = np.random.default_rng(5)
    inexact = 0
    for half in range(1, 150):
        fell = random.integers(1, 11, half)
        frames, success = np.append(fell, np.full(half, 11)), np.arange(2 * half) < half
        curve = survival(frames, success, 11, np.arange(2 * half) % 5, resamples=20)
        assert curve.median == fell.max(), half
        # With one more that withstands more than half still stand.
        more = survival(np.append(frames, 11), np.append(success, False), 11, np.arange(2 * half + 1) % 5, resamples=20)
        assert more.median is None, half
        stood = [1 - (fell == t).sum() / (2 * half - (fell < t).sum()) for t in range(12)]
        inexact += np.prod(stood) > 0.5
    assert inexact > 10, "a product of floats would have passed"


def test_survival_is_scipys_estimate() -> None:
    """Censored at any frame, not at the last alone."""
    random = np.random.default_rng(9)
    frames, success = random.integers(1, 12, 200), random.random(200) < 0.6
    expected = stats.ecdf(stats.CensoredData.right_censored(frames, ~success)).sf.evaluate(np.arange(12))
    assert survival(frames, success, 11).standing == pytest.approx(expected, rel=1e-12)


def test_average_of_one_rate_is_that_rate() -> None:
    random = np.random.default_rng(4)
    totals = random.integers(1, 6, (30, 1))
    successes = random.binomial(totals, 0.3)
    (alone,) = clustered_rates(successes, totals)
    assert averaged_rates(successes[:, :, None], totals)[0] == pytest.approx(alone, rel=1e-4)
    # Twice the same rate is no surer than once; an independent second one is.
    assert averaged_rates(successes.repeat(2, 1)[:, :, None], totals.repeat(2, 1))[0] == pytest.approx(alone, rel=1e-4)
    other = random.permutation(30)
    both = averaged_rates(
        np.concatenate([successes, successes[other]], 1)[:, :, None], np.concatenate([totals, totals[other]], 1)
    )[0]
    assert both.high - both.low < 0.9 * (alone.high - alone.low)


def test_difference_of_independent_rates_is_newcombes() -> None:
    """56 of 70 less 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, Statistics in Medicine 17:873, table II, method 10)."""
    first, second = wilson(56, 70), wilson(48, 80)
    assert difference(56 / 70, 48 / 80, first, second) == pytest.approx((0.0524, 0.3339), abs=5e-5)
