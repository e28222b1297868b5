"""Whether a system gives a clean stack the same logits twice, and on both of its ways from frames to logits.

If not, an attack on it fails or succeeds for a reason that is not its robustness: chance, or a defence in `forward`
that the way pair by pair leaves out.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Of the range of a stack's logits, in every precision: both ways see the same batch, so they round alike."""

Logits = Callable[[], Tensor]
"""A forward on one stack, logits (1, C)."""


def hold_against_forward(victim: object, by_forward: Logits, by_other: Logits) -> None:
    """Hold the logits of one clean stack by `by_forward` against those by `by_other`, which may be the same again.

    Raises:
        ValueError: they differ by more than TOLERANCE of their range; says why.
    """
    first, other = by_forward(), by_other()
    if _apart(first, other) is None:
        return
    name = type(victim).__name__
    for again, of in ((by_forward, first), (by_other, other)):
        if by_chance := _apart(of, again()):
            raise ValueError(
                f"two forwards of {name} on the same clean stack differ by {by_chance}: {_why_by_chance(victim)}"
            )
    raise ValueError(
        f"{name}: forward(frames) and classify(estimate_flow(first, second)) differ by {_apart(first, other)} on a "
        "clean stack, so an attack pair by pair would miss a part of the system, such as a defence, a hook or "
        "another precision. Set `pairwise = False` in it to be attacked through forward, or let both ways do the same"
    )


def _apart(one: Tensor, other: Tensor) -> str | None:
    """How far two logits (1, C) of one stack are apart, in words; None where they are close enough.

    NaN is not its business: whoever uses the logits says what is wrong with them.
    """
    both = torch.cat([one, other])
    if both.isnan().any():
        return None
    distance, span = float((one - other).abs().max()), float(both.max() - both.min())
    # Of logits that are all but equal only their rounding is left.
    if distance <= TOLERANCE * span + 16 * torch.finfo(both.dtype).eps * float(both.abs().max()):
        return None
    return f"{distance:.3g} ({100 * distance / span:.2g} % of the logits' range; {100 * TOLERANCE:g} % is let pass)"


def _why_by_chance(victim: object) -> str:
    training = list(dict.fromkeys(_in_training(victim, "")))
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        return (
            f"still in train mode is {shown}. An attack puts a module into eval mode, but it cannot do so behind a "
            "function or against the module's own will: call .eval() on it before the attack"
        )
    return (
        "it draws at random. Stochastic systems are not judged yet: draw from a seed that forward sets itself, or "
        "attack the system without its chance"
    )


def _in_training(thing: object, name: str, depth: int = 4) -> Iterator[str]:
    """Names of the modules in train mode that a module or a callable holds; of a whole that is, the whole alone."""
    if isinstance(thing, nn.Module) and thing.training:
        yield f"{name} ({type(thing).__name__})" if name else type(thing).__name__
    elif depth:
        for inner, held in _held_by(thing):
            yield from _in_training(held, f"{name}.{inner}".strip("."), depth - 1)


def _held_by(thing: object) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a module, container, function, method, partial or other object refers to."""
    if isinstance(thing, nn.Module):
        yield from thing.named_children()
    if isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(place), value) for place, value in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield from [("", thing.func), *(("", argument) for argument in thing.args), *thing.keywords.items()]
    elif isinstance(thing, types.MethodType):
        yield "", thing.__self__
    elif isinstance(thing, types.FunctionType):
        held = inspect.getclosurevars(thing)
        yield from [
            *held.nonlocals.items(),
            *held.globals.items(),
            *(("", value) for value in thing.__defaults__ or ()),
        ]
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        yield from vars(thing).items()
