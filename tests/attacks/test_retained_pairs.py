"""What is retained of pairs: it gives the same graphs; what it saves, how much there is, and who cannot have it."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency, Order
from attacks.retained_pairs import PairGraph, RetainedPairs
from attacks.settings import attack_settings
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.raft import RAFT

EPSILONS = (0.003, 0.006, 0.012)
CASES = [(seed, transfer) for seed in range(4) for transfer in (False, True)]


@pytest.fixture
def attack(system, stacks, computed):
    """The result of RG, and the pairs that the attacked system computed and differentiated."""

    def attack(seed: int, transfer: bool, **options):
        victim = system(seed)
        judge = system(seed, "black box") if transfer else None
        frames, labels = stacks(judge or victim, seed)
        with computed() as counts:
            result = IterativeSaliency(refresh=True, **options)(victim, frames, labels, EPSILONS, stop_on=judge)
        return result, *counts.of(victim)

    return attack


def _pairs(n: int, length: int) -> set[int]:
    return {n - 1, n} & set(range(length - 1))


@pytest.mark.parametrize(("seed", "transfer"), CASES)
def test_each_pair_of_frames_is_estimated_once(seed, transfer, attack):
    result, computed, walked = attack(seed, transfer, retained_pairs=10_000)
    count, length = result.adversarial.shape[1:3]
    changed = backwards = 0
    for e in range(len(EPSILONS)):
        for b in range(count):
            order = result.frame_order[e, b, : int(result.frames_perturbed[e, b])].tolist()
            for k in range(1, len(order) + 1):
                if k < len(order) or not transfer:  # the last step is the judge's to check
                    changed += len(_pairs(order[k - 1], length))
                if k < len(order):
                    live = {pair for m in range(length) if m not in order[:k] for pair in _pairs(m, length)}
                    backwards += len(live)
    assert backwards > 30 and changed > 30
    assert walked == count * (length - 1) + backwards
    assert computed == (count + 2) * (length - 1) + changed  # a call holds the system against itself on one stack


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("retained", [1, 7, 25, None, 10_000])
@pytest.mark.parametrize(("seed", "transfer"), CASES)
def test_results_do_not_depend_on_it_and_what_is_saved_is_counted(seed, transfer, retained, order, attack):
    anew, of_anew, walked_anew = attack(seed, transfer, order=order, retained_pairs=0)
    result, computed, walked = attack(seed, transfer, order=order, retained_pairs=retained)
    assert torch.equal(result.frame_order, anew.frame_order)
    assert torch.equal(result.adversarial, anew.adversarial)
    torch.testing.assert_close(result.logits, anew.logits, rtol=1e-12, atol=1e-12)
    assert torch.equal(result.pair_backwards, anew.pair_backwards) and walked == walked_anew
    # The clean pass counts for no attack; its pairs are the same in both.
    assert of_anew - computed == int((anew.pair_forwards - result.pair_forwards).sum())
    saved = of_anew - computed
    assert saved > 0 if retained == 10_000 else saved >= 0


def test_what_a_clean_pass_retained_is_one_attacks(system, stacks, computed):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    attack = IterativeSaliency(refresh=True, retained_pairs=1000)
    clean = clean_pass(victim, frames, labels, retained=attack.retain(frames, len(EPSILONS)))
    results, pairs = [], []
    for given, epsilons in ((clean, EPSILONS), (clean, EPSILONS), (clean, (0.02, 0.03)), (None, (0.02, 0.03))):
        with computed() as counts:
            results.append(attack(victim, frames, labels, epsilons, clean=given))
        pairs.append(counts.of(victim)[0])
    for one, other in ((results[0], results[1]), (results[2], results[3])):
        assert torch.equal(one.adversarial, other.adversarial)
        torch.testing.assert_close(one.step_logits, other.step_logits, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert pairs[0] == int(results[0].pair_forwards.sum()) < pairs[1] == int(results[1].pair_forwards.sum())


def test_more_retained_saves_more(attack):
    computed = [attack(0, False, retained_pairs=retained)[1] for retained in (0, 5, 15, 30, 60, 10_000)]
    assert computed == sorted(computed, reverse=True) and len(set(computed)) >= 5


class Siamese(nn.Module):
    """An encoder of all frames, in a batch of twice the pairs; a constant of batch one; channels as a batch; and one
    convolution of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.grid = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.across, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        features = F.elu(self.encoder(torch.cat([first, second])), inplace=True).chunk(2)
        lines = self.across(torch.cat(features, 1).flatten(0, 1)[:, None])[:, 0].unflatten(0, (len(first), -1))
        return self.out(lines + self.grid(torch.ones(1, 1, *first.shape[2:], dtype=first.dtype))).tanh()


def two_frames(estimator: nn.Module):
    return lambda first, second: estimator(torch.stack((first, second), 1))[:, 0]


def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield "siamese", Siamese()
        yield "RAFT", two_frames(RAFT(size="small", iterations=2))
        for variant in ("FlowNet2S", "FlowNet2C", "FlowNet2SD", "FlowNet2"):
            yield variant, two_frames(FlowNet2Estimator(variant=variant, width=0.125))


@pytest.mark.parametrize(("name", "estimate"), [pytest.param(*network, id=network[0]) for network in networks()])
def test_any_retained_pairs_make_a_graph(name, estimate, computed):
    """Of batches of one, three and four, those of the second not retained; flow and gradient are those of a new one."""
    size = 128 if name == "RAFT" else 64
    frames = torch.rand(9, 3, size, size, generator=torch.Generator().manual_seed(0))
    retained, flow = RetainedPairs(6), []
    with torch.no_grad():
        for first, keys in ((0, [10]), (1, [11, -1, 13]), (4, [14, 15, 16, 17])):
            batch = slice(first, first + len(keys)), slice(first + 1, first + 1 + len(keys))
            flow.append(retained.estimate(estimate, frames[batch[0]], frames[batch[1]], torch.tensor(keys)))
    assert retained.has(torch.tensor([10, 11, 12, 13, 14, 15, 16, 17])).tolist() == [0, 1, 0, 1, 1, 1, 1, 1]
    wanted = torch.tensor([17, 11, 14, 13])
    of_wanted = torch.cat(flow)[wanted - 10]
    with computed() as of_whole:
        whole = PairGraph(estimate, frames[wanted - 10], frames[wanted - 9])
    with computed() as counts:
        graph = retained.graph(estimate, frames[wanted - 10], frames[wanted - 9], wanted)
    again = {weight for weight, rows in counts.forwards.items() if rows}
    batches = {of_whole.forwards[weight] for weight in again}
    assert batches == {"siamese": {1, 8, 32}, "RAFT": {8}}.get(name, set())
    assert of_whole.forwards.keys() > again
    torch.testing.assert_close(graph.flow, of_wanted, rtol=1e-5, atol=1e-5)
    seed = torch.rand(graph.flow.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    for one, other in zip(
        torch.autograd.grad(graph.flow, graph.frames, seed),
        torch.autograd.grad(whole.flow, whole.frames, seed),
        strict=True,
    ):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def estimated(retained: RetainedPairs, estimate, *keys: int) -> None:
    pairs = torch.rand(len(keys), 3, 4, 4)
    retained.estimate(estimate, pairs, pairs, torch.tensor(keys))


def kept(retained: RetainedPairs) -> list[int]:
    return [key for key in range(30) if retained.has(torch.tensor([key]))]


def test_the_oldest_make_room_and_what_is_dropped_before_them():
    retained, estimate = RetainedPairs(5), Siamese()
    for keys in ((1, 2), (-1, 3), (4, 5, -1), (6,)):
        estimated(retained, estimate, *keys)
    assert kept(retained) in ([2, 3, 4, 5, 6], [1, 3, 4, 5, 6])
    retained.drop_all_but(torch.tensor([-1, 3, 5, 6, 20]))
    assert kept(retained) == [3, 5, 6]
    estimated(retained, estimate, 7, 8)
    assert kept(retained) == [3, 5, 6, 7, 8]
    estimated(retained, estimate, *range(10, 20))  # more than there is room for
    assert kept(retained) == [10, 11, 12, 13, 14]
    assert not retained.has(torch.tensor([-1, 20])).any()


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"retained_pairs": 1}, 1),
        ({"retained_pairs": 7}, 7),
        ({"batch_size": 2}, 2 * 5),
        ({"batch_size": 2, "pairs_at_once": 3}, 3),
        ({"retained_pairs": 10**9}, (6 + 3 * 6) * 5),
    ],
)
def test_memory_is_that_of_so_many_pairs(options, rows, monkeypatch, system, stacks):
    seen = []

    class Seen(RetainedPairs):
        def clear(self) -> None:
            seen.append(([len(output) for output in self._outputs], len(self._flow)))
            super().clear()
            assert not self._outputs and self._flow is None

    monkeypatch.setattr("attacks.iterative_saliency.RetainedPairs", Seen)
    victim = system(0)
    frames, labels = stacks(victim, 0)
    IterativeSaliency(refresh=True, **options)(victim, frames, labels, EPSILONS)
    assert seen == [([rows, rows], rows)]  # two convolutions, and flow


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_graph_has_the_layout_that_the_convolution_chose(layout):
    """In another the gradient takes a quarter longer on a CPU."""
    retained, seen = RetainedPairs(4), []

    def estimate(first: Tensor, second: Tensor) -> Tensor:
        output = F.conv2d(torch.cat([first, second], 1).to(memory_format=layout), torch.ones(2, 6, 3, 3))
        seen.append(output.stride())
        return output

    frames = torch.rand(5, 3, 8, 8)
    retained.estimate(estimate, frames[:4], frames[1:], torch.arange(4))
    retained.graph(estimate, frames[[3, 0]], frames[[4, 1]], torch.tensor([3, 0]))
    assert seen[0] == seen[1]
    assert retained._outputs[0].stride() == seen[0]


def test_without_convolutions_nothing_is_retained():
    retained = RetainedPairs(5)
    estimated(retained, lambda first, second: (first * second)[:, :2], 1, 2)
    assert kept(retained) == []


def test_an_estimate_that_failed_leaves_nothing():
    """Not even what stood where its own would have."""
    retained, estimate = RetainedPairs(3), Siamese()
    estimated(retained, estimate, 1, 2, 3)

    def fails(first: Tensor, second: Tensor) -> Tensor:
        estimate(first, second)
        raise MemoryError

    with pytest.raises(MemoryError):
        estimated(retained, fails, 4, 5)
    assert kept(retained) in ([1], [2], [3])


class Together(nn.Conv2d):
    """Takes from each flow the mean of its batch."""

    def __init__(self) -> None:
        super().__init__(6, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        flow = super().forward(torch.cat([first, second], 1))
        return flow - flow.mean(0)


class ByChance(Together):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return F.dropout(nn.Conv2d.forward(self, torch.cat([first, second], 1)), 0.5)


@pytest.mark.parametrize("estimate", [Together(), ByChance()])
def test_pairs_that_depend_on_others_or_on_chance_are_refused(estimate):
    frames, retained = torch.rand(6, 3, 8, 8), RetainedPairs(9)
    with torch.no_grad():
        retained.estimate(estimate, frames[:4], frames[1:5], torch.arange(4))
        retained.estimate(estimate, frames[4:5], frames[5:6], torch.tensor([4]))
    with pytest.raises(ValueError, match=r"up to \S+ px from what it was.* retained_pairs=0"):
        retained.graph(estimate, frames[[1, 4]], frames[[2, 5]], torch.tensor([1, 4]))


def test_bad_numbers_are_named_and_records_do_not_depend_on_them():
    with pytest.raises(ValueError, match="retained_pairs is -1"):
        IterativeSaliency(refresh=True, retained_pairs=-1)
    with pytest.raises(ValueError, match=r"retained_pairs is 3.*without refresh"):
        IterativeSaliency(retained_pairs=3)
    retaining = IterativeSaliency(refresh=True, retained_pairs=3)
    assert attack_settings(retaining) == attack_settings(IterativeSaliency(refresh=True))
