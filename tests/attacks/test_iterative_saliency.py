from collections import Counter
from typing import get_args

import pytest
import torch

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency, Order

EPSILONS = (0.003, 0.006, 0.012)
CHECK = 2  # stacks on which a call holds a system against itself
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
def test_runs_only_the_pairs_that_it_must(refresh, transfer, system, stacks):
    """Checks: the pairs of the frame. Gradients: the pairs of an unused frame, a clean one once for all ε."""
    victim = system(3)
    judge = system(3, "black box") if transfer else victim
    frames, labels = stacks(judge, 0)
    count, length = frames.shape[:2]
    for counted in (victim, judge):
        counted.pairs = counted.pairs_differentiated = 0
    attack = IterativeSaliency(refresh, retained_pairs=0)
    result = attack(victim, frames, labels, EPSILONS, stop_on=judge if transfer else None)

    checks = updates = backwards = 0
    estimates = set()  # (step, stack, pair, ε of a pair that is not clean)
    for e in range(len(EPSILONS)):
        for b in range(count):
            order = result.frame_order[e, b, : int(result.frames_perturbed[e, b])].tolist()
            checks += sum(len(_pairs(n, length)) for n in order)
            for k in range(1, len(order)):
                live = {pair for m in range(length) if m not in order[:k] for pair in _pairs(m, length)}
                clean = {pair for pair in live if pair not in order[:k] and pair + 1 not in order[:k]}
                estimates |= {(k, b, pair, None if pair in clean else e) for pair in live}
                backwards += len(live)
                updates += len(_pairs(order[k - 1], length))  # what the judge saw in the check, another victim did not
    clean = count * (length - 1)
    seen = clean + CHECK * (length - 1)
    refreshes = len(estimates) if refresh else 0
    assert checks > 50 and backwards > len(estimates) > 50
    assert judge.pairs == seen + checks + (refreshes if not transfer else 0)
    assert victim.pairs == seen + refreshes + (checks if not transfer else updates if refresh else 0)
    assert victim.pairs_differentiated == clean + (backwards if refresh else 0)


def test_all_stacks_and_epsilons_share_each_pass(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    victim.stacks.clear()
    clean = clean_pass(victim, frames, labels, batch_size=100, check=False)
    result = IterativeSaliency(refresh=True, batch_size=100)(victim, frames, labels, EPSILONS, clean=clean)
    steps = int(result.frames_perturbed.max())
    # The clean pass, then a check for each step and a refresh before each step but the first.
    assert len(victim.stacks) == 1 + steps + (steps - 1)
    lengths = result.frames_perturbed.flatten()
    assert victim.stacks[1::2] == [
        int((lengths > step).sum()) for step in range(steps)
    ]  # those that are done have left


ORDERS = get_args(Order)


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_order_equals_the_plain_algorithm(
    seed, order, refresh, transfer, system, stacks, assert_equals_reference
):
    victim = system(seed)
    judge = system(seed, "black box") if transfer else None
    frames, labels = stacks(judge or victim, seed)
    attack = IterativeSaliency(refresh, order, seed=seed)
    assert attack.name == NAMES[refresh] + (f" ({order})" if order != "salient" else "")
    result = attack(victim, frames, labels, EPSILONS, stop_on=judge)
    orders = None
    if order == "random":
        orders = [[n for n in row.tolist() if n >= 0] for row in _whole_orders(attack, victim, frames, labels)]
    mode = f"{NAMES[refresh]} ({order})"
    assert_equals_reference(result, mode, victim, frames, labels, EPSILONS, judge, orders)


def _whole_orders(attack, system, frames, labels):
    """The order that each stack's frames would be taken in by a judge that is never fooled."""
    never = _Never()
    return attack(system, frames, torch.zeros_like(labels), (1e-9,), stop_on=never).frame_order[0]


class _Never(torch.nn.Module):
    def forward(self, frames):
        return torch.eye(4, dtype=frames.dtype)[torch.zeros(len(frames), dtype=torch.int64)]


def test_random_orders_are_the_stacks_own_and_fair(system, stacks):
    victim = system(0)
    frames = torch.rand(400, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames, labels = torch.nn.functional.interpolate(frames.flatten(0, 1), (12, 14)).unflatten(0, (400, 6)), None
    labels = torch.zeros(400, dtype=torch.int64)

    def orders(some, seed=0):
        attack = IterativeSaliency(order="random", seed=seed, batch_size=100)
        return _whole_orders(attack, victim, frames[some], labels[some])

    whole = orders(slice(None))
    assert (whole.sort(1).values == torch.arange(6)).all()
    places = torch.stack([(whole == n).double().mean(0) for n in range(6)])  # frame x place
    assert (places - 1 / 6).abs().max() < 4 * (5 / 36 / 400) ** 0.5
    some = torch.tensor([7, 300, 2])
    assert torch.equal(orders(some), whole[some])
    assert not torch.equal(orders(some, seed=1), whole[some])
    before = torch.get_rng_state()
    orders(some)
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_order_is_named():
    with pytest.raises(ValueError, match="unknown order of frames 'last-to-first': choose salient, least-salient, fir"):
        IterativeSaliency(order="last-to-first")


@pytest.mark.parametrize("kind", ["pairwise", "plain", "transfer"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_shared_first_step_changes_the_cost_alone(order, kind, system, plain, stacks):
    toy = system(1)
    victim = plain(toy) if kind == "plain" else toy
    judge = system(1, "black box") if kind == "transfer" else None
    frames, labels = stacks(judge or toy, 1)
    once = IterativeSaliency(order=order)(victim, frames, labels, EPSILONS, stop_on=judge)
    refresh = IterativeSaliency(refresh=True, order=order, retained_pairs=0)
    alone = refresh(victim, frames, labels, EPSILONS, stop_on=judge)
    (judge or toy).pairs = 0
    shared = refresh(victim, frames, labels, EPSILONS, stop_on=judge, first_step=once.first_step)
    counted = (judge or toy).pairs
    for field in ("adversarial", "flow", "logits", "success", "frame_order", "step_logits", "pair_backwards"):
        one, other = getattr(alone, field), getattr(shared, field)
        assert one is other is None or torch.allclose(one, other, rtol=1e-12, atol=1e-12, equal_nan=True), field
    first = torch.zeros_like(alone.pair_forwards)
    attacked = alone.frames_perturbed > 0
    of_frame = [len(_pairs(n, frames.shape[1])) for n in range(frames.shape[1])]
    first[attacked] = torch.tensor(of_frame)[alone.frame_order[..., 0][attacked]]
    if kind == "plain":
        first[attacked] = frames.shape[1] - 1
    assert torch.equal(alone.pair_forwards - shared.pair_forwards, first) and first.any()
    if kind != "transfer":
        clean = (len(frames) + CHECK) * (frames.shape[1] - 1)
        assert counted == clean + int(shared.pair_forwards.sum())


def test_a_first_step_of_something_else_is_refused(system, stacks):
    victim = system(1)
    frames, labels = stacks(victim, 1)
    first_step = IterativeSaliency()(victim, frames, labels, EPSILONS).first_step
    for attack, epsilons in ((IterativeSaliency(order="least-salient"), EPSILONS), (IterativeSaliency(), (0.5, 0.6))):
        with pytest.raises(ValueError, match=r"first step given to iterative-saliency.* is not its own"):
            attack(victim, frames, labels, epsilons, first_step=first_step)


@pytest.mark.parametrize("refresh", [False, True])
def test_every_step_is_recorded(refresh, system, stacks):
    """The logits after each frame are those of the frames perturbed so far."""
    victim = system(2)
    frames, labels = stacks(victim, 2)
    result = IterativeSaliency(refresh)(victim, frames, labels, EPSILONS)
    checked = 0
    for e in range(len(EPSILONS)):
        for b in range(len(frames)):
            current, count = frames[b].clone(), int(result.frames_perturbed[e, b])
            for k, n in enumerate(result.frame_order[e, b, :count].tolist()):
                current[n] = result.adversarial[e, b, n]
                with torch.no_grad():
                    expected = victim(current[None])[0]
                torch.testing.assert_close(result.step_logits[e, b, k], expected, rtol=1e-9, atol=1e-9)
                checked += 1
            assert result.step_logits[e, b, count:].isnan().all()
    assert checked == int(result.frames_perturbed.sum()) > 20


def test_a_stack_that_is_wrong_already_costs_nothing(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, wrong=1)
    victim.pairs = 0
    result = IterativeSaliency(refresh=True)(victim, frames, labels, EPSILONS)
    assert victim.pairs == (len(frames) + CHECK) * (frames.shape[1] - 1)
    assert not result.attacked.any() and not result.success.any() and not result.frames_perturbed.any()
    assert torch.equal(result.adversarial, frames.expand_as(result.adversarial))
