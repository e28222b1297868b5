"""A system is held against itself: defences that the way pair by pair would bypass, and chance."""

import functools
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import victim as victim_module
from attacks.iterative_saliency import IterativeSaliency
from attacks.one_shot import OneShot
from attacks.self_consistency import hold_against_forward
from attacks.victim import is_pairwise

EPSILONS = (0.012,)
STILL = nn.Identity().eval()


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


def dropping(system: nn.Module) -> nn.Module:
    """In train mode but for the normalisation: by its dropout alone."""
    system.train()
    for module in system.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return system


class Noisy(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames + 0.1 * torch.randn_like(frames)


def behind_a_function(system):
    model = dropping(system(0))
    return lambda frames: model(frames)


def behind_a_partial(system):
    return functools.partial(lambda model, frames: model(frames), dropping(system(0)))


def behind_a_method(system):
    return Holder(dropping(system(0))).ask


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
    "an object": (lambda system: Holder(dropping(system(0))), r"network \(ToySystem\)"),
    "its own will": (lambda system: Guarded(system(0), StubbornDropout(0.5)), r"draw \(StubbornDropout\)"),
    "deep inside": (
        lambda system: Guarded(system(0), nest(StubbornDropout(0.5), 6)),
        r"draw\.0\.0\.0\.0\.0\.0 \(StubbornDropout\)",
    ),
    "a list": (lambda system: Guarded(system(0), Unregistered(dropping(system(1)))), r"draw\.held\.0 \(ToySystem\)"),
}


def nest(module: nn.Module, depth: int) -> nn.Module:
    return nest(nn.Sequential(module), depth - 1) if depth else module


class Unregistered(nn.Module):
    """Draws by a system that it keeps in a plain list."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.held = [system]

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.held[0](frames).mean()


@pytest.mark.parametrize("role", ["victim", "judge"])
@pytest.mark.parametrize("kind", TRAIN_MODE)
def test_a_module_that_stays_in_train_mode_is_named(kind, role, system, stacks):
    make, name = TRAIN_MODE[kind]
    frames, labels = stacks(system(0), 0)
    victim, judge = (make(system), None) if role == "victim" else (system(0), make(system))
    with pytest.raises(
        ValueError,
        match=rf"two forwards of \w+ on the same clean stack.*still in train mode is {name}\. An attack puts",
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


def scripted(*values: str) -> Callable[[], Tensor]:
    """Gives these logits, call by call."""
    logits = {"A": torch.tensor([[1.0, 0.0]]), "B": torch.tensor([[0.0, 1.0]])}
    left = list(values)
    return lambda: logits[left.pop(0)]


def test_chance_is_told_at_once_where_there_is_one_way() -> None:
    with pytest.raises(ValueError, match=r"two forwards of Identity .*Stochastic systems are not judged yet"):
        hold_against_forward(STILL, scripted("A", "B"))


@pytest.mark.parametrize(
    ("by_forward", "by_pairs"), [("AAAAA", "BBA"), ("AAB", "B"), ("AAAAA", "BBBBA")], ids=["pairs", "forward", "late"]
)
def test_a_way_is_asked_several_times_before_two_are_told_apart(by_forward, by_pairs) -> None:
    """A coin may fall alike when each way is repeated once: A, B, A, B."""
    with pytest.raises(ValueError, match=r"two forwards of Identity .*Stochastic systems are not judged yet"):
        hold_against_forward(STILL, scripted(*by_forward), scripted(*by_pairs))


@pytest.mark.parametrize("logits", [[2.0, -torch.inf, 1.0], [-torch.inf, 1.0, -torch.inf]])
def test_masked_classes_are_no_chance(logits) -> None:
    logits = torch.tensor([logits])
    assert hold_against_forward(STILL, logits.clone)
    moved = iter([logits, logits + 0.5])
    with pytest.raises(ValueError, match=r"differ by 0\.5 .*not judged yet"):
        hold_against_forward(STILL, lambda: next(moved))
    masks = iter([logits, logits.roll(1, 1)])
    with pytest.raises(ValueError, match=r"differ in the classes that they mask .*not judged yet"):
        hold_against_forward(STILL, lambda: next(masks))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_tell_nothing_are_not_compared(value) -> None:
    drawn = iter([torch.tensor([[value, 0.0]]), torch.tensor([[1.0, 0.0]])])
    assert not hold_against_forward(STILL, lambda: next(drawn))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True)])
def test_normalisation_by_the_batch_is_refused(layer) -> None:
    """Two forwards agree, but a verdict depends on the stacks beside it."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    frames, labels = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    before = layer.running_mean.clone()
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=rf"in train mode is network\.1 \({kind}\)\. .*call \.eval\(\) on it"):
        OneShot()(lambda frames: network(frames[:, 0]), frames, labels, EPSILONS)
    assert torch.equal(layer.running_mean, before)
    network.eval()
    OneShot()(lambda frames: network(frames[:, 0]), frames, labels, EPSILONS)


def test_a_global_of_an_attributes_name_is_not_the_functions(monkeypatch) -> None:
    """The function reads `holder.network`, not the global of that name."""
    monkeypatch.setitem(globals(), "network", nn.BatchNorm2d(3).train())
    holder = Holder(nn.Identity())
    assert hold_against_forward(lambda frames: holder.network(frames), scripted("A", "A"))


def test_forward_that_lightning_put_back_is_the_classs_own(system, recwarn) -> None:
    """After DDP the module has its own bound forward in its __dict__."""
    toy = system(0)
    toy.forward = toy.forward
    assert "forward" in vars(toy) and is_pairwise(toy) and not recwarn.list
    toy.forward = system(1).forward  # of another object
    with pytest.warns(UserWarning, match="its own `forward`"):
        victim_module._say_slow.cache_clear()
        assert not is_pairwise(toy)
