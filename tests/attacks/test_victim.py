import pytest
import torch
from torch import nn

from attacks.clean_pass import clean_pass
from attacks.victim import BatchedVictim, under_attack


def _state(*modules: nn.Module) -> list[object]:
    return [
        *([m.training for module in modules for m in module.modules()]),
        *([p.requires_grad for module in modules for p in module.parameters()]),
    ]


@pytest.mark.parametrize("failing", [False, True])
def test_modes_and_requires_grad_come_back(failing, system):
    victim, judge = system(0), system(1, "black box")
    victim.train()
    victim.flow[1].eval()  # a frozen BatchNorm in a training network
    victim.classifier[0].weight.requires_grad_(False)
    judge.flow = victim.flow  # two systems may share a network
    before = _state(victim, judge)
    try:
        with under_attack(victim, judge, lambda frames: frames):
            assert not any(m.training for module in (victim, judge) for m in module.modules())
            assert not any(p.requires_grad for module in (victim, judge) for p in module.parameters())
            assert not torch.is_grad_enabled()
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert _state(victim, judge) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True)])
@pytest.mark.parametrize("before", [True, False])
def test_convolutions_are_as_precise_as_products(monkeypatch, precision, tf32, before):
    """cuDNN's own default is TF32; here it follows the one setting that people know, and comes back."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    standing = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        seen = []
        with under_attack(nn.Identity()):
            seen.append(torch.backends.cudnn.allow_tf32)
        assert seen == [tf32] and torch.backends.cudnn.allow_tf32 is before
    finally:
        torch.set_float32_matmul_precision(standing)


@pytest.mark.parametrize("pairs_at_once", [None, 1, 4])
def test_only_live_pairs_are_estimated_and_their_frames_have_the_whole_gradient(pairs_at_once, system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, count=4)
    frames, labels = frames[[0, 1, 2, 3, 1, 1, 2]], labels[[0, 1, 2, 3, 1, 1, 2]]  # equal rows share their estimates
    clean = clean_pass(victim, frames, labels)
    used = torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(3)) < 0.6
    live = ~(used[:, :-1] & used[:, 1:])
    assert not live.all() and used.any(1).all()
    same = torch.tensor([0, 1, 2, 3, 1, 1, 2])[:, None] * 100 + torch.arange(live.shape[1])
    victim.pairs = victim.pairs_differentiated = 0
    with under_attack(victim):
        batched = BatchedVictim(victim, 8, pairs_at_once)
        gradient, zero, estimates, walked = batched.refreshed_gradient(frames, labels, clean.flow, live, ~used, same)
    assert not zero.any()
    assert torch.equal(walked, live.sum(1))
    different = set(same[live].tolist())
    assert victim.pairs == len(different) == int(estimates.sum()) < int(live.sum())
    assert victim.pairs_differentiated == int(live.sum())
    torch.testing.assert_close(gradient[~used], clean.gradient[~used], rtol=1e-10, atol=1e-14)
    for row in range(len(frames)):  # each in the first row that has it
        earlier = set(same[:row][live[:row]].tolist())
        assert int(estimates[row]) == len(set(same[row][live[row]].tolist()) - earlier)


def test_graphs_of_few_pairs_are_alive_at_once(system, stacks):
    """All that autograd keeps, counted as it comes and goes."""
    victim = system(0)
    frames, labels = stacks(victim, 0)
    most = {}
    for pairs_at_once in (None, 1, 12, 18):
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            clean_pass(victim, frames, labels, pairs_at_once=pairs_at_once)
        most[pairs_at_once] = kept.most
    classifier = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(classifier.pack, classifier.unpack), under_attack(victim):
        flow = clean_pass(victim, frames, labels, gradient=False).flow.requires_grad_()
        with torch.enable_grad():
            victim.classify(flow)
    a_pair = (most[None] - classifier.most) / (len(frames) * (frames.shape[1] - 1))
    for pairs_at_once in (1, 12, 18):
        assert most[pairs_at_once] <= 1.02 * max(classifier.most, pairs_at_once * a_pair)
    assert most[1] < most[12] < most[18] < most[None]


class _Kept:
    """Counts the numbers that autograd holds for its backward passes."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> "_Held":
        return _Held(self, tensor)

    def unpack(self, held: "_Held") -> torch.Tensor:
        return held.tensor


class _Held:
    def __init__(self, kept: _Kept, tensor: torch.Tensor) -> None:
        self.kept, self.tensor = kept, tensor
        kept.now += tensor.numel()
        kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.tensor.numel()


def test_update_flow_touches_what_changed_and_nothing_else(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, count=5)
    whole = clean_pass(victim, frames, labels).flow
    flow = torch.zeros_like(whole)
    rows = torch.tensor([3, 0])
    changed = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    with under_attack(victim):
        BatchedVictim(victim, 8).update_flow(frames, flow, rows, changed)
    expected = torch.zeros_like(whole)
    for row, pair in ((3, 0), (3, 3), (0, 2)):
        expected[row, pair] = whole[row, pair]
    torch.testing.assert_close(flow, expected, rtol=1e-12, atol=1e-12)


class _Detached(nn.Module):
    """Says nothing about gradients, and has none for its frames; its own weights would have."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.system(frames.detach())


@pytest.mark.parametrize("wrap", [_Detached, lambda system: lambda frames: system(frames.detach())])
def test_a_system_that_loses_the_gradient_is_named(wrap, system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    with pytest.raises(ValueError, match=r"(_Detached|function) is not differentiable from frames to logits.*stop_on"):
        clean_pass(wrap(toy), frames, labels)


def test_any_callable_can_be_attacked(system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    gradient = clean_pass(lambda frames: toy(frames), frames, labels).gradient
    torch.testing.assert_close(gradient, clean_pass(toy, frames, labels).gradient, rtol=1e-10, atol=1e-14)


class _FirstFrameOnly(nn.Module):
    pairwise = True

    def estimate_flow(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first[:, :2] ** 2

    def classify(self, flow: torch.Tensor) -> torch.Tensor:
        return flow.sum((3, 4)).flatten(1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        flow = self.estimate_flow(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        return self.classify(flow.unflatten(0, (len(frames), -1)))


def test_a_frame_without_any_path_has_a_gradient_of_zero():
    frames = torch.rand(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    gradient = clean_pass(_FirstFrameOnly(), frames, torch.zeros(2, dtype=torch.int64)).gradient
    assert not gradient[:, 2].any() and gradient[:, :2, :2].any()


def test_weights_made_in_inference_mode_are_explained(system, stacks):
    frames, labels = stacks(system(0), 0)
    with torch.inference_mode():
        victim = type(system(0))().double()
    with pytest.raises(RuntimeError, match=r"ToySystem holds tensors made in inference mode.*`inference_mode: false`"):
        clean_pass(victim, frames, labels)


@pytest.mark.parametrize("gradient", [True, False])
def test_nan_logits_are_no_verdict(gradient, system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    with torch.no_grad():
        victim.classifier[-1].bias[1] = torch.nan
    with pytest.raises(FloatingPointError, match="ToySystem gave NaN logits for 6 of 6 stacks"):
        clean_pass(victim, frames, labels, gradient=gradient)


def test_logits_of_another_rank_are_named(stacks, system):
    frames, labels = stacks(system(0), 0)
    with pytest.raises(ValueError, match=r"logits of shape \(6, 1, 4\): \(B, C\) is needed"):
        clean_pass(lambda frames: system(0)(frames)[:, None], frames, labels)
