"""Against published numbers, formulas written out here, and scipy's own estimators."""

import time

import numpy as np
import pytest
from scipy import stats

from attacks.group_bootstrap import RESAMPLES, resampled_ratios, resampled_sums, student_quantile
from attacks.statistics import (
    averaged_rates,
    clustered_mean,
    clustered_rate,
    clustered_rates,
    difference,
    mcnemar,
    tango,
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


def test_quantiles_are_students() -> None:
    """Of twelve groups a normal one would claim too much: 1.96 for 2.20."""
    t = stats.t.ppf(0.975, 11)
    evenly = np.tile([-1.0, 1.0], 6)
    assert student_quantile(evenly[:, None], np.zeros(12, int), 0.95) == pytest.approx(t)
    assert student_quantile(evenly[:, None], np.repeat([0, 1], 6), 0.95) == pytest.approx(stats.t.ppf(0.975, 10))
    lone = np.append(np.full(11, -1 / 12), 11 / 12)
    assert student_quantile(lone[:, None], np.zeros(12, int), 0.95) > stats.t.ppf(0.975, 3)
    assert clustered_rate(np.zeros(12), np.ones(12)).high == pytest.approx(t**2 / (12 + t**2))
    half = clustered_rate(np.tile([0, 1], 6), np.ones(12))  # 11 effective units: n - 1 of the variance
    assert half.high - half.low == pytest.approx(np.sqrt(t**2 / (11 + t**2)), abs=0.01)
    low, high = clustered_mean(np.tile([1.0, 3.0], 6), np.ones(12))
    assert np.log(high / low) / 2 == pytest.approx(t * np.sqrt(1 / 11) / 2, rel=0.03)


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
    assert paired.interval == pytest.approx(as_quartic(12, 2, 50))


def as_quartic(b: int, c: int, n: int) -> tuple[float, float]:
    """Tango's interval as the outer roots of a polynomial (Yang, Sun and Hardin 2013, Statistics in Medicine 32:1336),
    whose coefficients are written out here."""
    d, t, g = b - c, b + c, stats.norm.ppf(0.975) ** 2
    roots = np.roots(
        [
            n**2 * (n / g + 1) ** 2,
            -n * d * (n / g + 1) * (4 * n / g + 1),
            2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (t / g + 1),
            n * d * (2 * t / g + 1) - d**3 * (4 * n / g + 1) / g,
            d**2 * (d**2 / g - t) / g,
        ]
    )
    real = roots[abs(roots.imag) < 1e-6].real
    return real.min(), real.max()


@pytest.mark.parametrize("b, c, n", [(1, 7, 21), (40, 20, 160), (25, 28, 618), (3, 0, 80), (0, 1, 500), (5, 5, 30)])
def test_difference_of_paired_rates_is_tangos(b: int, c: int, n: int) -> None:
    assert tango(b, c, n, stats.norm.ppf(0.975)) == pytest.approx(as_quartic(b, c, n), abs=1e-7)
    back = tango(c, b, n, stats.norm.ppf(0.975))
    assert tango(b, c, n, stats.norm.ppf(0.975)) == pytest.approx((-back.high, -back.low))


def test_difference_of_paired_rates_is_the_published_one() -> None:
    """Airway hyper-responsiveness: -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014, Stat Med 33:2850, table V)."""
    assert tango(1, 7, 21, stats.norm.ppf(0.975)) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_attacks_that_agree_on_all_units_may_differ(share: float) -> None:
    """By z²/(N + z²), Wilson's bound of a rate of which none of N was seen: 4 of 100, whatever falls to both; in groups
    by as much at the number of groups."""
    fooled = np.arange(100) < 100 * share
    fooled = np.random.default_rng(0).permutation(fooled)
    paired = mcnemar(fooled, fooled)
    assert paired.interval == pytest.approx((-wilson(0, 100).high, wilson(0, 100).high))
    grouped = mcnemar(fooled, fooled, np.arange(100) // 5)
    t = stats.t.ppf(0.975, 19) ** 2
    assert grouped.interval == pytest.approx((-t / (20 + t), t / (20 + t)))


def test_one_unit_that_differs_leaves_the_interval_no_wider_than_its_groups() -> None:
    """All that differs lies in one group: its variance has a degree of freedom or less, and no interval follows."""
    first = np.arange(400) < 160
    second = first.copy()
    second[0] = False
    none, one = (mcnemar(first, other, np.arange(400) // 5).interval for other in (first, second))
    assert one.low < 1 / 400 < one.high and one.high - one.low < 1.1 * (none.high - none.low)


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
def test_attacks_that_differ_between_classes_alone_take_groups_for_units(falls: int, stands: int) -> None:
    """All of one class fall to one attack alone, and none of the other: no class varies, and nothing is certain."""
    strata, clips = np.repeat([0, 1], [falls, stands]), np.arange(falls + stands)
    paired = mcnemar(strata == 0, strata > 1, clips, strata)
    t = stats.t.ppf(0.975, len(clips) - 1)
    assert paired.interval == pytest.approx(tango(falls, 0, len(clips), t))


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
