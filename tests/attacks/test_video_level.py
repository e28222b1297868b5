import pytest
import torch

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency
from attacks.video_level import VideoOutcome, attack_all_stacks, attack_stack_after_stack, video_prediction

EPSILONS = (0.003, 0.006, 0.035)


def _probabilities(*first_class: float) -> torch.Tensor:
    """Stacks of a two-class video, by the probability of class 0."""
    p = torch.tensor(first_class)
    return torch.stack([p, 1 - p], 1)


def test_the_prediction_is_that_of_the_mean():
    # Two of three stacks say class 1, the mean says class 0: no vote.
    prediction, confidence = video_prediction(_probabilities(0.95, 0.4, 0.4))
    assert prediction == 0 and confidence == pytest.approx(1.75 / 3)


def test_one_shot_perturbs_every_stack():
    outcome = attack_all_stacks(_probabilities(0.9, 0.8), _probabilities(0.2, 0.3), torch.tensor([11, 11]), 0)
    assert outcome == VideoOutcome(1, pytest.approx(0.75), True, True, 2, 22)


def test_one_shot_on_a_video_that_is_wrong_when_clean_is_no_success():
    outcome = attack_all_stacks(_probabilities(0.1, 0.2), _probabilities(0.2, 0.3), torch.tensor([11, 11]), 0)
    assert outcome == VideoOutcome(1, pytest.approx(0.75), False, False, 2, 22)


def test_iterative_attacks_stop_when_the_video_is_lost():
    clean, adversarial = _probabilities(0.9, 0.9, 0.8, 0.9), _probabilities(0.1, 0.1, 0.1, 0.1)
    outcome = attack_stack_after_stack(clean, adversarial, torch.ones(4).bool(), torch.tensor([2, 3, 5, 7]), 0)
    # means of class 0: 0.675, then 0.475
    assert outcome == VideoOutcome(1, pytest.approx(0.525), True, True, 2, 5)


def test_iterative_attacks_skip_stacks_that_are_wrong_already():
    clean, adversarial = _probabilities(0.9, 0.4, 0.9), _probabilities(0.45, 0.4, 0.45)
    outcome = attack_stack_after_stack(
        clean, adversarial, torch.tensor([True, False, True]), torch.tensor([2, 0, 5]), 0
    )
    # means of class 0: 0.733, 0.583, 0.433
    assert outcome == VideoOutcome(1, pytest.approx(1 - 1.3 / 3), True, True, 2, 7)


def test_a_stack_that_withstood_stays_perturbed():
    clean, adversarial = _probabilities(0.9, 0.9), _probabilities(0.6, 0.3)
    outcome = attack_stack_after_stack(clean, adversarial, torch.ones(2).bool(), torch.tensor([11, 4]), 0)
    assert outcome == VideoOutcome(1, pytest.approx(0.55), True, True, 2, 15)


def test_a_video_that_is_wrong_when_clean_is_left_alone():
    clean, adversarial = _probabilities(0.9, 0.0, 0.0), _probabilities(0.0, 0.0, 0.0)
    outcome = attack_stack_after_stack(clean, adversarial, torch.tensor([1, 0, 0]).bool(), torch.tensor([2, 0, 0]), 0)
    assert outcome == VideoOutcome(1, pytest.approx(0.7), False, False, 0, 0)


def test_at_epsilon_zero_nothing_is_counted():
    clean, zero = _probabilities(0.9, 0.9), torch.zeros(2, dtype=torch.int64)
    assert attack_all_stacks(clean, clean, zero, 0) == VideoOutcome(0, pytest.approx(0.9), True, False, 0, 0)
    outcome = attack_stack_after_stack(clean, clean, torch.ones(2).bool(), zero, 0)
    assert outcome == VideoOutcome(0, pytest.approx(0.9), True, False, 0, 0)


@pytest.mark.parametrize("seed", range(50))
def test_equals_the_first_lost_prefix(seed):
    """From the definition: the fewest stacks, in order, whose replacement loses the video; all where none does."""
    generator = torch.Generator().manual_seed(seed)
    stacks, label = 1 + seed % 6, seed % 3
    bias = 1.5 * torch.eye(3)[label]
    clean = (torch.randn(stacks, 3, generator=generator) + bias).softmax(1)
    adversarial = (torch.randn(stacks, 3, generator=generator) - bias * (seed % 2)).softmax(1)
    attacked = clean.argmax(1) == label
    frames = torch.randint(1, 12, (stacks,), generator=generator) * attacked

    def replaced(count: int) -> torch.Tensor:
        chosen = attacked & (attacked.cumsum(0) <= count)
        return adversarial.where(chosen[:, None], clean)

    outcome = attack_stack_after_stack(clean, adversarial, attacked, frames, label)
    total = int(attacked.sum()) if int(clean.mean(0).argmax()) == label else 0
    lost = [k for k in range(total + 1) if int(replaced(k).mean(0).argmax()) != label]
    count = lost[0] if lost else total
    assert outcome.stacks_perturbed == count
    assert outcome.frames_perturbed == int(frames[attacked][:count].sum())
    assert outcome.prediction == int(replaced(count).mean(0).argmax())
    assert outcome.confidence == pytest.approx(float(replaced(count).mean(0).max()), rel=1e-6)
    assert outcome.attacked == (int(clean.mean(0).argmax()) == label)
    assert outcome.success == (outcome.attacked and bool(lost))


@pytest.mark.parametrize("mode", ["iterative-saliency", "iterative-saliency-RG"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_plain_attack_stack_after_stack(seed, mode, system, stacks, reference):
    """Section 5.2 as it stands: attack one stack, judge the video, go on with the next only if it is still right."""
    victim = system(seed)
    frames, _ = stacks(victim, seed, count=7)
    with torch.no_grad():
        label = int(victim(frames).softmax(1).mean(0).argmax())
    labels = torch.full((len(frames),), label)
    attack = IterativeSaliency(refresh=mode == "iterative-saliency-RG")
    result = attack(victim, frames, labels, EPSILONS)
    for e, epsilon in enumerate(EPSILONS):
        with torch.no_grad():
            current = victim(frames).softmax(1)
        stacks_perturbed = frames_perturbed = 0
        for s in range(len(frames)):
            plain = reference(mode, victim, frames[s], label, epsilon)
            if not plain.attacked:
                continue
            current[s] = plain.logits.softmax(0)
            stacks_perturbed += 1
            frames_perturbed += len(plain.frame_order)
            if int(current.mean(0).argmax()) != label:
                break
        lost = int(current.mean(0).argmax()) != label
        outcome = attack_stack_after_stack(
            clean_pass(victim, frames, labels, gradient=False).logits.softmax(1),
            result.logits[e].softmax(1),
            result.attacked,
            result.frames_perturbed[e],
            label,
        )
        assert outcome.attacked and outcome.success == lost
        assert (outcome.stacks_perturbed, outcome.frames_perturbed) == (stacks_perturbed, frames_perturbed)
        assert outcome.prediction == int(current.mean(0).argmax())
        assert outcome.confidence == pytest.approx(float(current.mean(0).max()), rel=1e-9)


def test_mismatched_results_are_named():
    clean = _probabilities(0.9, 0.9)
    with pytest.raises(ValueError, match=r"shapes \[\(2, 2\), \(1, 2\), \(2,\)\]"):
        attack_all_stacks(clean, clean[:1], torch.tensor([11, 11]), 0)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        attack_stack_after_stack(clean, clean, torch.ones(2).bool(), torch.ones(3).long(), 0)
