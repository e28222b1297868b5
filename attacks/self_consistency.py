"""Whether a system gives a clean stack the same logits twice, and on both of its ways from frames to logits.

If not, an attack on it fails or succeeds for a reason that is not its robustness: chance, statistics of the batch, or a
defence in `forward` that the way pair by pair leaves out.
"""

import contextlib
import dis
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

TOLERANCE = 1e-3
"""Of the range of a stack's logits, in every precision: both ways see the same batch, so they round alike."""
REPEATS = 4
"""Of each way, before two ways that differ are blamed: a fair coin passes them once in 256 times."""
DEPTH = 4
"""Of the search for modules behind a callable, in references"""

Logits = Callable[[], Tensor]
"""A forward on one stack, logits (1, C)."""


def hold_against_forward(victim: object, by_forward: Logits, by_pairs: Logits | None = None) -> bool:
    """Hold the logits of one clean stack by `by_forward` against those by `by_pairs`, or by itself where that is None.

    Returns:
        Whether there was something to compare; NaN and +inf tell nothing.

    Raises:
        ValueError: they differ by more than TOLERANCE of their range, or depend on the batch; says why.
    """
    name, modules = type(victim).__name__, list(_modules_in(victim))
    tracking = [f"{label} ({type(module).__name__})" for label, module in modules if _tracks_statistics(module)]
    if tracking:
        raise ValueError(
            f"{name} normalises by its batch: in train mode is {_listed(tracking)}. Its verdicts depend on the other "
            f"stacks, and each forward moves its running statistics. {_EVAL}"
        )
    first, other = by_forward(), (by_pairs or by_forward)()
    apart = _apart(first, other)
    if not apart:
        return apart is not None
    if by_pairs is None:
        raise ValueError(_by_chance(name, apart, modules))
    for again, of in ((by_forward, first), (by_pairs, other)):
        for _ in range(REPEATS):
            if by_chance := _apart(of, again()):
                raise ValueError(_by_chance(name, by_chance, modules))
    raise ValueError(
        f"{name}: forward(frames) and classify(estimate_flow(first, second)) differ {apart} on a "
        "clean stack, so an attack pair by pair would miss a part of the system, such as a defence, a hook or "
        "another precision. Set `pairwise = False` in it to be attacked through forward, or let both ways do the same"
    )


def _apart(one: Tensor, other: Tensor) -> str | None:
    """How far two logits (1, C) of one stack are apart, in words: "" where close enough, None where nothing tells.

    NaN and +inf are not its business: whoever uses the logits says what is wrong with them. A logit of -inf masks its
    class.
    """
    both = torch.cat([one, other])
    if both.isnan().any() or both.isposinf().any():
        return None
    masked = both.isneginf()
    if (masked[0] != masked[1]).any():
        return "in the classes that they mask (logits of -inf)"
    finite = both[:, ~masked[0]]
    if not finite.numel():
        return None
    distance, span = float((finite[0] - finite[1]).abs().max()), float(finite.max() - finite.min())
    # Of logits that are all but equal only their rounding is left.
    if distance <= TOLERANCE * span + 16 * torch.finfo(both.dtype).eps * float(finite.abs().max()):
        return ""
    return f"by {distance:.3g} ({100 * distance / span:.3g} % of the logits' range; {100 * TOLERANCE:g} % is let pass)"


_EVAL = (
    "An attack puts a module into eval mode, but it cannot do so behind a function or against the module's own will: "
    "call .eval() on it before the attack"
)


def _by_chance(name: str, apart: str, modules: Iterable[tuple[str, nn.Module]]) -> str:
    training = _in_training(modules)
    why = (
        f"still in train mode is {_listed(training)}. {_EVAL}"
        if training
        else "it draws at random. Stochastic systems are not judged yet: draw from a seed that forward sets itself, or "
        "attack the system without its chance"
    )
    return f"two forwards of {name} on the same clean stack differ {apart}: {why}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _tracks_statistics(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.training and module.running_mean is not None


def _in_training(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Those in train mode; of a whole that is, the whole alone."""
    names, inside = [], set[nn.Module]()
    for label, module in modules:
        if module.training and module not in inside:
            names.append(f"{label} ({type(module).__name__})" if label else type(module).__name__)
            inside.update(module.modules())
    return names


def _modules_in(
    thing: object, name: str = "", depth: int = DEPTH, found: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of all modules that a module or a callable holds, wholes before their parts."""
    found = set() if found is None else found
    if isinstance(thing, nn.Module):
        for label, module in thing.named_modules(prefix=name):
            if module not in found:
                found.add(module)
                yield label, module
                if depth:  # what it holds without having registered it
                    for inner, held in vars(module).items():
                        if inner != "_modules":
                            yield from _modules_in(held, f"{label}.{inner}".strip("."), depth - 1, found)
    elif depth:
        for inner, held in _held_by(thing):
            yield from _modules_in(held, f"{name}.{inner}".strip("."), depth - 1, found)


def _held_by(thing: object) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a container, function, method, partial or other callable object refers to."""
    if isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(place), value) for place, value in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield from [("", thing.func), *(("", argument) for argument in thing.args), *thing.keywords.items()]
    elif isinstance(thing, types.MethodType):
        yield "", thing.__self__
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        yield from vars(thing).items()


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The variables that it closes over, the globals that it reads, and its defaults."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents
    read = dict.fromkeys(step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL")
    yield from ((name, function.__globals__[name]) for name in read if name in function.__globals__)
    yield from (("", value) for value in function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
