from collections import Counter

import pytest
import torch

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency

EPSILONS = (0.003, 0.006, 0.012)
SEEDS = range(5)
NAMES = {False: "iterative-saliency", True: "iterative-saliency-RG"}


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("kind", ["pairwise", "plain", "transfer", "transfer from plain", "transfer to plain"])
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_the_plain_algorithm(seed, kind, refresh, system, plain, stacks, assert_equals_reference):
    victim = system(seed)
    judge = system(seed, "black box") if kind.startswith("transfer") else None
    frames, labels = stacks(judge or victim, seed)
    attacked_victim = plain(victim) if kind in ("plain", "transfer from plain") else victim
    stop_on = plain(judge) if kind == "transfer to plain" else judge
    attack = IterativeSaliency(refresh)
    assert attack.name == NAMES[refresh]
    result = attack(attacked_victim, frames, labels, EPSILONS, stop_on=stop_on)
    assert_equals_reference(result, attack.name, victim, frames, labels, EPSILONS, judge)


@pytest.mark.parametrize("refresh", [False, True])
def test_the_toys_have_examples_of_every_length(refresh, system, stacks):
    """What makes the comparison above worth something: lost at once, lost late, withstood, and wrong from the start."""
    seen: Counter[str | int] = Counter()
    for seed in SEEDS:
        victim = system(seed)
        result = IterativeSaliency(refresh)(victim, *stacks(victim, seed), EPSILONS)
        for frames, success in zip(
            result.frames_perturbed.flatten().tolist(), result.success.flatten().tolist(), strict=True
        ):
            seen["withstood" if frames and not success else frames] += 1
    assert min(seen[outcome] for outcome in (0, 1, 2, 3, 4, 5, "withstood")) > 0


def test_refreshed_gradients_differ_from_clean_ones(system, stacks):
    different = 0
    for seed in SEEDS:
        victim = system(seed)
        frames, labels = stacks(victim, seed)
        once, refreshed = (IterativeSaliency(refresh)(victim, frames, labels, EPSILONS) for refresh in (False, True))
        assert torch.equal(once.frame_order[..., 0], refreshed.frame_order[..., 0])  # the first step is the same
        different += int((once.adversarial != refreshed.adversarial).flatten(2).any(2).sum())
    assert different > 10


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("transfer", [False, True])
def test_stops_at_the_first_success_and_never_takes_a_frame_twice(refresh, transfer, system, stacks):
    victim = system(1)
    judge = system(1, "black box") if transfer else victim
    frames, labels = stacks(judge, 1)
    result = IterativeSaliency(refresh)(victim, frames, labels, EPSILONS, stop_on=judge if transfer else None)
    for e in range(len(EPSILONS)):
        for b, label in enumerate(labels.tolist()):
            count = int(result.frames_perturbed[e, b])
            order = result.frame_order[e, b]
            assert len(set(order[:count].tolist())) == count and (order[count:] == -1).all()
            current = frames[b].clone()
            for k, n in enumerate(order[:count].tolist()):
                assert int(judge(current[None]).argmax()) == label, f"went on after {k} frames"
                current[n] = result.adversarial[e, b, n]
            assert torch.equal(current, result.adversarial[e, b])  # no other frame was touched
            wrong = int(judge(current[None]).argmax()) != label
            assert wrong or count == frames.shape[1], "gave up early"
            assert bool(result.success[e, b]) == (wrong and bool(result.attacked[b]))
            assert bool(result.attacked[b]) == (count > 0)


def test_frames_are_taken_by_clean_saliency(system, stacks):
    victim = system(2)
    frames, labels = stacks(victim, 2)
    clean = clean_pass(victim, frames, labels)
    expected = clean.saliency.argsort(1, descending=True)
    result = IterativeSaliency()(victim, frames, labels, EPSILONS, clean=clean)
    for order in result.frame_order:
        assert ((order == expected) | (order == -1)).all()


def test_each_refresh_takes_the_most_salient_unused_frame(system, stacks):
    victim = system(2)
    frames, labels = stacks(victim, 2)
    result = IterativeSaliency(refresh=True)(victim, frames, labels, EPSILONS)
    refreshed = 0
    for e in range(len(EPSILONS)):
        for b in result.attacked.nonzero().flatten().tolist():
            current = frames[b : b + 1].clone()
            order = result.frame_order[e, b, : int(result.frames_perturbed[e, b])].tolist()
            for k, n in enumerate(order):
                saliency = clean_pass(victim, current, labels[b : b + 1]).saliency[0]
                unused = [m for m in range(frames.shape[1]) if m not in order[:k]]
                assert float(saliency[n]) == pytest.approx(float(saliency[unused].max()), rel=1e-12)
                current[0, n] = result.adversarial[e, b, n]
                refreshed += k > 0
    assert refreshed > 10


def _pairs(n: int, length: int) -> set[int]:
    return {n - 1, n} & set(range(length - 1))


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("transfer", [False, True])
def test_estimates_only_the_pairs_that_changed(refresh, transfer, system, stacks):
    victim = system(3)
    judge = system(3, "black box") if transfer else victim
    frames, labels = stacks(judge, 0)
    count, length = frames.shape[:2]
    for counted in (victim, judge):
        counted.pairs = 0
    result = IterativeSaliency(refresh)(victim, frames, labels, EPSILONS, stop_on=judge if transfer else None)

    checks = refreshes = 0
    for e in range(len(EPSILONS)):
        for b in range(count):
            order = result.frame_order[e, b, : int(result.frames_perturbed[e, b])].tolist()
            checks += sum(len(_pairs(n, length)) for n in order)
            for k in range(1, len(order)):
                live = {pair for m in range(length) if m not in order[:k] for pair in _pairs(m, length)}
                # With another judge the victim has not seen the last frame yet: its dead pairs need an estimate too.
                refreshes += len(live | _pairs(order[k - 1], length) if transfer else live)
    clean = count * (length - 1)
    assert checks > 50
    assert judge.pairs == clean + checks + (refreshes if refresh and not transfer else 0)
    assert victim.pairs == clean + (refreshes if refresh else 0) + (0 if transfer else checks)


def test_all_stacks_and_epsilons_share_each_pass(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    victim.calls.clear()
    victim.stacks.clear()
    result = IterativeSaliency(refresh=True, batch_size=100)(victim, frames, labels, EPSILONS)
    steps = int(result.frames_perturbed.max())
    # The clean pass, then a check for each step and a refresh before each step but the first.
    assert len(victim.calls) == len(victim.stacks) == 1 + steps + (steps - 1)
    lengths = result.frames_perturbed.flatten()
    assert victim.stacks[1::2] == [
        int((lengths > step).sum()) for step in range(steps)
    ]  # those that are done have left


def test_a_stack_that_is_wrong_already_costs_nothing(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, wrong=1)
    victim.pairs = 0
    result = IterativeSaliency(refresh=True)(victim, frames, labels, EPSILONS)
    assert victim.pairs == len(frames) * (frames.shape[1] - 1)
    assert not result.attacked.any() and not result.success.any() and not result.frames_perturbed.any()
    assert torch.equal(result.adversarial, frames.expand_as(result.adversarial))
