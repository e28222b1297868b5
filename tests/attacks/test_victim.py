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


def test_only_live_pairs_are_estimated_and_their_frames_have_the_whole_gradient(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, count=4)
    clean = clean_pass(victim, frames, labels)
    used = torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(3)) < 0.6
    live = ~(used[:, :-1] & used[:, 1:])
    assert not live.all() and used.any(1).all()
    victim.pairs = 0
    flow = clean.flow.where(~live[..., None, None, None], torch.nan)  # what is live is not taken from here
    with under_attack(victim):
        estimated, logits, gradient = BatchedVictim(victim, 8).loss_gradient(frames, labels, flow, live)
    assert victim.pairs == int(live.sum())
    torch.testing.assert_close(estimated, clean.flow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits, clean.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient[~used], clean.gradient[~used], rtol=1e-10, atol=1e-14)


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
    def estimate_flow(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first[:, :2] ** 2

    def classify(self, flow: torch.Tensor) -> torch.Tensor:
        return flow.sum((3, 4)).flatten(1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.classify(self.estimate_flow(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)))


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
