"""Against the adversarial-robustness-toolbox's FrameSaliencyAttack, which implements this paper, where it works right:
one example a call, the frame axis named, eps_step = eps. And its faults, each shown there and not found here.
"""

import warnings

import pytest
import torch
from art.attacks.evasion import FastGradientMethod, FrameSaliencyAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.iterative_saliency import IterativeSaliency
from attacks.one_shot import OneShot

CLASSES, LENGTH = 4, 6  # of the toys
EPSILONS = (0.003, 0.006, 0.012, 0.035)
MODES: dict[str, Attack] = {
    "one_shot": OneShot(loss="cross-entropy"),
    "iterative_saliency": IterativeSaliency(loss="cross-entropy"),
    "iterative_saliency_refresh": IterativeSaliency(refresh=True, loss="cross-entropy"),
}
every_mode = pytest.mark.parametrize("mode", MODES)


def toolbox(system: nn.Module, mode: str, epsilon: float, shape: tuple[int, ...], frame_index: int = 1):
    classifier = PyTorchClassifier(system, nn.CrossEntropyLoss(), shape, CLASSES, clip_values=(0, 1), device_type="cpu")
    step = FastGradientMethod(classifier, eps=epsilon, eps_step=epsilon)
    return FrameSaliencyAttack(classifier, step, method=mode, frame_index=frame_index, verbose=False)


def by_toolbox(system: nn.Module, mode: str, epsilon: float, frames: Tensor, labels: Tensor) -> Tensor:
    attack = toolbox(system, mode, epsilon, tuple(frames.shape[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = attack.generate(frames.numpy(), labels.numpy())
    return torch.from_numpy(made)


def assert_same_frames(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for the rounding of their projection, x + (x + d - x), of a value in [0, 1]."""
    assert ours.dtype is theirs.dtype is torch.float32
    assert (ours - theirs).abs().max() <= 2**-24


@every_mode
@pytest.mark.parametrize("seed", range(4))
def test_one_example_a_call_gives_equal_frames(seed, mode, system, stacks):
    victim = system(seed, dtype=torch.float32)
    frames, labels = stacks(victim, seed, wrong=100)
    result = MODES[mode](victim, frames, labels, EPSILONS)
    lengths = set()
    for e, epsilon in enumerate(EPSILONS):
        for b in range(len(frames)):
            theirs = by_toolbox(victim, mode, epsilon, frames[b : b + 1], labels[b : b + 1])[0]
            assert_same_frames(result.adversarial[e, b], theirs)
            lengths.add(int(result.frames_perturbed[e, b]))
    assert lengths == {LENGTH} if mode == "one_shot" else len(lengths) > 3


@every_mode
def test_a_sure_system_only_seems_robust_to_the_cross_entropy(mode, system, scaled, stacks):
    """There, and here with its loss: a softmax of 1 leaves no gradient. The log-odds fool the same system."""
    victim = system(0, dtype=torch.float32)
    frames, labels = stacks(victim, 0, wrong=100)
    sure, epsilon = scaled(victim, 4096.0), EPSILONS[-1]
    clean = sure(frames)
    saturated = clean.softmax(1).gather(1, labels[:, None])[:, 0] == 1
    assert saturated.all()
    attack = MODES[mode]
    with pytest.warns(UserWarning, match="gradient of Scaled is zero everywhere"):
        result = attack(sure, frames, labels, (epsilon,))
    for b in range(len(frames)):
        theirs = by_toolbox(sure, mode, epsilon, frames[b : b + 1], labels[b : b + 1])[0]
        assert torch.equal(theirs, frames[b])
    assert torch.equal(result.adversarial[0], frames) and result.no_gradient.all() and not result.success.any()
    by_log_odds = type(attack)(**({"refresh": attack.refresh} if mode != "one_shot" else {}))
    result = by_log_odds(sure, frames, labels, (epsilon,))
    assert result.success.any() and not result.no_gradient.any()


def test_masks_of_a_batch_are_not_mixed(system, stacks):
    """There, the refresh mode perturbs frames by the masks of other examples, some twice: more than ε."""
    victim = system(1, dtype=torch.float32)
    frames, labels = stacks(victim, 1, wrong=100)
    epsilon = EPSILONS[0]
    theirs = by_toolbox(victim, "iterative_saliency_refresh", epsilon, frames, labels)
    ours = MODES["iterative_saliency_refresh"](victim, frames, labels, (epsilon,)).adversarial[0]
    alone = torch.cat(
        [
            MODES["iterative_saliency_refresh"](victim, frames[b : b + 1], labels[b : b + 1], (epsilon,)).adversarial[0]
            for b in range(len(frames))
        ]
    )
    assert (theirs - frames).abs().max() > 1.9 * epsilon
    assert (ours - frames).abs().max() <= epsilon + 2**-24
    assert torch.equal(ours, alone)


@pytest.mark.parametrize("mode", ["iterative_saliency", "iterative_saliency_refresh"])
def test_what_is_misclassified_already_is_no_success(mode, system, stacks):
    """There, it is attacked until its prediction changes, even if that is to the right class."""
    victim = system(0, dtype=torch.float32)
    frames, labels = stacks(victim, 0, wrong=1)
    theirs = torch.cat([by_toolbox(victim, mode, EPSILONS[-1], frames[b : b + 1], labels[b : b + 1]) for b in range(6)])
    assert (theirs != frames).flatten(1).any(1).all()
    result = MODES[mode](victim, frames, labels, EPSILONS)
    assert not result.attacked.any() and not result.success.any()
    assert torch.equal(result.adversarial, frames.expand_as(result.adversarial))


@pytest.mark.parametrize("mode", ["iterative_saliency", "iterative_saliency_refresh"])
def test_gradient_and_success_may_be_of_two_systems(mode, system, stacks, assert_equals_reference):
    """There, the attack and its step must hold the same classifier."""
    victim, judge = system(0), system(0, "black box")
    frames, labels = stacks(judge, 0)
    attack = toolbox(victim, mode, EPSILONS[0], tuple(frames.shape[1:]))
    other = toolbox(judge, mode, EPSILONS[0], tuple(frames.shape[1:]))
    with pytest.raises(Warning, match="Different classifiers"):
        FrameSaliencyAttack(attack.estimator, other.attacker, method=mode)
    result = MODES[mode](victim, frames, labels, EPSILONS, stop_on=judge)
    name = MODES[mode].name
    assert_equals_reference(result, name, victim, frames, labels, EPSILONS, judge)


def test_the_frame_axis_cannot_be_the_colours(system, stacks):
    """There, the axis that is perturbed defaults to 1, the colours of (N, C, T, H, W): here that shape is refused."""
    victim = system(0, dtype=torch.float32)
    frames, labels = stacks(victim, 0)
    colours_first = frames.transpose(1, 2).contiguous()

    class ColoursFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return victim(x.transpose(1, 2))

    default = FrameSaliencyAttack.__init__.__defaults__
    assert default is not None and 1 in default
    theirs = by_toolbox(ColoursFirst(), "iterative_saliency", EPSILONS[0], colours_first[:1], labels[:1])
    moved = (theirs != colours_first[:1]).flatten(3).any(3)[0]  # colour x frame
    assert moved.any() and (moved.all(1) | ~moved.any(1)).all()  # whole colours of every frame
    with pytest.raises(ValueError, match=r"shape \(6, 3, 6, 12, 14\): \(B, T, 3, H, W\)"):
        OneShot()(ColoursFirst(), colours_first, labels, EPSILONS)


@every_mode
def test_costs_less_than_the_toolbox(mode, system, stacks):
    """Whole passes per stack, k frames needed: theirs 4 + 2k and 2, or 4 + 4k and 2 + 2k; ours in pairs."""
    victim = system(2, dtype=torch.float32)
    frames, labels = stacks(victim, 2, wrong=100)
    pairs = LENGTH - 1
    for b in range(len(frames)):
        result = MODES[mode](victim, frames[b : b + 1], labels[b : b + 1], EPSILONS[:1])
        k = int(result.frames_perturbed)
        victim.pairs = victim.pairs_differentiated = 0
        by_toolbox(victim, mode, EPSILONS[0], frames[b : b + 1], labels[b : b + 1])
        theirs = victim.pairs / pairs, victim.pairs_differentiated / pairs
        ours = (pairs + int(result.pair_forwards)) / pairs, (pairs + int(result.pair_backwards)) / pairs
        if mode == "one_shot":
            assert theirs == (1, 1) and ours == (2, 1)  # ours is judged, too
        elif mode == "iterative_saliency":
            assert theirs == (4 + 2 * k, 2) and ours[0] < 1 + k and ours[1] == 1
        else:
            last = 2 * (k == LENGTH)  # they refresh once more after a success, not after the last frame
            assert theirs == (4 + 4 * k - last, 2 + 2 * k - last) and ours[0] < 2 * k + 1 and ours[1] <= k
