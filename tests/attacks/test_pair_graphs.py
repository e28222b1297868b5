"""Retained graphs: what they save, what they cost, and how many there are."""

import weakref
from typing import get_args

import pytest
import torch
from torch import Tensor

from attacks.iterative_saliency import IterativeSaliency, Order
from attacks.pair_graphs import RETAINED_TOGETHER, PairGraph, RetainedGraphs
from attacks.settings import attack_settings

EPSILONS = (0.003, 0.006, 0.012)
CASES = [(seed, transfer) for seed in range(4) for transfer in (False, True)]


def attack(system, stacks, seed: int, transfer: bool, **options):
    """The result of RG, and the pairs that the attacked system estimated and differentiated."""
    victim = system(seed)
    judge = system(seed, "black box") if transfer else None
    frames, labels = stacks(judge or victim, seed)
    victim.pairs = victim.pairs_differentiated = 0
    result = IterativeSaliency(refresh=True, **options)(victim, frames, labels, EPSILONS, stop_on=judge)
    return result, victim.pairs, victim.pairs_differentiated


def _pairs(n: int, length: int) -> set[int]:
    return {n - 1, n} & set(range(length - 1))


@pytest.mark.parametrize(("seed", "transfer"), CASES)
def test_graphs_of_single_pairs_leave_one_estimate_for_each_pair_of_frames(seed, transfer, monkeypatch, system, stacks):
    monkeypatch.setattr("attacks.victim.RETAINED_TOGETHER", 1)
    result, estimated, walked = attack(system, stacks, seed, transfer, retained_pairs=10_000)
    count, length = result.adversarial.shape[1:3]
    changed = backwards = 0
    clean = set()  # estimated for the clean pass, which keeps no graph, and once more
    for e in range(len(EPSILONS)):
        for b in range(count):
            order = result.frame_order[e, b, : int(result.frames_perturbed[e, b])].tolist()
            for k in range(1, len(order) + 1):
                if k < len(order) or not transfer:  # the last step is the judge's to check
                    changed += len(_pairs(order[k - 1], length))
                if k < len(order):
                    live = {pair for m in range(length) if m not in order[:k] for pair in _pairs(m, length)}
                    clean |= {(b, pair) for pair in live if pair not in order[:k] and pair + 1 not in order[:k]}
                    backwards += len(live)
    assert backwards > 30 and changed > 30 and clean
    assert walked == count * (length - 1) + backwards
    assert estimated == count * (length - 1) + changed + len(clean)


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("together", [1, 2, 5, 100])
@pytest.mark.parametrize(("seed", "transfer"), CASES)
def test_no_walk_costs_more_than_it_saves_and_each_is_counted(
    seed, transfer, together, order, monkeypatch, system, stacks
):
    monkeypatch.setattr("attacks.victim.RETAINED_TOGETHER", together)
    anew, of_anew, walked_anew = attack(system, stacks, seed, transfer, order=order)
    result, estimated, walked = attack(system, stacks, seed, transfer, order=order, retained_pairs=10_000)
    assert torch.equal(result.frame_order, anew.frame_order)
    assert torch.equal(result.adversarial, anew.adversarial)
    assert estimated + walked <= of_anew + walked_anew
    assert estimated < of_anew or order in ("random", "first-to-last")  # they differentiate a pair about once
    # The clean pass counts for no attack; its pairs are the same in both.
    assert of_anew - estimated == int((anew.pair_forwards - result.pair_forwards).sum())
    assert walked - walked_anew == int((result.pair_backwards - anew.pair_backwards).sum())


@pytest.mark.parametrize("most", [1, 6, 20, 1000])
def test_at_most_so_many_pairs_are_retained(most, monkeypatch, system, stacks):
    alive: weakref.WeakSet[PairGraph] = weakref.WeakSet()
    highest = 0

    class Watched(PairGraph):
        def __init__(self, *args) -> None:
            nonlocal highest
            super().__init__(*args)
            highest = max(highest, sum(map(len, alive)))  # without this one, which is at work
            alive.add(self)

    monkeypatch.setattr("attacks.victim.PairGraph", Watched)
    anew, *_ = attack(system, stacks, 0, False)
    alive.clear()
    highest = 0
    result, *_ = attack(system, stacks, 0, False, retained_pairs=most)
    assert torch.equal(result.adversarial, anew.adversarial)
    assert not sum(map(len, alive)), "the call's end lets all go"
    assert highest <= most + RETAINED_TOGETHER  # the graph walked last may be at hand until the next one is
    assert highest >= min(most, 20) - 1 and highest > 0


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize(("options", "largest"), [({}, 2), ({"pairs_at_once": 1}, 1), ({"retained_pairs": 1}, 1)])
def test_graphs_are_as_small_as_asked_and_of_one_row(options, largest, transfer, monkeypatch, system, stacks):
    """A row's two pairs share a frame that no other row has; single pairs of different rows may go together."""
    made = []

    class Seen(PairGraph):
        def __init__(self, estimate, first, second) -> None:
            made.append((first, second))
            super().__init__(estimate, first, second)

    monkeypatch.setattr("attacks.victim.PairGraph", Seen)
    result, *_ = attack(system, stacks, 0, transfer, **{"retained_pairs": 1000, **options})
    assert max(len(first) for first, _ in made) == largest
    if largest == 2:
        order, length = result.frame_order, result.adversarial.shape[2]
        both = (order[..., 0] > 0) & (order[..., 0] < length - 1)  # of the first step, all of whose pairs are needed
        shared = sum(torch.equal(second[0], first[1]) for first, second in made if len(first) == 2)
        assert shared >= int(both.sum()) > 5


def graph(*keys: int) -> tuple[Tensor, PairGraph]:
    pairs = torch.rand(len(keys), 3, 4, 4)
    return torch.tensor(keys), PairGraph(lambda first, second: (first * second)[:, :2], pairs, pairs)


def test_the_oldest_make_room():
    retained = RetainedGraphs(5)
    for keys in ((1, 2), (3, 4, 5), (6,)):
        retained.keep(*graph(*keys))
    needed = torch.arange(1, 7)
    worth = retained.worth_walking(needed, torch.ones_like(needed))
    assert [one.which.tolist() for one in worth] == [[2, 3, 4], [5]]
    retained.keep(*graph(*range(10, 20)))  # does not fit by itself, and is at work anyway
    assert retained.worth_walking(torch.arange(20), torch.ones(20, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    ("keys", "times", "worth"),
    [
        ([2, 7, 9], [1, 1, 1], True),  # 3 estimates saved, 1 pair walked for nobody
        ([2, 7], [1, 1], True),  # 2 and 2
        ([7], [1], False),  # 1 and 3
        ([2, 7, 9], [3, 3, 3], True),  # 3 and 3: three walks
        ([2, 7, 9], [4, 4, 4], False),
        ([2, 7, 8, 9], [9, 9, 9, 9], True),
        ([2, 7, 8, 9], [3, 1, 3, 3], True),
        ([2, 7, 8, 9], [6, 1, 6, 6], False),  # 4 and 5
        ([1, 3], [1, 1], False),
    ],
)
def test_a_graph_is_walked_where_that_saves_as_much_as_it_wastes(keys, times, worth):
    retained = RetainedGraphs(100)
    kept = graph(9, 2, 7, 8)
    retained.keep(*kept)
    needed = retained.worth_walking(torch.tensor(keys), torch.tensor(times))
    assert len(needed) == worth
    if worth:
        assert needed[0].graph is kept[1]
        assert kept[0][needed[0].place].tolist() == torch.tensor(keys)[needed[0].which].tolist()
        assert sorted(kept[0][needed[0].place].tolist()) == keys
    every = torch.tensor([2, 7, 8, 9])
    assert len(retained.worth_walking(every, torch.ones_like(every))) == worth, "what is not worth it is let go"


def test_bad_numbers_are_named_and_results_do_not_depend_on_them():
    with pytest.raises(ValueError, match="retained_pairs is -1"):
        IterativeSaliency(refresh=True, retained_pairs=-1)
    with pytest.raises(ValueError, match=r"retained_pairs is 3.*without refresh"):
        IterativeSaliency(retained_pairs=3)
    retaining = IterativeSaliency(refresh=True, retained_pairs=3)
    assert attack_settings(retaining) == attack_settings(IterativeSaliency(refresh=True))
