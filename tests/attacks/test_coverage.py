"""Nominal 95 % intervals on data of known truth: how often they hold it. Beta-binomial groups, thousands of samples."""

import numpy as np
import pytest

from attacks.statistics import clustered_mean, clustered_rates, mcnemar, wilson
from attacks.survival import survival

pytestmark = pytest.mark.slow
SAMPLES = 2000
LAYOUTS = {
    "20 groups": np.zeros(20, int),
    "10 classes of 8 groups": np.repeat(np.arange(10), 8),
    "10 classes of 25 groups": np.repeat(np.arange(10), 25),
}


def groups_of_stacks(
    random: np.random.Generator, strata: np.ndarray, rates: np.ndarray, correlation: float, samples: int = SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """(G, samples) successes and totals: groups of 2 to 9 stacks, whose own rate varies around that of their class."""
    mean = rates[strata][:, None]
    own = np.broadcast_to(mean, (len(strata), samples))
    if correlation:
        own = random.beta(mean * (1 / correlation - 1), (1 - mean) * (1 / correlation - 1), own.shape)
    totals = random.integers(2, 10, own.shape)
    return random.binomial(totals, own), totals


def covered(intervals, truth: float) -> float:
    low, high = np.array(intervals).T
    return 100 * float(((low <= truth) & (truth <= high)).mean())


def test_wilson_on_independent_stacks() -> None:
    """Averaged over many rates: at a single one, a count's coverage jumps (Brown, Cai and DasGupta 2001)."""
    random = np.random.default_rng(1)
    for total in (20, 136, 1000):
        rates = random.uniform(0.05, 0.95, SAMPLES)
        successes = random.binomial(total, rates)
        intervals = np.array([wilson(int(s), total) for s in successes])
        share = 100 * ((intervals[:, 0] <= rates) & (rates <= intervals[:, 1])).mean()
        assert 93 <= share <= 97, (total, share)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.8, 0.9])
def test_clustered_rates(layout: str, rate: float) -> None:
    random = np.random.default_rng(2)
    strata = LAYOUTS[layout]
    for correlation in (0.0, 0.1, 0.3, 0.6):
        rates = np.full(strata.max() + 1, rate)
        successes, totals = groups_of_stacks(random, strata, rates, correlation)
        share = covered(clustered_rates(successes, totals, strata, resamples=2000), rate)
        print(f"{layout}, rate {rate}, correlation {correlation}: {share:.1f}")
        assert 93 <= share <= 97, (correlation, share)


def test_rare_successes_in_few_groups_are_not_overstated() -> None:
    """One success in twenty, in twenty groups: most samples have one group that varies, or none. Wide, never narrow."""
    random = np.random.default_rng(3)
    for layout in LAYOUTS:
        strata = LAYOUTS[layout]
        for correlation in (0.0, 0.1, 0.3, 0.6):
            successes, totals = groups_of_stacks(random, strata, np.full(strata.max() + 1, 0.05), correlation)
            share = covered(clustered_rates(successes, totals, strata, resamples=2000), 0.05)
            print(f"{layout}, rate 0.05, correlation {correlation}: {share:.1f}")
            assert 93 <= share <= 98.5, (layout, correlation, share)


@pytest.mark.parametrize("classes", [10, 36])
@pytest.mark.parametrize("rate", [0.01, 0.02])
def test_very_rare_successes_are_covered_less(classes: int, rate: float) -> None:
    """Groups as large and as unlike as UCF-101's, of which few have any success: the intervals hold less than they say,
    and the page says so."""
    random = np.random.default_rng(8)
    strata = np.repeat(np.arange(classes), 8 if classes == 10 else 7)
    own = random.beta(rate * (1 / 0.3 - 1), (1 - rate) * (1 / 0.3 - 1), (len(strata), SAMPLES))
    totals = np.maximum(1, np.round(40 * random.lognormal(-0.125, 0.5, own.shape))).astype(int)
    successes = random.binomial(totals, own)
    share = covered(clustered_rates(successes, totals, strata, resamples=2000), rate)
    print(f"{len(strata)} groups like UCF-101's, rate {rate}, correlation 0.3: {share:.1f}")
    assert 87 <= share <= 97, share


def test_classes_that_differ() -> None:
    """Rates from 0.25 to 0.75 by class: which classes there are is no chance, and widens nothing."""
    random = np.random.default_rng(4)
    for groups in (2, 8):
        strata = np.repeat(np.arange(10), groups)
        rates = np.linspace(0.25, 0.75, 10)
        successes, totals = groups_of_stacks(random, strata, rates, 0.2)
        share = covered(clustered_rates(successes, totals, strata, resamples=2000), 0.5)
        print(f"10 classes of {groups} groups that differ: {share:.1f}")
        assert 93 <= share <= 97, (groups, share)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_difference_of_paired_attacks(correlation: float) -> None:
    """A strong attack that succeeds wherever a weak one does, and on more besides."""
    random = np.random.default_rng(5)
    for layout in ("20 groups", "10 classes of 8 groups"):
        strata, intervals = LAYOUTS[layout], []
        weak, totals = groups_of_stacks(random, strata, np.full(strata.max() + 1, 0.4), correlation, 600)
        for sample in range(600):
            groups = np.repeat(np.arange(len(strata)), totals[:, sample])
            # Which of a group's stacks these are does not matter.
            place = np.concatenate([np.arange(n) for n in totals[:, sample]])
            second = place < weak[groups, sample]
            first = second | (random.random(len(place)) < 0.25)
            intervals.append(mcnemar(first, second, groups, strata, resamples=1000).interval)
        share = covered(intervals, 0.25 * 0.6)
        print(f"difference, {layout}, correlation {correlation}: {share:.1f}")
        assert 93 <= share <= 97.5, (layout, share)


def test_difference_of_independent_units() -> None:
    random = np.random.default_rng(6)
    intervals = []
    for _ in range(SAMPLES):
        second = random.random(80) < 0.4
        first = np.where(random.random(80) < 0.7, second, random.random(80) < 0.7)
        intervals.append(mcnemar(first, second).interval)
    share = covered(intervals, 0.3 * (0.7 - 0.4))
    print(f"difference, 80 independent units: {share:.1f}")
    assert 93 <= share <= 97, share


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.01, 0.0), (0.02, 0.02), (0.05, 0.01), (0.2, 0.1)])
def test_difference_of_attacks_that_nearly_agree(rates: tuple[float, float]) -> None:
    """Few units or none on which one of two attacks succeeds alone: never covered less than claimed.

    Where no unit differs the interval ends at z²/(N + z²). A true difference d beyond that shows in no unit with
    chance (1 - d)^N, which is below exp(-z²), 2 %.
    """
    random = np.random.default_rng(9)
    truth = rates[0] - rates[1]
    for units in (40, 200):
        intervals = []
        for _ in range(SAMPLES):
            alone, both = random.random(units), random.random(units) < 0.5
            first, second = alone < rates[0], alone > 1 - rates[1]
            intervals.append(mcnemar(first | (both & ~second), second | (both & ~first)).interval)
        share = covered(intervals, truth)
        print(f"difference, {units} units of which {rates} differ: {share:.1f}")
        assert share >= 93, (units, share)
        assert min(high - low for low, high in intervals) >= 2 * 3 / (units + 4)
    for layout in ("20 groups", "10 classes of 8 groups"):
        strata, intervals = LAYOUTS[layout], []
        for _ in range(400):
            groups = np.repeat(np.arange(len(strata)), random.integers(2, 10, len(strata)))
            own = [random.beta(r * 9, (1 - r) * 9, len(strata)) if r else np.zeros(len(strata)) for r in rates]
            alone, both = random.random(len(groups)), random.random(len(groups)) < 0.5
            first = alone < own[0][groups]
            second = (alone > 1 - own[1][groups]) & ~first
            paired = mcnemar(first | (both & ~second), second | (both & ~first), groups, strata, resamples=500)
            intervals.append(paired.interval)
        share = covered(intervals, truth)
        print(f"difference, {layout} of whose stacks {rates} differ: {share:.1f}")
        assert share >= 92.5, (layout, share)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_survival_band_and_mean_frames(correlation: float) -> None:
    """Each frame fools what still stands with the group's own hazard; what stands at 11 is censored."""
    random = np.random.default_rng(7)
    strata, last, samples = LAYOUTS["10 classes of 8 groups"], 11, 500
    hazard = 0.15
    large = random.beta(hazard * (1 / 0.05 - 1), (1 - hazard) * (1 / 0.05 - 1), 400_000) if correlation else hazard
    truth = np.array([np.mean((1 - large) ** t) for t in range(last + 1)])
    share_at = np.arange(1, last + 1)
    first = np.array([np.mean(large * (1 - large) ** (t - 1)) for t in share_at])
    true_mean = (share_at * first).sum() / first.sum()
    inside, means = np.zeros(last + 1), []
    for _ in range(samples):
        own = random.beta(hazard * 19, (1 - hazard) * 19, 80) if correlation else np.full(80, hazard)
        groups = np.repeat(np.arange(80), random.integers(2, 10, 80))
        needed = random.geometric(own[groups])
        success, frames = needed <= last, np.minimum(needed, last)
        curve = survival(frames, success, last, groups, strata, resamples=1000)
        inside += (curve.low <= truth) & (truth <= curve.high)
        sums, counts = (np.bincount(groups, success * w, minlength=80) for w in (frames, 1))
        means.append(clustered_mean(sums, counts, strata, resamples=1000))
    shares = 100 * inside[1:] / samples
    print(f"survival, hazards {'differ' if correlation else 'equal'}: {shares.min():.1f} … {shares.max():.1f}")
    assert 93 <= shares.mean() <= 97 and 91.5 <= shares.min() <= shares.max() <= 98, shares
    share = covered(means, true_mean)
    print(f"mean frames: {share:.1f}")
    assert 92.5 <= share <= 97, share
