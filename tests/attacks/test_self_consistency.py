"""A system is held against itself: defences that the way pair by pair would bypass, and chance."""

import functools
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import victim as victim_module
from attacks.iterative_saliency import IterativeSaliency
from attacks.one_shot import OneShot
from attacks.victim import is_pairwise

EPSILONS = (0.012,)


@pytest.fixture(autouse=True)
def drawn_alike() -> Iterator[None]:
    """The toys drop four logits each by a coin: of two draws that the order of tests decides, one in 16 is the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def defended(system: nn.Module, **more: object) -> nn.Module:
    """A subclass that averages neighbouring pixels away before the system sees them."""

    def forward(self: nn.Module, frames: Tensor) -> Tensor:
        return type(system).forward(self, blur(frames))

    kind = type("Defended", (type(system),), {"forward": forward, **more})
    made = object.__new__(kind)
    made.__dict__ = dict(system.__dict__)
    return made


def blur(frames: Tensor) -> Tensor:
    return F.avg_pool2d(frames.flatten(0, 1), 5, 1, 2).unflatten(0, frames.shape[:2])


class Delegating(nn.Module):
    """A wrapper that hands on whatever it does not do itself."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("system"), name)

    def forward(self, frames: Tensor) -> Tensor:
        return self.system(blur(frames))


def patched(system: nn.Module) -> nn.Module:
    """An object whose forward was replaced."""
    undefended = system.forward
    system.forward = lambda frames: undefended(blur(frames))
    return system


@pytest.mark.filterwarnings("ignore:.*does not say `pairwise`")
@pytest.mark.parametrize("attack", [OneShot(), IterativeSaliency(), IterativeSaliency(refresh=True)])
@pytest.mark.parametrize("defend", [defended, Delegating, patched])
def test_a_defence_in_forward_is_attacked_too(defend, attack, system, stacks):
    """Verdicts are those of the defended system, frames those of its gradient."""
    frames, labels = stacks(system(0), 0)
    system_under_defence = defend(system(0))
    labels = system_under_defence(frames).argmax(1)
    result = attack(system_under_defence, frames, labels, EPSILONS)
    plain = attack(lambda x: system_under_defence(x), frames, labels, EPSILONS)
    assert torch.equal(result.success, plain.success) and torch.equal(result.adversarial, plain.adversarial)
    assert torch.equal(result.predictions[0], system_under_defence(result.adversarial[0]).argmax(1))
    assert result.attacked.all() and result.flow is None


def test_who_goes_pair_by_pair(system):
    toy = system(0)
    kind = type(toy)
    assert is_pairwise(toy)
    assert is_pairwise(type("Named", (kind,), {"extra": 1})())
    for changed in ("forward", "estimate_flow", "classify", "__call__"):
        own = {changed: getattr(kind, changed)}
        with pytest.warns(UserWarning, match=f"Changed has its own `{changed}` and does not say `pairwise`"):
            assert not is_pairwise(type("Changed", (kind,), own)())
        assert is_pairwise(type("Said", (kind,), {**own, "pairwise": True})())
    toy.pairwise = False
    assert not is_pairwise(toy)
    assert not is_pairwise(nn.Identity()) and not is_pairwise(lambda frames: frames)
    with pytest.raises(TypeError, match="Lacking says `pairwise = True` and has no estimate_flow and no classify"):
        is_pairwise(type("Lacking", (nn.Module,), {"pairwise": True})())


def test_the_slow_way_is_said_once(system, stacks):
    victim_module._say_slow.cache_clear()
    frames, labels = stacks(system(0), 0)
    slow = defended(system(0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            OneShot()(slow, frames, labels, EPSILONS)
        OneShot()(defended(system(0), pairwise=False), frames, labels, EPSILONS)
    (message,) = [str(warning.message) for warning in said if "pairwise" in str(warning.message)]
    assert "Defended has its own `forward`" in message and "set `pairwise = True` in Defended" in message


@pytest.mark.parametrize("role", ["victim", "judge"])
@pytest.mark.parametrize("how", ["subclass", "hook"])
def test_ways_that_differ_are_refused(how, role, system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    if how == "subclass":
        differing = defended(toy, pairwise=True)
    else:
        differing = toy
        differing.register_forward_pre_hook(lambda module, given: (blur(given[0]),))
    victim, judge = (differing, None) if role == "victim" else (system(0), differing)
    with pytest.raises(ValueError, match=r"forward\(frames\) and classify\(estimate_flow.*`pairwise = False`"):
        OneShot()(victim, frames, labels, EPSILONS, stop_on=judge)


@pytest.mark.parametrize("share", [0.5e-3, 2e-3])
def test_ways_may_differ_by_the_stated_tolerance(share, system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    logits = toy(frames[:1]).detach()
    off = share * float(logits.max() - logits.min()) * torch.eye(4, dtype=frames.dtype)[logits.argmin()]
    kind = type(toy)
    near = type("Near", (kind,), {"forward": lambda self, x: kind.forward(self, x) + off, "pairwise": True})
    made = object.__new__(near)
    made.__dict__ = dict(toy.__dict__)
    if share < 1e-3:
        OneShot()(made, frames, labels, EPSILONS)
    else:
        with pytest.raises(ValueError, match=r"\(0\.2 % of the logits' range; 0\.1 % is let pass\)"):
            OneShot()(made, frames, labels, EPSILONS)


class StubbornDropout(nn.Dropout):
    """Stays in train mode, as Monte Carlo dropout does."""

    def train(self, mode: bool = True) -> "StubbornDropout":
        return super().train(True)


class Guarded(nn.Module):
    """A system behind something that draws."""

    def __init__(self, system: nn.Module, draw: nn.Module) -> None:
        super().__init__()
        self.system, self.draw = system, draw

    def forward(self, frames: Tensor) -> Tensor:
        return self.system(self.draw(frames))


class Noisy(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames + 0.1 * torch.randn_like(frames)


def behind_a_function(system):
    model = system(0).train()
    return lambda frames: model(frames)


def behind_a_partial(system):
    return functools.partial(lambda model, frames: model(frames), system(0).train())


def behind_a_method(system):
    return Holder(system(0).train()).ask


class Holder:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def ask(self, frames: Tensor) -> Tensor:
        return self.network(frames)

    def __call__(self, frames: Tensor) -> Tensor:
        return self.network(frames)


TRAIN_MODE = {
    "a function": (behind_a_function, r"model \(ToySystem\)"),
    "a partial": (behind_a_partial, r"ToySystem"),
    "a method": (behind_a_method, r"network \(ToySystem\)"),
    "an object": (lambda system: Holder(system(0).train()), r"network \(ToySystem\)"),
    "its own will": (lambda system: Guarded(system(0), StubbornDropout(0.5)), r"draw \(StubbornDropout\)"),
}


@pytest.mark.parametrize("role", ["victim", "judge"])
@pytest.mark.parametrize("kind", TRAIN_MODE)
def test_a_module_that_stays_in_train_mode_is_named(kind, role, system, stacks):
    make, name = TRAIN_MODE[kind]
    frames, labels = stacks(system(0), 0)
    victim, judge = (make(system), None) if role == "victim" else (system(0), make(system))
    with pytest.raises(
        ValueError, match=rf"two forwards of \w+ on the same clean stack.*still in train mode is {name}"
    ):
        OneShot()(victim, frames, labels, EPSILONS, stop_on=judge)


def test_a_system_that_draws_is_not_judged_yet(system, stacks):
    frames, labels = stacks(system(0), 0)
    with pytest.raises(ValueError, match=r"two forwards of Guarded .*Stochastic systems are not judged yet"):
        IterativeSaliency()(Guarded(system(0), Noisy()), frames, labels, EPSILONS)


def test_a_pairwise_system_that_draws_is_told_from_one_with_a_defence(system, stacks):
    toy = system(0)
    frames, labels = stacks(toy, 0)
    kind = type(toy)

    def classify(self: nn.Module, flow: Tensor) -> Tensor:
        return kind.classify(self, flow + torch.randn_like(flow))

    drawing = object.__new__(type("Drawing", (kind,), {"classify": classify, "pairwise": True}))
    drawing.__dict__ = dict(toy.__dict__)
    with pytest.raises(ValueError, match=r"two forwards of Drawing .*Stochastic systems are not judged yet"):
        OneShot()(drawing, frames, labels, EPSILONS)
