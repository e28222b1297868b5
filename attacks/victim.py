"""What an attack needs of the system it attacks (paper, section 3.1), and how it runs that system in batches.

A victim with `estimate_flow` and `classify` is asked only for the frame pairs that changed. Any other module that maps
frames to logits works too, with a whole forward each time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PairwiseVictim(Protocol):
    """A system that sees motion: frames -> flow of each adjacent pair -> class."""

    differentiable: bool

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


class BatchedVictim:
    """A victim that sees at most `batch_size` stacks at once, or the pairs of as many; used inside `under_attack`.

    Frames (R, T, 3, H, W) and flow (R, T-1, 2, H, W) are the state of all rows of a call, `rows` (n,) picks those
    wanted. Flow is None throughout for a victim that does not estimate it.
    """

    def __init__(self, victim: Victim, batch_size: int) -> None:
        self.victim = victim
        self.batch_size = batch_size
        self.name = type(victim).__name__
        self.pairwise = all(callable(getattr(victim, method, None)) for method in ("estimate_flow", "classify"))

    def update_flow(self, frames: Tensor, flow: Tensor | None, rows: Tensor, changed: Tensor) -> None:
        """Re-estimate, in place, the pairs of `rows` that are set in `changed` (n, T-1)."""
        if flow is None or not changed.any():
            return
        local, pair = changed.nonzero(as_tuple=True)
        limit = self.batch_size * changed.shape[1]
        for r, p in zip(rows[local].split(limit), pair.split(limit), strict=True):
            flow[r, p] = self._estimate(frames[r, p], frames[r, p + 1])

    def logits(self, frames: Tensor, flow: Tensor | None, rows: Tensor) -> Tensor:
        """Logits (n, C) of `rows`, from their flow where there is one."""
        return torch.cat(
            [
                self._check_logits(self.victim(frames[r]) if flow is None else self._classify(flow[r]))
                for r in rows.split(self.batch_size)
            ]
        )

    def forward(self, frames: Tensor) -> tuple[Tensor | None, Tensor]:
        """Flow (n, T-1, 2, H, W) or None, and logits (n, C), of at most `batch_size` stacks, all pairs estimated."""
        if not self.pairwise:
            return None, self._check_logits(self.victim(frames))
        estimated = self._estimate(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        flow = estimated.unflatten(0, (len(frames), -1))
        return flow, self._check_logits(self._classify(flow))

    def loss_gradient(
        self, frames: Tensor, labels: Tensor, flow: Tensor | None = None, live: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Flow, logits and the gradient of each stack's cross-entropy for at most `batch_size` stacks (eq. 1, eq. 2).

        Args:
            frames: (n, T, 3, H, W); labels: (n,).
            flow: (n, T-1, 2, H, W), trusted for the pairs that are not live; not needed where all are.
            live: (n, T-1) bool, the pairs to estimate and to differentiate through; all when None. A frame's gradient
                is complete only where all its pairs are live.

        Raises:
            ValueError: the victim cannot be differentiated.
        """
        if getattr(self.victim, "differentiable", True) is False:
            raise ValueError(self._not_differentiable())
        try:
            with torch.enable_grad():
                if self.pairwise:
                    return self._pairwise_gradient(frames, labels, flow, live)
                frames = frames.detach().requires_grad_()
                logits = self._check_logits(self.victim(frames), labels)
                (gradient,) = self._differentiate(logits, labels, (frames,))
                return None, logits.detach(), gradient
        except RuntimeError as error:
            if "Inference tensors" in str(error):
                raise RuntimeError(
                    f"{self.name} holds tensors made in inference mode, which cannot be differentiated through: "
                    "set `inference_mode: false` in the trainer, or build the victim outside torch.inference_mode()"
                ) from error
            raise

    def _pairwise_gradient(
        self, frames: Tensor, labels: Tensor, flow: Tensor | None, live: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if live is None:
            live = torch.ones(len(frames), frames.shape[1] - 1, dtype=torch.bool, device=frames.device)
        # On the indices of flat frames, gathering and adding are single passes over memory.
        flat = frames.flatten(0, 1)
        stack, pair = live.nonzero(as_tuple=True)
        index = stack * frames.shape[1] + pair
        first, second = (flat.index_select(0, i).requires_grad_() for i in (index, index + 1))
        estimated = self._estimate(first, second)
        flow = estimated.unflatten(0, (len(frames), -1)) if flow is None else flow.index_put((stack, pair), estimated)
        logits = self._check_logits(self._classify(flow), labels)
        of_first, of_second = self._differentiate(logits, labels, (first, second))
        # Eq. 1: frame n is the first frame of pair n and the second frame of pair n-1.
        gradient = torch.zeros_like(flat).index_copy_(0, index, of_first).index_add_(0, index + 1, of_second)
        return flow.detach(), logits.detach(), gradient.view_as(frames)

    def _differentiate(self, logits: Tensor, labels: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Summed, not averaged: each stack's gradient is its own, whatever the batch.
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else (None,)
        if all(gradient is None for gradient in gradients):
            raise ValueError(self._not_differentiable())
        # A system may look at one frame of a pair only: the other has no gradient, which is a gradient of zero.
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True))

    def _not_differentiable(self) -> str:
        return (
            f"{self.name} is not differentiable from frames to logits: the gradient needs a differentiable flow "
            "estimator (FlowNet2, for one); a system without one can be the judge, stop_on="
        )

    def _check_logits(self, logits: Tensor, labels: Tensor | None = None) -> Tensor:
        if logits.ndim != 2:
            raise ValueError(f"{self.name} gave logits of shape {tuple(logits.shape)}: (B, C) is needed")
        if logits.isnan().any():
            raise FloatingPointError(
                f"{self.name} gave NaN logits for {int(logits.isnan().any(1).sum())} of {len(logits)} stacks"
            )
        if labels is not None and int(labels.max()) >= logits.shape[1]:
            raise ValueError(f"label {int(labels.max())} is out of range: {self.name} has {logits.shape[1]} classes")
        return logits

    def _estimate(self, first: Tensor, second: Tensor) -> Tensor:
        return cast(PairwiseVictim, self.victim).estimate_flow(first, second)

    def _classify(self, flow: Tensor) -> Tensor:
        return cast(PairwiseVictim, self.victim).classify(flow)
