import pytest
import torch

from attacks.noise import Noise, random_signs


def test_moves_every_value_by_epsilon_and_clips(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0, wrong=2)
    (adversarial,) = Noise()(victim, frames, labels, (0.01,)).adversarial
    inside = (frames > 0.01) & (frames < 0.99)
    assert inside.float().mean() > 0.5
    moved = (adversarial - frames).abs()
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.01), rtol=0, atol=1e-15)
    # A value at the end of the range stays or moves inwards, by a fair coin.
    at_end = moved[(frames == 0) | (frames == 1)]
    assert ((at_end == 0) | (at_end - 0.01).abs().lt(1e-15)).all() and 0.4 < (at_end == 0).double().mean() < 0.6


def test_signs_are_those_of_fair_independent_coins():
    stack = torch.rand(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    signs = random_signs(stack, 0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    standard_error = signs.numel() ** -0.5
    assert abs(float(signs.mean())) < 4 * standard_error
    for dim in range(4):  # neighbours do not know of each other
        assert abs(float((signs.roll(1, dim) * signs).mean())) < 4 * standard_error


def test_the_same_signs_for_every_epsilon(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    frames = frames.clamp(0.2, 0.8)
    result = Noise()(victim, frames, labels, (0.001, 0.01, 0.1))
    signs = (result.adversarial - frames).sign()
    assert torch.equal(signs[0], signs[1]) and torch.equal(signs[0], signs[2])


def test_is_deterministic_and_does_not_depend_on_the_batch(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    whole = Noise(seed=3)(victim, frames, labels, (0.01,)).adversarial
    assert torch.equal(whole, Noise(seed=3)(victim, frames, labels, (0.01,)).adversarial)
    order = torch.tensor([4, 1, 5])
    assert torch.equal(whole[:, order], Noise(seed=3)(victim, frames[order], labels[order], (0.01,)).adversarial)


@pytest.mark.parametrize("other", [1, -1, 2**32 - 2, 12345])
def test_seeds_and_stacks_have_signs_of_their_own(other):
    first, second = torch.rand(2, 11, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    signs = random_signs(first, 0)
    for different in (random_signs(first, other), random_signs(second, 0)):
        assert abs(float((signs * different).mean())) < 4 * signs.numel() ** -0.5


def test_signs_do_not_depend_on_dtype():
    stack = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_signs(stack, 0).double(), random_signs(stack.double(), 0))


def test_leaves_the_global_generator_alone(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    before = torch.get_rng_state()
    Noise()(victim, frames, labels, (0.01,))
    assert torch.equal(before, torch.get_rng_state())


def test_needs_no_gradient(system, stacks):
    black_box, victim = system(0, "black box"), system(0)
    frames, labels = stacks(black_box, 0)
    alone = Noise()(black_box, frames, labels, (0.01, 0.1))
    victim.pairs = 0
    judged = Noise()(victim, frames, labels, (0.01, 0.1), stop_on=black_box)
    assert victim.pairs == 0  # the noise owes nothing to the victim
    for field, value in alone._asdict().items():
        assert value is getattr(judged, field) is None or torch.equal(value, getattr(judged, field)), field
