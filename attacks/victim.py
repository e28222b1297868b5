"""What an attack needs of the system it attacks (paper, section 3.1), and how it runs that system in batches.

A victim whose class says `pairwise = True` is asked only for the frame pairs that changed, by `estimate_flow` and
`classify`. Any other module that maps frames to logits works too, with a whole forward each time.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from attacks.loss import LOSSES, Loss
from attacks.retained_pairs import PairGraph, RetainedPairs
from attacks.self_consistency import hold_against_forward
from attacks.stopping import go_on

Retain = tuple[RetainedPairs, Tensor]
"""Where pairs are retained, and their keys (n, T-1), equal for pairs whose two frames are equal; -1 for those that no
gradient will need."""


PATHS = ("forward", "__call__", "estimate_flow", "classify")
"""What a class may define of the two ways from frames to logits."""


class PairwiseVictim(Protocol):
    """A system that sees motion: frames -> flow of each adjacent pair -> class."""

    differentiable: bool
    pairwise: bool
    """True if `classify(estimate_flow(…))` is all that `forward` does; set in the class that defines both."""

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] to logits (B, C): `classify` of the flow of all adjacent pairs."""

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Frames (N, 3, H, W) and their successors to flow (N, 2, H, W) in pixels; no pair may depend on another."""

    def classify(self, flow: Tensor) -> Tensor:
        """Flow (B, T-1, 2, H, W) in pixels to logits (B, C)."""


Victim = PairwiseVictim | nn.Module | Callable[[Tensor], Tensor]


@contextmanager
def under_attack(*victims: Victim) -> Iterator[None]:
    """Victims in eval mode, their parameters frozen, no gradient and no inference mode; all is restored on leaving.

    Weights that still require a gradient would cost every attack step the gradient of all of them. Convolutions keep to
    `torch.get_float32_matmul_precision()`: by its default float32 is float32, where cuDNN's own default is TF32, under
    which 1.5 % of the gradient's signs differ.
    """
    modules = [module for victim in victims if isinstance(victim, nn.Module) for module in victim.modules()]
    modes = {module: module.training for module in modules}
    parameters = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    # A parameter made in inference mode cannot be thawed again, nor differentiated through: `loss_gradient` says so.
    trainable = [p for p in parameters if p.requires_grad and not p.is_inference()]
    with torch.inference_mode(False), torch.no_grad(), _convolutions_as_precise_as_products():
        try:
            for victim in victims:
                if isinstance(victim, nn.Module):
                    victim.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module, training in modes.items():
                module.training = training


@contextmanager
def _convolutions_as_precise_as_products() -> Iterator[None]:
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.get_float32_matmul_precision() != "highest"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def is_pairwise(victim: Victim) -> bool:
    """Whether the victim may be run pair by pair instead of by `forward`.

    A class opts in with `pairwise = True`. A subclass that overrides `forward`, `__call__`, `estimate_flow` or
    `classify` loses it, since the fast path could bypass a defence, and must set it again. A wrapper that delegates
    goes by `forward`. `pairwise = False`, in a class or an object, forces `forward`.

    Raises:
        TypeError: it says `pairwise = True` and lacks `estimate_flow` or `classify`.
    """
    own = {name: value for name, value in getattr(victim, "__dict__", {}).items() if not _is_own(victim, name, value)}
    for where in (own, *map(vars, type(victim).__mro__)):
        if "pairwise" in where:
            lacking = [name for name in ("estimate_flow", "classify") if not callable(getattr(victim, name, None))]
            if where["pairwise"] and lacking:
                raise TypeError(f"{type(victim).__name__} says `pairwise = True` and has no {' and no '.join(lacking)}")
            return bool(where["pairwise"])
        changed = [name for name in PATHS if name in where]
        if changed:
            if all(callable(getattr(victim, name, None)) for name in ("estimate_flow", "classify")):
                _say_slow(cast(Hashable, type(victim)), changed[0])
            return False
    return False


def _is_own(victim: Victim, name: str, value: object) -> bool:
    """The value is the class's own method, bound to the victim: Lightning leaves `forward` like this after DDP."""
    return (
        isinstance(value, MethodType)
        and value.__self__ is victim
        and value.__func__ is getattr(type(victim), name, None)
    )


def same_victim(one: Victim, other: Victim) -> bool:
    """Whether both are one object; a bound method is a new object at each access, and equal to the last one."""
    return one is other or (isinstance(one, MethodType) and one == other)


@cache
def _say_slow(kind: Hashable, changed: str) -> None:
    name = getattr(kind, "__name__", kind)
    warnings.warn(
        f"{name} has its own `{changed}` and does not say `pairwise`: it is attacked through forward, several "
        "times slower than pair by pair. Where classify(estimate_flow(first, second)) is all that forward does, set "
        f"`pairwise = True` in {name}; `pairwise = False` keeps to forward without this message",
        stacklevel=4,
    )


class RefreshedGradient(NamedTuple):
    """The gradient at frames that an attack has perturbed already, of n rows."""

    frames: Tensor
    """(n, T, 3, H, W)"""
    zero: Tensor
    """(n,) bool: the gradient is zero at all frames that are `left`"""
    forwards: Tensor
    """(n,) pairs estimated, each counted in the first row that has it"""
    backwards: Tensor
    """(n,) pairs differentiated"""


class BatchedVictim:
    """A victim that sees at most `batch_size` stacks at once, or the pairs of as many; used inside `under_attack`.

    Frames (R, T, 3, H, W) and flow (R, T-1, 2, H, W) are the state of all rows of a call, `rows` (n,) picks those
    wanted. Flow is None throughout for a victim that does not estimate it.

    Args:
        pairs_at_once: most pairs whose graphs are held together for a gradient, those of a whole batch when None.
            Fewer need less memory and give the same gradient; the clean pass then estimates its pairs twice.
        loss: whose gradient is taken.
    """

    def __init__(
        self, victim: Victim, batch_size: int, pairs_at_once: int | None = None, loss: Loss = "log-odds"
    ) -> None:
        self.victim = victim
        self.batch_size = batch_size
        self.pairs_at_once = pairs_at_once
        self.loss = loss
        self.name = type(victim).__name__
        self.pairwise = is_pairwise(victim)

    def check(self, frames: Tensor) -> bool:
        """Check that one clean stack (1, T, 3, H, W) has the same logits twice, and on both ways of the victim.

        Returns:
            Whether there was something to compare: NaN and +inf tell nothing.

        Raises:
            ValueError: it has not; says whether by chance, by the batch or because the ways differ.
        """

        def by_forward() -> Tensor:
            return self.victim(frames)

        def by_pairs() -> Tensor:
            return self._classify(self._estimate(frames[0, :-1], frames[0, 1:])[None])

        return hold_against_forward(self.victim, by_forward, by_pairs if self.pairwise else None)

    def update_flow(
        self,
        frames: Tensor,
        flow: Tensor | None,
        rows: Tensor,
        changed: Tensor,
        retain: Retain | None = None,
    ) -> Tensor:
        """Re-estimate, in place, the pairs of `rows` that are set in `changed` (n, T-1), and retain them.

        Returns:
            The pairs that the next `logits` of each row cost (n,); a system without flow runs on all of its frames.
        """
        if flow is None:
            return torch.full_like(rows, changed.shape[1])
        retained, keys = (None, torch.full_like(changed, -1, dtype=torch.int64)) if retain is None else retain
        local, pair = changed.nonzero(as_tuple=True)
        for r, p, of_pairs in _together(self.batch_size * changed.shape[1], rows[local], pair, keys[local, pair]):
            flow[r, p] = self._estimate_and_retain(frames[r, p], frames[r, p + 1], of_pairs, retained)
        return changed.sum(1)

    def logits(self, frames: Tensor, flow: Tensor | None, rows: Tensor) -> Tensor:
        """Logits (n, C) of `rows`, from their flow where there is one."""
        return torch.cat(
            [
                self._check_logits(self._whole(frames[r]) if flow is None else self._classify(flow[r]))
                for r in rows.split(self.batch_size)
            ]
        )

    def forward(self, frames: Tensor, retain: Retain | None = None) -> tuple[Tensor | None, Tensor]:
        """Flow (n, T-1, 2, H, W) or None, and logits (n, C), of at most `batch_size` stacks, all pairs estimated."""
        if not self.pairwise:
            return None, self._check_logits(self._whole(frames))
        retained, keys = (None, torch.empty(0)) if retain is None else retain
        pairs = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        estimated = self._estimate_and_retain(*pairs, keys.flatten(), retained)
        flow = estimated.unflatten(0, (len(frames), -1))
        return flow, self._check_logits(self._classify(flow))

    def loss_gradient(
        self, frames: Tensor, labels: Tensor, retain: Retain | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Flow, logits and the gradient of each stack's loss for at most `batch_size` stacks (eq. 1, eq. 2).

        Args:
            frames: (n, T, 3, H, W); labels: (n,).

        Raises:
            ValueError: the victim cannot be differentiated.
        """
        with self._differentiable():
            pairs = len(frames) * (frames.shape[1] - 1)
            if self.pairwise and self.pairs_at_once is not None and pairs > self.pairs_at_once:
                return self._recomputed_gradient(frames, labels, retain)
            with torch.enable_grad():
                inputs = frames.detach().requires_grad_()
                flow, logits = self.forward(inputs, retain)
                (gradient,) = self._differentiate(self._total_loss(logits, labels), (inputs,))
            return None if flow is None else flow.detach(), logits.detach(), gradient

    def refreshed_gradient(
        self,
        frames: Tensor,
        labels: Tensor,
        flow: Tensor | None,
        live: Tensor,
        left: Tensor,
        keys: Tensor,
        retained: RetainedPairs | None = None,
    ) -> RefreshedGradient:
        """The gradient (n, T, 3, H, W) at frames (n, T, 3, H, W) whose flow (n, T-1, 2, H, W) is known.

        A pair that is not retained is estimated again for its graph, once for all rows that have the same two frames,
        and differentiated for each of them. A frame's gradient is complete only where all its pairs are live. Where
        the gradient through these is zero, the other pairs of the frames that are left are asked, too. A system
        without flow is run as a whole, on T-1 pairs a row.

        Args:
            live: (n, T-1) bool, the pairs to differentiate through.
            left: (n, T) bool, the frames that may still be moved.
            keys: (n, T-1) int64, equal for pairs whose two frames are equal.
            retained: pairs of earlier estimates, which need not be made again; those made here are added.
        """
        with self._differentiable():
            if flow is None:
                chunks = zip(frames.split(self.batch_size), labels.split(self.batch_size), strict=True)
                gradient = torch.cat([self.loss_gradient(*chunk)[2] for chunk in chunks])
                pairs = torch.full_like(labels, frames.shape[1] - 1)
                return RefreshedGradient(gradient, _zero_at(gradient, left), pairs, pairs)
            _, of_flow = self._flow_gradient(flow, labels)
            gradient, forwards, backwards = self._through_pairs(frames, of_flow, live, keys, retained)
            zero = _zero_at(gradient, left)
            # An estimator may saturate where the classifier does not: only the frames themselves tell.
            unasked = (left[:, :-1] | left[:, 1:]) & ~live & (zero & of_flow.flatten(1).any(1))[:, None]
            if unasked.any():
                more, of_more, back = self._through_pairs(frames, of_flow, unasked, keys, retained)
                gradient, forwards, backwards = gradient + more, forwards + of_more, backwards + back
                zero = _zero_at(gradient, left)
            return RefreshedGradient(gradient, zero, forwards, backwards)

    def _recomputed_gradient(
        self, frames: Tensor, labels: Tensor, retain: Retain | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward without graph, then backward to the flow, then pair by pair to the frames."""
        first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        assert self.pairs_at_once is not None
        every = torch.arange(len(first), device=frames.device).view(len(frames), -1)
        retained, keys = (None, every) if retain is None else retain
        pieces = _together(self.pairs_at_once, first, second, keys.flatten())
        estimated = [self._estimate_and_retain(one, other, key, retained) for one, other, key in pieces]
        flow = torch.cat(estimated).unflatten(0, (len(frames), -1))
        logits, of_flow = self._flow_gradient(flow, labels)
        live = torch.ones_like(every, dtype=torch.bool)
        gradient, _, _ = self._through_pairs(frames, of_flow, live, keys, retained)
        return flow, logits, gradient

    def _flow_gradient(self, flow: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and the gradient with respect to flow (n, T-1, 2, H, W)."""
        logits: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, of_part in _together(self.batch_size, flow, labels):
            with torch.enable_grad():
                inputs = part.detach().requires_grad_()
                of_inputs = self._check_logits(self._classify(inputs))
                gradients += self._differentiate(self._total_loss(of_inputs, of_part), (inputs,))
            logits.append(of_inputs.detach())
        return torch.cat(logits), torch.cat(gradients)

    def _through_pairs(
        self,
        frames: Tensor,
        of_flow: Tensor,
        live: Tensor,
        keys: Tensor,
        retained: RetainedPairs | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The chain rule from the gradient of flow to that of frames, with the graphs of few pairs at a time."""
        # On the indices of flat frames, gathering and adding are single passes over memory.
        flat = frames.flatten(0, 1)
        gradient = torch.zeros_like(flat)
        row, pair = live.nonzero(as_tuple=True)
        index = row * frames.shape[1] + pair
        needed, inverse, times = keys[row, pair].unique(return_inverse=True, return_counts=True)
        occurrences = inverse.argsort(stable=True)
        start = times.cumsum(0) - times
        known = torch.zeros_like(needed, dtype=torch.bool) if retained is None else retained.has(needed)
        forwards = torch.bincount(row[occurrences[start[~known]]], minlength=len(frames))

        # A graph is walked whole: pairs that are walked equally often go together. First those that are retained, which
        # others may replace.
        for is_new, repeats in torch.stack((~known, times), 1).unique(dim=0).tolist():
            chosen = ((times == repeats) & (known != is_new)).nonzero().flatten()
            for which in chosen.split(self.pairs_at_once or self.batch_size * live.shape[1]):
                at = index[occurrences[start[which]]]
                pairs = flat[at], flat[at + 1]
                if is_new or retained is None:
                    graph = PairGraph(partial(self._estimate_and_retain, keys=needed[which], retained=retained), *pairs)
                else:
                    graph = retained.graph(self._estimate, *pairs, needed[which])
                for k in range(repeats):
                    item = occurrences[start[which] + k]
                    seed = of_flow[row[item], pair[item]].to(graph.flow.dtype)
                    of_pairs = self._differentiate(graph.flow, graph.frames, seed, keep=k + 1 < repeats)
                    # Eq. 1: frame n is the first frame of pair n and the second frame of pair n-1.
                    for offset, of_frame in enumerate(of_pairs):
                        gradient.index_add_(0, index[item] + offset, of_frame)
                del graph  # before the next one is made
        return gradient.view_as(frames), forwards, live.sum(1)

    def _estimate_and_retain(
        self, first: Tensor, second: Tensor, keys: Tensor, retained: RetainedPairs | None
    ) -> Tensor:
        if retained is None:
            return self._estimate(first, second)
        return retained.estimate(self._estimate, first, second, keys)

    def _differentiate(
        self, value: Tensor, inputs: tuple[Tensor, ...], seed: Tensor | None = None, *, keep: bool = False
    ) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor | None, ...] = (None,)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, inputs, seed, retain_graph=keep, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise ValueError(self._not_differentiable())
        # A system may look at one frame of a pair only: the other has no gradient, which is a gradient of zero.
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))

    def _total_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Summed, not averaged: each stack's gradient is its own, whatever the batch.
        if int(labels.max()) >= logits.shape[1]:
            raise ValueError(f"label {int(labels.max())} is out of range: {self.name} has {logits.shape[1]} classes")
        if logits.shape[1] < 2:
            raise ValueError(f"{self.name} has one class: there is no other that an attack could lead to")
        return LOSSES[self.loss](logits, labels).sum()

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Turns away a victim that has no gradient, before and after it fails."""
        if getattr(self.victim, "differentiable", True) is False:
            raise ValueError(self._not_differentiable())
        try:
            yield
        except RuntimeError as error:
            if "Inference tensors" in str(error):
                raise RuntimeError(
                    f"{self.name} holds tensors made in inference mode, which cannot be differentiated through: "
                    "set `inference_mode: false` in the trainer, or build the victim outside torch.inference_mode()"
                ) from error
            raise

    def _not_differentiable(self) -> str:
        return (
            f"{self.name} is not differentiable from frames to logits: the gradient needs a differentiable flow "
            "estimator (FlowNet2, for one); a system without one can be the judge, stop_on="
        )

    def _check_logits(self, logits: Tensor) -> Tensor:
        if logits.ndim != 2:
            raise ValueError(f"{self.name} gave logits of shape {tuple(logits.shape)}: (B, C) is needed")
        if logits.isnan().any():
            raise FloatingPointError(
                f"{self.name} gave NaN logits for {int(logits.isnan().any(1).sum())} of {len(logits)} stacks"
            )
        return logits

    def _whole(self, frames: Tensor) -> Tensor:
        go_on()
        return self.victim(frames)

    def _estimate(self, first: Tensor, second: Tensor) -> Tensor:
        go_on()
        return cast(PairwiseVictim, self.victim).estimate_flow(first, second)

    def _classify(self, flow: Tensor) -> Tensor:
        go_on()
        return cast(PairwiseVictim, self.victim).classify(flow)


def _zero_at(gradient: Tensor, left: Tensor) -> Tensor:
    """(n,) bool: frames are `left` (n, T), and the gradient (n, T, 3, H, W) is zero at all of them."""
    return left.any(1) & ~(gradient.flatten(2).any(2) & left).any(1)


def _together(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one length in pieces of `size`; none of nothing."""
    if len(tensors[0]):
        yield from zip(*(tensor.split(size) for tensor in tensors), strict=True)
