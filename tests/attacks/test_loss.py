"""What attacks climb, against float64 and against the paper's cost where that is exact."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency
from attacks.loss import LOSSES
from attacks.one_shot import OneShot

SCALES = (1, 4, 16, 64)
EPSILONS = (0.003, 0.012)
ATTACKS = {
    "one-shot": OneShot,
    "RG": lambda **options: IterativeSaliency(refresh=True, **options),
}


def random_logits(margin: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(200, 7) logits whose label leads by `margin`."""
    logits = 3 * torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(200) % 7
    logits.scatter_(1, labels[:, None], -torch.inf)
    return logits.scatter(1, labels[:, None], logits.amax(1, keepdim=True) + margin).to(dtype), labels


def gradient(loss: str, logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(LOSSES[loss](logits, labels).sum(), logits)[0]


def test_cross_entropy_is_a_monotone_function_of_the_log_odds():
    for margin in (-20.0, -1.0, 0.0, 1.0, 20.0):
        logits, labels = random_logits(margin)
        odds, entropy = (LOSSES[loss](logits, labels) for loss in ("log-odds", "cross-entropy"))
        torch.testing.assert_close(F.softplus(odds, threshold=100), entropy, rtol=1e-12, atol=1e-15)
        slope = gradient("cross-entropy", logits, labels) / gradient("log-odds", logits, labels)
        torch.testing.assert_close(slope, odds.sigmoid()[:, None].expand_as(slope), rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [1.0, 16.0, 17.0, 90.0, 378.0])
def test_float32_has_the_gradient_of_the_log_odds_at_every_margin(margin):
    logits, labels = random_logits(margin, torch.float32)
    torch.testing.assert_close(
        gradient("log-odds", logits, labels).double(), gradient("log-odds", logits.double(), labels), rtol=1e-4, atol=0
    )
    at_label = gradient("cross-entropy", logits, labels).gather(1, labels[:, None])
    assert at_label.any() == (margin < 20)  # softmax - 1, which is 0 from where softmax is 1


def verdicts(systems: list[nn.Module], frames: Tensor, labels: Tensor, attack: str, loss: str) -> list[Tensor]:
    """(E, B) success on each system."""
    return [ATTACKS[attack](loss=loss)(system, frames, labels, EPSILONS).success for system in systems]


@pytest.mark.filterwarnings("ignore:the gradient of Scaled is zero")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("seed", range(3))
def test_robustness_does_not_come_from_the_scale_of_the_logits(seed, attack, system, scaled, stacks):
    toy = system(seed, dtype=torch.float32)
    frames, labels = stacks(toy, seed, count=16, wrong=100)
    toys = [scaled(toy, k) for k in SCALES]
    by_margin = verdicts(toys, frames, labels, attack, "margin")
    assert all(torch.equal(one, by_margin[0]) for one in by_margin)
    by_odds = verdicts(toys, frames, labels, attack, "log-odds")
    toy.double()
    exact = verdicts(toys, frames.double(), labels, attack, "log-odds")
    for one, other in zip(by_odds, exact, strict=True):
        assert torch.equal(one, other)
    toy.float()
    assert 0.2 <= float(by_odds[0].float().mean()) <= 0.95
    by_entropy = verdicts(toys, frames, labels, attack, "cross-entropy")
    assert int(by_entropy[-1].sum()) < int(by_entropy[0].sum())  # the fault that the toolbox shares


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", range(3))
def test_signs_are_those_of_float64(seed, scale, system, scaled, stacks):
    """But where the gradient is next to zero, which rounds to either side whatever the loss."""
    toy = system(seed, dtype=torch.float32)
    frames, labels = stacks(toy, seed, wrong=100)
    ours = clean_pass(scaled(toy, scale), frames, labels).gradient
    exact = clean_pass(scaled(toy.double(), scale), frames.double(), labels).gradient
    wrong = ours.sign() != exact.sign()
    assert wrong.float().mean() < 1e-3
    assert (exact[wrong].abs() < 1e-4 * exact.abs().max()).all()


class Rounding(nn.Module):
    """A system with a round() inside: its gradient is zero, whatever its robustness."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, frames: Tensor) -> Tensor:
        return self.system((frames * 255).round() / 255)


@pytest.mark.parametrize("attack", [OneShot(), IterativeSaliency(), IterativeSaliency(refresh=True)])
def test_a_gradient_of_zero_is_no_direction(attack, system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    frames = (frames * 255).round() / 255
    with pytest.warns(UserWarning, match=r"gradient of Rounding is zero everywhere.*round\(\)"):
        result = attack(Rounding(toy), frames, labels, (0.0, 0.035))
    assert result.no_gradient[1].tolist() == [attack.dense or attacked for attacked in result.attacked.tolist()]
    assert not result.attacked.all() and not result.no_gradient[0].any()
    assert torch.equal(result.adversarial[1], frames)
    assert not result.frames_perturbed.any() and (result.frame_order == -1).all() and not result.success.any()
    assert not result.pair_forwards.any()


class Ignoring(nn.Module):
    """Sees a stack's frames but for `unseen` ones, and the label's logit falls as they get darker."""

    def __init__(self, unseen: int = 0) -> None:
        super().__init__()
        self.unseen = unseen

    def forward(self, frames: Tensor) -> Tensor:
        seen = frames[:, self.unseen :].mean((1, 2, 3, 4))
        return torch.stack([seen, 0.3 * torch.ones_like(seen)], 1)


@pytest.mark.parametrize("attack", [OneShot(), IterativeSaliency(), IterativeSaliency(refresh=True)])
def test_frames_that_no_step_moves_are_not_perturbed(attack):
    """One that the system does not see, and one that is black already where it should get darker."""
    frames = torch.full((2, 5, 3, 4, 4), 0.9)
    frames[1, 3] = 0.0
    result = attack(Ignoring(unseen=2), frames, torch.zeros(2, dtype=torch.int64), (0.01,))
    assert result.attacked.all() and not result.success.any() and not result.no_gradient.any()
    assert result.frames_perturbed.tolist() == [[3, 2]]
    assert result.frame_order.tolist() == [[[2, 3, 4, -1, -1], [2, 4, -1, -1, -1]]]
    moved = (result.adversarial[0] != frames).flatten(2).any(2)
    assert moved.tolist() == [[False, False, True, True, True], [False, False, True, False, True]]
    if result.step_logits is not None:
        taken = ~result.step_logits[0].isnan().any(2)
        assert taken.sum(1).tolist() == [3, 2]


class Saturating(nn.Module):
    """Its logits stand still as soon as a frame has moved: a gradient that was there and is gone."""

    def forward(self, frames: Tensor) -> Tensor:
        mean = frames.mean((2, 3, 4))
        moved = (mean < 0.895).any(1, keepdim=True)
        logits = torch.stack([mean.sum(1), torch.zeros(len(frames))], 1)
        return torch.where(moved, logits.detach() + 0 * mean.sum(1, keepdim=True), logits)


def test_a_refreshed_gradient_of_zero_ends_the_attack():
    frames = torch.full((1, 5, 3, 4, 4), 0.9)
    with pytest.warns(UserWarning, match="gradient of Saturating is zero everywhere"):
        result = IterativeSaliency(refresh=True)(Saturating(), frames, torch.tensor([0]), (0.01,))
    assert result.no_gradient.all() and result.frames_perturbed.tolist() == [[1]]
    assert not IterativeSaliency()(Saturating(), frames, torch.tensor([0]), (0.01,)).no_gradient.any()


class Summing(nn.Module):
    """A pairwise system: the label's logit falls as frames get darker, in the pairs of `weights` (T-1,).

    A pair with a frame that has moved has no gradient if its flow saturates, a stack with one if its logits do.
    """

    pairwise = True
    differentiable = True

    def __init__(self, saturates: str = "", weights: tuple[float, ...] = (1, 1, 1, 1), second_only: bool = False):
        super().__init__()
        self.saturates, self.second_only = saturates, second_only
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        flow = (second if self.second_only else first + second)[:, :2]
        moved = (first.mean((1, 2, 3)) < 0.895) | (second.mean((1, 2, 3)) < 0.895)
        return held(flow, moved) if self.saturates == "estimate_flow" else flow

    def classify(self, flow: Tensor) -> Tensor:
        of_pairs = flow.mean((2, 3, 4))
        logits = torch.stack([of_pairs @ self.weights, torch.zeros(len(flow))], 1)
        return held(logits, (of_pairs < 1.795).any(1)) if self.saturates == "classify" else logits

    def forward(self, frames: Tensor) -> Tensor:
        flow = self.estimate_flow(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        return self.classify(flow.unflatten(0, (len(frames), -1)))


def held(values: Tensor, where: Tensor) -> Tensor:
    """The same values; where told, with a gradient of zero."""
    return torch.where(where.view(-1, *[1] * (values.ndim - 1)), values.detach() + 0 * values, values)


@pytest.mark.parametrize(
    ("saturates", "order", "moved"),
    [
        ("classify", "salient", [1]),
        ("classify", "first-to-last", [0]),
        ("estimate_flow", "salient", [1, 3]),  # each takes the gradient of its two pairs
        ("estimate_flow", "least-salient", [0, 1, 2, 3]),
        ("estimate_flow", "first-to-last", [0, 1, 2, 3]),
    ],
)
def test_a_pairwise_system_saturates_in_either_part(saturates, order, moved):
    frames = torch.full((1, 5, 3, 4, 4), 0.9)
    attack = IterativeSaliency(refresh=True, order=order)
    with pytest.warns(UserWarning, match="gradient of Summing is zero everywhere"):
        result = attack(Summing(saturates), frames, torch.tensor([0]), (0.01,))
    assert result.no_gradient.all() and not result.success.any()
    assert result.frame_order.tolist() == [[moved + [-1] * (5 - len(moved))]]


@pytest.mark.parametrize("order", ["salient", "least-salient", "first-to-last"])
def test_frames_that_no_pair_sees_are_no_fault(order):
    """Frames 3 and 4 have no gradient, and none of the pairs of frame 3 leads to frame 5, which has one."""
    frames = torch.full((1, 6, 3, 4, 4), 0.9)
    system = Summing(weights=(1, 1, 0, 0, 1), second_only=True)  # frame 0 is no second one
    result = IterativeSaliency(refresh=True, order=order)(system, frames, torch.tensor([0]), (0.01,))
    assert not result.no_gradient.any()
    assert sorted(result.frame_order[0, 0].tolist()) == [-1, -1, -1, 1, 2, 5]


def test_one_class_leaves_nothing_to_climb():
    with pytest.raises(ValueError, match="function has one class: there is no other"):
        OneShot()(lambda x: x.mean((1, 2, 3, 4))[:, None], torch.rand(2, 3, 3, 4, 4), torch.zeros(2).long(), (0.1,))
