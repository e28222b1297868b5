import pytest
import torch

from attacks.clean_pass import clean_pass
from attacks.one_shot import OneShot

EPSILONS = (0.003, 0.006, 0.012)


@pytest.mark.parametrize("kind", ["pairwise", "plain", "transfer"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_plain_algorithm(seed, kind, system, plain, stacks, assert_equals_reference):
    victim = system(seed)
    judge = system(seed, "black box") if kind == "transfer" else None
    frames, labels = stacks(judge or victim, seed)
    result = OneShot()(plain(victim) if kind == "plain" else victim, frames, labels, EPSILONS, stop_on=judge)
    assert_equals_reference(result, "one-shot", victim, frames, labels, EPSILONS, judge)


def test_all_frames_of_all_stacks_are_perturbed(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, wrong=2)
    result = OneShot()(victim, frames, labels, EPSILONS)
    assert not result.attacked.all() and result.attacked.any()
    assert (result.frames_perturbed == frames.shape[1]).all()
    assert (result.adversarial != frames).flatten(3).any(3).all()
    assert torch.equal(result.frame_order, torch.arange(frames.shape[1]).expand_as(result.frame_order))
    assert not result.success[:, ~result.attacked].any()


def test_the_example_does_not_depend_on_the_judge(system, stacks):
    victim, judge = system(0), system(0, "black box")
    frames, labels = stacks(judge, 0)
    white = OneShot()(victim, frames, labels, EPSILONS)
    transferred = OneShot()(victim, frames, labels, EPSILONS, stop_on=judge)
    assert torch.equal(white.adversarial, transferred.adversarial)
    with torch.no_grad():
        for e in range(len(EPSILONS)):
            torch.testing.assert_close(transferred.logits[e], judge(white.adversarial[e]), rtol=1e-9, atol=1e-9)
        assert torch.equal(transferred.attacked, judge(frames).argmax(1) == labels)
    wrong = transferred.predictions != labels
    assert torch.equal(transferred.success, wrong & transferred.attacked)
    assert not torch.equal(white.success, transferred.success)


def test_costs_one_forward_and_backward_and_one_check_for_each_epsilon(system, stacks):
    victim, judge = system(0), system(0, "black box")
    frames, labels = stacks(judge, 0)
    pairs = len(frames) * (frames.shape[1] - 1)
    victim.pairs = judge.pairs = 0
    OneShot()(victim, frames, labels, EPSILONS, stop_on=judge)
    check = 2 * (frames.shape[1] - 1)
    assert (victim.pairs, judge.pairs) == (pairs + check, (1 + len(EPSILONS)) * pairs + check)

    clean = clean_pass(victim, frames, labels)
    judged = clean_pass(judge, frames, labels, gradient=False)
    victim.pairs = judge.pairs = 0
    OneShot()(victim, frames, labels, EPSILONS, stop_on=judge, clean=clean, stop_on_clean=judged)
    assert (victim.pairs, judge.pairs) == (0, len(EPSILONS) * pairs)
