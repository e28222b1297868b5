"""What holds for every attack."""

from typing import get_args

import pytest
import torch

from attacks.attack import perturb
from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency, Order
from attacks.noise import Noise
from attacks.one_shot import OneShot
from attacks.settings import attack_settings

EPSILONS = (0.003, 0.012, 0.035)
ATTACKS = [OneShot(), IterativeSaliency(), IterativeSaliency(refresh=True, retained_pairs=1000), Noise()]


def refreshing(**options):
    """With room for all pairs: where some make room for others, the costs depend on the batch."""
    return IterativeSaliency(refresh=True, retained_pairs=1000, **options)


every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def _assert_same(result, expected, rtol=1e-9, costs=True):
    """Without `costs` for calls with other ε, which share other estimates."""
    for field, value in result._asdict().items():
        other = getattr(expected, field)
        if field == "first_step" or (field == "pair_forwards" and not costs):
            continue
        if value is None:
            assert other is None, field
        elif field in ("logits", "step_logits", "flow"):
            torch.testing.assert_close(value, other, rtol=rtol, atol=rtol, equal_nan=True)
        else:
            assert torch.equal(value, other), field


def _part(result, e, b):
    """Of the ε in the slice e and the stacks in the slice b."""
    fields = result._asdict()
    first_step = fields.pop("first_step")
    parts = {f: v if v is None else v[b] if f in ("attacked", "labels") else v[e, b] for f, v in fields.items()}
    return type(result)(**parts, first_step=first_step)


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transfer", [False, True])
def test_stays_in_the_ball_and_in_the_range(attack, dtype, transfer, system, stacks):
    victim = system(0, dtype=dtype)
    judge = system(0, "black box", dtype=dtype) if transfer else None
    frames, labels = stacks(judge or victim, 0)
    result = attack(victim, frames, labels, (*EPSILONS, 1.0), stop_on=judge)
    assert result.adversarial.dtype is dtype
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    for epsilon, adversarial in zip((*EPSILONS, 1.0), result.adversarial, strict=True):
        distance = (adversarial.double() - frames.double()).abs().max()
        assert 0 < distance <= epsilon + torch.finfo(dtype).eps / 2


def test_eq_3_keeps_to_half_a_unit_in_the_last_place():
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(64, 3, 40, 40, generator=generator)
    epsilon = torch.rand(64, generator=generator) * 0.05
    direction = torch.randint(-1, 2, frames.shape, generator=generator)
    moved = perturb(frames, direction, epsilon)
    distance = (moved.double() - frames.double()).abs()
    assert (distance <= epsilon.double().view(-1, 1, 1, 1) + 2.0**-25).all()
    assert torch.equal(moved[direction == 0], frames[direction == 0])
    assert moved.min() >= 0 and moved.max() <= 1


@every_attack
@pytest.mark.parametrize("transfer", [False, True])
def test_at_epsilon_zero_the_input_comes_back(attack, transfer, system, stacks):
    victim = system(1)
    judge = system(1, "black box") if transfer else None
    frames, labels = stacks(judge or victim, 1)
    result = attack(victim, frames, labels, (0.012, 0.0), stop_on=judge)
    assert torch.equal(result.adversarial[1], frames)
    assert not result.success[1].any() and not result.frames_perturbed[1].any() and (result.frame_order[1] == -1).all()
    judged = clean_pass(judge or victim, frames, labels, gradient=False)
    torch.testing.assert_close(result.logits[1], judged.logits, rtol=1e-12, atol=1e-12)
    assert torch.equal(result.attacked, judged.logits.argmax(1) == labels)
    one = attack(victim, frames, labels, (0.012,), stop_on=judge)
    _assert_same(one, _part(result, slice(0, 1), slice(None)))
    assert not result.pair_forwards[1].any() and not result.pair_backwards[1].any()


@every_attack
@pytest.mark.parametrize("transfer", [False, True])
def test_a_batch_gives_what_its_stacks_give_one_by_one(attack, transfer, system, stacks):
    victim = system(2)
    judge = system(2, "black box") if transfer else None
    frames, labels = stacks(judge or victim, 2)
    whole = attack(victim, frames, labels, EPSILONS, stop_on=judge)
    for e, epsilon in enumerate(EPSILONS):
        for b in range(len(frames)):
            one = attack(victim, frames[b : b + 1], labels[b : b + 1], (epsilon,), stop_on=judge)
            _assert_same(one, _part(whole, slice(e, e + 1), slice(b, b + 1)), costs=False)
    for b in range(len(frames)):
        one = attack(victim, frames[b : b + 1], labels[b : b + 1], EPSILONS, stop_on=judge)
        _assert_same(one, _part(whole, slice(None), slice(b, b + 1)))


@pytest.mark.parametrize("kind", ["pairwise", "plain", "transfer", "transfer from plain"])
@every_attack
def test_costs_are_the_pairs_that_the_systems_computed(attack, kind, system, plain, stacks, computed):
    """Counted where convolutions are computed; a shared pair counts once, a whole pass as all of its pairs."""
    toy = system(4)
    victim = plain(toy) if "plain" in kind else toy
    judge = system(4, "black box") if "transfer" in kind else None
    frames, labels = stacks(judge or toy, 4)
    clean = clean_pass(victim, frames, labels)
    judged = clean_pass(judge, frames, labels, gradient=False) if judge else None
    with computed() as counts:
        result = attack(victim, frames, labels, EPSILONS, stop_on=judge, clean=clean, stop_on_clean=judged)
    forwards, backwards = counts.of(toy)
    assert int(result.pair_forwards.sum()) == forwards + (counts.of(judge)[0] if judge else 0) > 0
    assert int(result.pair_backwards.sum()) == backwards
    assert bool(result.pair_backwards.any()) == (attack.name == "iterative-saliency-RG")


@pytest.mark.parametrize("pairs_at_once", [1, 3, 7, 1000])
@pytest.mark.parametrize("kind", ["pairwise", "transfer"])
@pytest.mark.parametrize("make", [OneShot, IterativeSaliency, refreshing])
def test_recomputed_graphs_change_nothing(make, kind, pairs_at_once, system, stacks):
    victim = system(3)
    judge = system(3, "black box") if kind == "transfer" else None
    frames, labels = stacks(judge or victim, 3)
    whole = make()(victim, frames, labels, EPSILONS, stop_on=judge)
    victim.graph_calls.clear()
    _assert_same(make(pairs_at_once=pairs_at_once)(victim, frames, labels, EPSILONS, stop_on=judge), whole)
    assert 0 < max(victim.graph_calls) <= pairs_at_once


@pytest.mark.parametrize("make", [OneShot, IterativeSaliency, refreshing, Noise])
@pytest.mark.parametrize("kind", ["pairwise", "plain", "transfer"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_batch_size_bounds_every_pass_and_changes_nothing(make, kind, batch_size, system, plain, stacks):
    toy = system(3)
    victim = plain(toy) if kind == "plain" else toy
    judge = system(3, "black box") if kind == "transfer" else None
    frames, labels = stacks(judge or toy, 3)
    whole = make(batch_size=100)(victim, frames, labels, EPSILONS, stop_on=judge)
    for counted in (toy, judge or toy):
        counted.stacks.clear()
        counted.calls.clear()
    _assert_same(make(batch_size=batch_size)(victim, frames, labels, EPSILONS, stop_on=judge), whole)
    assert max(toy.stacks + (judge or toy).stacks) <= batch_size
    assert max(toy.calls + (judge or toy).calls) <= batch_size * (frames.shape[1] - 1)


@every_attack
def test_leaves_the_systems_as_they_were(attack, system, stacks):
    victim, judge = system(0), system(0, "black box")
    frames, labels = stacks(judge, 0)
    victim.train()
    judge.classifier.train()
    modes = [module.training for s in (victim, judge) for module in s.modules()]
    state = [{name: value.clone() for name, value in s.state_dict().items()} for s in (victim, judge)]
    in_training = attack(victim, frames, labels, EPSILONS, stop_on=judge)
    assert [module.training for s in (victim, judge) for module in s.modules()] == modes
    for s, before in zip((victim, judge), state, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in s.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in s.parameters())
    # Eval mode inside, whatever the mode outside: dropout and batch statistics play no part.
    _assert_same(in_training, attack(victim.eval(), frames, labels, EPSILONS, stop_on=judge.eval()))


@every_attack
def test_restores_the_systems_after_an_error(attack, system, stacks):
    victim = system(0).train()
    frames, labels = stacks(system(0), 0)
    with torch.no_grad():
        victim.classifier[-1].bias[0] = torch.nan
    with pytest.raises(FloatingPointError):
        attack(victim, frames, labels, EPSILONS)
    assert all(module.training for module in victim.modules())
    assert all(p.requires_grad for p in victim.parameters())


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_every_autograd_mode(attack, context, system, stacks):
    victim = system(1)
    frames, labels = stacks(victim, 1)
    expected = attack(victim, frames, labels, EPSILONS)
    with context():
        copies = frames.clone().requires_grad_(torch.is_grad_enabled()), labels.clone()
        result = attack(victim, *copies, EPSILONS)
        clean = clean_pass(victim, *copies, retained=attack.retain(frames, len(EPSILONS)))
        _assert_same(attack(victim, *copies, EPSILONS, clean=clean), expected)
    _assert_same(result, expected)
    tensors = [value for value in (*result, *clean) if isinstance(value, torch.Tensor)]
    assert len(tensors) > 12 and not any(tensor.requires_grad for tensor in tensors)


@every_attack
def test_input_is_not_written_to(attack, system, stacks):
    victim = system(1)
    frames, labels = stacks(victim, 1)
    before = frames.clone(), labels.clone()
    clean = clean_pass(victim, frames, labels)
    clean_before = [part.clone() for part in clean[:4]]
    attack(victim, frames, labels, EPSILONS, clean=clean)
    assert torch.equal(frames, before[0]) and torch.equal(labels, before[1])
    assert all(torch.equal(part, kept) for part, kept in zip(clean[:4], clean_before, strict=True))


@every_attack
def test_a_given_clean_pass_is_used(attack, system, stacks):
    victim, judge = system(1), system(1, "black box")
    frames, labels = stacks(judge, 1)
    expected = attack(victim, frames, labels, EPSILONS, stop_on=judge)
    clean, judged = clean_pass(victim, frames, labels), clean_pass(judge, frames, labels, gradient=False)
    victim.pairs = judge.pairs = 0
    _assert_same(
        attack(victim, frames, labels, (0,), stop_on=judge, clean=clean, stop_on_clean=judged),
        _at_zero(expected, judged, frames),
    )
    assert victim.pairs == judge.pairs == 0
    clean = clean_pass(victim, frames, labels, retained=attack.retain(frames, len(EPSILONS)))
    _assert_same(attack(victim, frames, labels, EPSILONS, stop_on=judge, clean=clean, stop_on_clean=judged), expected)


def _at_zero(result, judged, frames):
    none = torch.zeros_like(result.frames_perturbed[:1])
    return type(result)(
        adversarial=frames[None],
        flow=judged.flow[None],
        logits=judged.logits[None],
        labels=result.labels,
        attacked=result.attacked,
        success=torch.zeros_like(result.success[:1]),
        frames_perturbed=none,
        frame_order=torch.full_like(result.frame_order[:1], -1),
        no_gradient=torch.zeros_like(result.no_gradient[:1]),
        step_logits=None if result.step_logits is None else torch.full_like(result.step_logits[:1], torch.nan),
        pair_forwards=none,
        pair_backwards=none,
        first_step=None,
    )


@every_attack
@pytest.mark.parametrize("epsilon", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_epsilon_outside_the_range_is_named(attack, epsilon, system, stacks):
    victim = system(0)
    with pytest.raises(ValueError, match=rf"ε = {epsilon} is outside \[0, 1\]"):
        attack(victim, *stacks(victim, 0), (0.01, epsilon))


@every_attack
@pytest.mark.parametrize("epsilons", [(), 0.01])
def test_epsilons_are_a_sequence(attack, epsilons, system, stacks):
    victim = system(0)
    with pytest.raises(ValueError, match="a sequence with at least one ε is needed"):
        attack(victim, *stacks(victim, 0), epsilons)


@every_attack
def test_bad_stacks_are_named(attack, system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    with pytest.raises(ValueError, match=r"frames lie in \[0, 255\]"):
        attack(victim, frames * 255, labels, EPSILONS)
    with pytest.raises(ValueError, match="label 9 is out of range: ToySystem has 4 classes"):
        attack(victim, frames, torch.full_like(labels, 9), EPSILONS)


@pytest.mark.parametrize("attack", ATTACKS[:3], ids=lambda attack: attack.name)
def test_a_white_box_without_gradient_is_named(attack, system, stacks):
    judge = system(0, "black box")
    with pytest.raises(ValueError, match=r"BlackBox is not differentiable.*differentiable flow estimator"):
        attack(judge, *stacks(judge, 0), EPSILONS)


@pytest.mark.parametrize("attack", ATTACKS[:3], ids=lambda attack: attack.name)
def test_a_clean_pass_of_something_else_is_named(attack, system, plain, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    clean = clean_pass(victim, frames, labels)
    other_frames, other_labels = frames.clone(), labels.clone()
    other_frames[3, 2, 1, 4, 5] = 0.123
    other_labels[2] = (other_labels[2] + 1) % 4
    for given, message in (
        ((frames[:5], labels[:5]), r"is of frames \(6, 6, 3, 12, 14\), torch.float64 on cpu; given are \(5, 6"),
        ((frames.float(), labels), r"torch.float64 on cpu; given are \(6, 6, 3, 12, 14\), torch.float32"),
        ((other_frames, labels), r"clean pass of ToySystem is of other frames for stacks \[3\]: make it with"),
        ((frames, other_labels), r"clean pass of ToySystem is of other labels for stacks \[2\]: make it with"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(victim, *given, EPSILONS, clean=clean)
    for clean, message in (
        (clean_pass(victim, frames, labels, gradient=False), "of ToySystem has no gradient, 'log-odds' is needed"),
        (clean_pass(victim, frames, labels, loss="margin"), "the gradient of 'margin', 'log-odds' is needed"),
        (clean_pass(system(0), frames, labels), r"of another system \(ToySystem\) than ToySystem"),
        (clean_pass(plain(victim), frames, labels), r"of another system \(Plain\) than ToySystem"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(victim, frames, labels, EPSILONS, clean=clean)


@every_attack
def test_a_clean_pass_of_a_method_is_of_the_same_method(attack, system, stacks):
    """Python makes a bound method anew each time that it is read."""
    victim, other = system(0), system(0)
    frames, labels = stacks(victim, 0)
    clean = clean_pass(victim.forward, frames, labels)
    result = attack(victim.forward, frames, labels, EPSILONS, clean=clean)
    assert torch.equal(result.success, attack(victim.forward, frames, labels, EPSILONS).success)
    with pytest.raises(ValueError, match="clean pass is of another system"):
        attack(other.forward, frames, labels, EPSILONS, clean=clean)


@every_attack
def test_the_judges_clean_pass_is_held_against_the_call_too(attack, system, stacks):
    victim, judge = system(0), system(0, "black box")
    frames, labels = stacks(judge, 0)
    judged = clean_pass(judge, frames, labels, gradient=False)
    with pytest.raises(ValueError, match=r"clean pass of BlackBox is of other labels for stacks \[0\]"):
        attack(victim, frames, labels ^ (torch.arange(6) == 0), EPSILONS, stop_on=judge, stop_on_clean=judged)
    with pytest.raises(ValueError, match=r"of another system \(BlackBox\) than BlackBox"):
        attack(victim, frames, labels, EPSILONS, stop_on=system(1, "black box"), stop_on_clean=judged)


def test_a_clean_pass_of_frames_that_were_written_to_is_named(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    clean = clean_pass(victim, frames, labels)
    frames[1, 2] = 0.5
    with pytest.raises(ValueError, match="the frames were written to since the clean pass of ToySystem was made"):
        OneShot()(victim, frames, labels, EPSILONS, clean=clean)


@pytest.mark.parametrize("make", [OneShot, IterativeSaliency, Noise])
def test_batch_size_is_positive(make):
    with pytest.raises(ValueError, match="batch_size is 0"):
        make(batch_size=0)


@pytest.mark.parametrize("make", [OneShot, IterativeSaliency])
def test_an_unknown_loss_is_named(make):
    with pytest.raises(ValueError, match="unknown loss 'entropy': choose log-odds, cross-entropy, margin"):
        make(loss="entropy")


@pytest.mark.parametrize("make", [OneShot, IterativeSaliency])
def test_pairs_at_once_is_positive(make):
    with pytest.raises(ValueError, match="pairs_at_once is 0"):
        make(pairs_at_once=0)


def test_settings_tell_the_attacks_apart():
    others = [IterativeSaliency(refresh, order) for refresh in (False, True) for order in get_args(Order)[1:]]
    attacks = (*ATTACKS, Noise(seed=1), *others, IterativeSaliency(order="random", seed=1))
    settings = [attack_settings(attack) for attack in attacks]
    assert all(settings.count(one) == 1 for one in settings)
    assert attack_settings(OneShot(batch_size=1)) == attack_settings(OneShot(batch_size=2, pairs_at_once=3))


@pytest.mark.parametrize("attack", [OneShot(), Noise()], ids=lambda attack: attack.name)
def test_attacks_on_all_frames_have_no_steps(attack, system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    result = attack(victim, frames, labels, EPSILONS)
    assert result.step_logits is result.first_step is None
    first_step = IterativeSaliency()(victim, frames, labels, EPSILONS).first_step
    with pytest.raises(ValueError, match="all frames at once: it has no first step"):
        attack(victim, frames, labels, EPSILONS, first_step=first_step)


@every_attack
@pytest.mark.parametrize("transfer", [False, True])
def test_flow_and_margin_are_the_judges(attack, transfer, system, stacks):
    victim = system(2)
    judge = system(2, "black box") if transfer else victim
    frames, labels = stacks(judge, 2)
    result = attack(victim, frames, labels, EPSILONS, stop_on=judge if transfer else None)
    for e in range(len(EPSILONS)):
        expected = clean_pass(judge, result.adversarial[e], labels, gradient=False)
        torch.testing.assert_close(result.flow[e], expected.flow, rtol=1e-9, atol=1e-9)
        for margin, logits, label in zip(result.margin[e], expected.logits.tolist(), labels.tolist(), strict=True):
            others = [value for c, value in enumerate(logits) if c != label]
            assert float(margin) == pytest.approx(logits[label] - max(others), abs=1e-8)
    assert torch.equal(result.success, result.attacked & (result.margin < 0))
