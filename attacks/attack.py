"""What every attack has in common: its arguments, eq. 3 and who judges success (paper, sections 3.2, 3.3 and 5.3).

An attack is a function of tensors, written as a callable object that holds its options.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.attack_result import AttackResult, FirstStep
from attacks.clean_pass import CleanPass, check_stacks, clean_pass, usable
from attacks.loss import Loss, check_loss
from attacks.retained_pairs import RetainedPairs
from attacks.victim import BatchedVictim, Victim, same_victim, under_attack

NO_GRADIENT = (
    "the gradient of {victim} is zero everywhere for some stacks, so {attack} stopped. They count as standing, but say "
    "nothing about robustness; result.no_gradient marks them. Look for round(), a detached part, a softmax at the end "
    "or saturated logits. With loss='cross-entropy' a large margin is enough: use 'log-odds'."
)
_MAKE_IT = "make it with clean_pass(victim, frames, labels) of this victim, these frames and these labels"


class NoGradientWarning(UserWarning):
    """An attack stopped at some stacks because the gradient was zero."""


@dataclass
class WorkingSet:
    """The state of one call, changed in place by the attack: row e·B + b is stack b under the e-th ε, R = E·B rows."""

    stack: Tensor
    """(R,) index b"""
    epsilon: Tensor
    """(R,)"""
    labels: Tensor
    """(R,)"""
    attacked: Tensor
    """(R,) bool"""
    adversarial: Tensor
    """(R, T, 3, H, W)"""
    flow: Tensor | None
    """(R, T-1, 2, H, W) of the judge; None where it does not estimate it"""
    logits: Tensor
    """(R, C) of the judge"""
    frame_order: Tensor
    """(R, T)"""
    no_gradient: Tensor
    """(R,) bool"""
    pair_forwards: Tensor
    """(R,)"""
    pair_backwards: Tensor
    """(R,)"""
    step_logits: Tensor | None = None
    """(R, T, C); attacks that go frame by frame make it"""
    first_step: FirstStep | None = None
    """of an attack that began alike; replaced by this one's"""
    retained: RetainedPairs | None = None
    """of the victim, at first those of the clean pass"""


def perturb(frames: Tensor, direction: Tensor, epsilon: Tensor) -> Tensor:
    """Eq. 3: the original frames (n, ...) moved by `epsilon` (n,) along `direction` in {-1, 0, 1}, clipped to [0, 1].

    A frame is moved once and from its original, so no projection on the ball is left to do: the distance is at most ε
    up to the rounding of one sum, half a unit in the last place of 1 (6e-8 in float32), and 0 where ε is 0.
    """
    return (frames + epsilon.view(-1, *[1] * (frames.ndim - 1)) * direction).clamp(0, 1)


class Attack(ABC):
    """Base of the attacks.

    Args:
        batch_size: most stacks in one pass of a system; flow is estimated for at most as many pairs as they hold.
        pairs_at_once: most frame pairs whose graphs are in memory together for a gradient; None keeps those of a whole
            pass. Results are the same; with fewer than a batch has, the clean pass estimates each pair twice.
        loss: what the attack climbs (`attacks.loss`). The log-odds are the paper's attack, computed so that no margin
            is too large; the cross-entropy is what the toolbox climbs, and fails above margins of 16.6 in float32.

    Raises:
        ValueError: an option below 1, an unknown loss.
    """

    name: str
    """As the paper calls it; the records call it by its name in the sweep."""
    dense: ClassVar[bool]
    """All frames of all stacks are perturbed, right or wrong when clean; decides the video level (section 5.2)."""
    needs_gradient: ClassVar[bool] = True
    begins: str | None = None
    """Attacks of which this is the same share their first step; None for an attack on all frames at once."""
    retained_pairs: int | None = 0
    """Frame pairs that it retains for its gradients. A sweep makes attacks with any first: of a first step that is
    shared they would have none."""

    def __init__(self, batch_size: int = 8, pairs_at_once: int | None = None, loss: Loss = "log-odds") -> None:
        for option, value in (("batch_size", batch_size), ("pairs_at_once", pairs_at_once)):
            if value is not None and value < 1:
                raise ValueError(f"{option} is {value}: at least 1 is needed")
        check_loss(loss)
        self.batch_size = batch_size
        self.pairs_at_once = pairs_at_once
        self.loss = loss

    def __call__(
        self,
        victim: Victim,
        frames: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        stop_on: Victim | None = None,
        clean: CleanPass | None = None,
        stop_on_clean: CleanPass | None = None,
        first_step: FirstStep | None = None,
    ) -> AttackResult:
        """Attack frames (B, T, 3, H, W) in [0, 1] with labels (B,) under every ε of `epsilons`, on the [0, 1] scale.

        Works under `no_grad` and in inference mode. The gradient is the victim's; with `stop_on` the success is that
        system's (section 5.3), which need not be differentiable. A batch gives what its stacks give one by one, up to
        the rounding of the systems themselves, whose kernels may depend on the batch. At ε = 0 the input is returned.

        Colours come after time: frames (B, 3, T, H, W), as 3D networks take them, are refused unless T is 3, when
        nothing tells them from (B, T, 3, H, W).

        Args:
            clean: the victim's clean pass on these frames; computed when None. The first attack that retains pairs goes
                on from those that it `retained`.
            stop_on_clean: the clean pass of `stop_on`, with or without gradient; computed when None.
            first_step: of the result of an attack that `begins` alike, with the same victim, frames, labels, epsilons
                and judge; the step is not made again and does not count in the costs.

        Raises:
            ValueError: ε outside [0, 1], bad frames or labels, a clean pass of anything else, a first step of something
                else, a victim that is not differentiable, one that gives the same frames other logits each time, or
                one whose `forward` is not what its `estimate_flow` and `classify` do.
            FloatingPointError: NaN logits, or a gradient that is not finite.
            RuntimeError: the victim holds tensors that were made in inference mode.

        Warns:
            NoGradientWarning: a gradient of zero stopped the attack at some stacks.
        """
        check_epsilons(epsilons)
        check_stacks(frames, labels)
        if first_step is not None and self.begins is None:
            raise ValueError(f"{self.name} perturbs all frames at once: it has no first step to be given")
        judge = victim if stop_on is None else stop_on
        with under_attack(victim, judge):
            frames, labels = usable(frames), usable(labels).to(frames.device, torch.int64)
            batched_victim = BatchedVictim(victim, self.batch_size, self.pairs_at_once, self.loss)
            batched_judge = batched_victim if judge is victim else BatchedVictim(judge, self.batch_size)
            retained = self.retain(frames, len(epsilons))
            if clean is None and (self.needs_gradient or judge is victim):
                clean = clean_pass(
                    victim,
                    frames,
                    labels,
                    gradient=self.needs_gradient,
                    batch_size=self.batch_size,
                    pairs_at_once=self.pairs_at_once,
                    retained=retained,
                    loss=self.loss,
                )
            judged = clean if judge is victim else stop_on_clean
            if judged is None:
                judged = clean_pass(judge, frames, labels, gradient=False, batch_size=self.batch_size)
            _check_clean(judged, judge, frames, labels)
            if clean is None:
                clean = judged  # noise with a judge of its own: nothing of the victim is used
            else:
                _check_clean(clean, victim, frames, labels, self.loss if self.needs_gradient else None)

            count = len(epsilons)
            attacked = judged.logits.argmax(1) == labels
            work = WorkingSet(
                stack=torch.arange(len(frames), device=frames.device).repeat(count),
                epsilon=torch.tensor(epsilons, dtype=frames.dtype, device=frames.device).repeat_interleave(len(frames)),
                labels=labels.repeat(count),
                attacked=attacked.repeat(count),
                adversarial=frames.repeat(count, 1, 1, 1, 1),
                flow=None if judged.flow is None else judged.flow.repeat(count, 1, 1, 1, 1),
                logits=judged.logits.repeat(count, 1),
                frame_order=torch.full((count * len(frames), frames.shape[1]), -1, device=frames.device),
                no_gradient=torch.zeros_like(attacked).repeat(count),
                pair_forwards=torch.zeros_like(labels).repeat(count),
                pair_backwards=torch.zeros_like(labels).repeat(count),
                first_step=first_step,
                retained=None if retained is None else clean.retained or retained,
            )
            try:
                self.craft(work, frames, batched_victim, batched_judge, clean, judged)
            finally:
                if work.retained is not None:
                    work.retained.clear()
            success = work.attacked & (work.logits.argmax(1) != work.labels)
            if work.no_gradient.any():
                message = NO_GRADIENT.format(victim=batched_victim.name, attack=self.name)
                warnings.warn(message, NoGradientWarning, stacklevel=2)
            shape = (count, len(frames))
            return AttackResult(
                adversarial=work.adversarial.unflatten(0, shape),
                flow=None if work.flow is None else work.flow.unflatten(0, shape),
                logits=work.logits.unflatten(0, shape),
                labels=labels,
                attacked=attacked,
                success=success.unflatten(0, shape),
                frames_perturbed=(work.frame_order >= 0).sum(1).unflatten(0, shape),
                frame_order=work.frame_order.unflatten(0, shape),
                no_gradient=work.no_gradient.unflatten(0, shape),
                step_logits=None if work.step_logits is None else work.step_logits.unflatten(0, shape),
                pair_forwards=work.pair_forwards.unflatten(0, shape),
                pair_backwards=work.pair_backwards.unflatten(0, shape),
                first_step=work.first_step,
            )

    def retain(self, frames: Tensor, epsilons: int) -> RetainedPairs | None:
        """Where the clean pass of frames (B, T, 3, H, W) retains its pairs for this attack, which goes on from them
        under so many ε; None for an attack that retains none."""
        del frames, epsilons
        return None

    @abstractmethod
    def craft(
        self,
        work: WorkingSet,
        frames: Tensor,
        victim: BatchedVictim,
        judge: BatchedVictim,
        clean: CleanPass,
        judged: CleanPass,
    ) -> None:
        """Fill in what the rows with ε > 0 come to: frames, flow, logits, frame order, steps and costs."""

    def perturb_all_frames(self, work: WorkingSet, frames: Tensor, direction: Tensor, judge: BatchedVictim) -> None:
        """Move every frame of every row with ε > 0 along the `direction` (B, T, 3, H, W) of its stack."""
        for rows in _split((work.epsilon > 0).nonzero().flatten(), self.batch_size):
            stack = work.stack[rows]
            adversarial = perturb(frames[stack], direction[stack], work.epsilon[rows])
            moved = (adversarial != frames[stack]).flatten(2).any(2)
            place = torch.arange(frames.shape[1], device=rows.device)
            order = torch.where(moved, place, len(place)).sort(1).values
            work.frame_order[rows] = order.masked_fill(order == len(place), -1)
            some = moved.any(1)
            if not some.any():
                continue
            rows, adversarial = rows[some], adversarial[some]
            work.adversarial[rows] = adversarial
            flow, work.logits[rows] = judge.forward(adversarial)
            if work.flow is not None and flow is not None:
                work.flow[rows] = flow
            work.pair_forwards[rows] = frames.shape[1] - 1


def _split(rows: Tensor, size: int) -> Sequence[Tensor]:
    return rows.split(size) if len(rows) else ()


def check_epsilons(epsilons: Sequence[float]) -> None:
    """Raise ValueError that names an ε outside [0, 1]."""
    if isinstance(epsilons, (int, float)) or len(epsilons) == 0:
        raise ValueError(f"epsilons is {epsilons!r}: a sequence with at least one ε is needed, such as (0.005, 0.01)")
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise ValueError(
                f"ε = {epsilon} is outside [0, 1]: ε is on the scale of frames in [0, 1]; one 8-bit grey level is 1/255"
            )


def _check_clean(clean: CleanPass, victim: Victim, frames: Tensor, labels: Tensor, loss: Loss | None = None) -> None:
    """Raise ValueError that names what a clean pass was made of instead of these; `loss` if its gradient is needed."""
    made_of = clean.made_of
    name = type(victim).__name__
    if not same_victim(made_of.victim, victim):
        other = type(made_of.victim).__name__
        raise ValueError(f"the clean pass is of another system ({other}) than {name}: {_MAKE_IT}")
    if made_of.frames._version != made_of.version:
        raise ValueError(f"the frames were written to since the clean pass of {name} was made: {_MAKE_IT}")
    for what, seen, wanted in (("frames", made_of.frames, frames), ("labels", made_of.labels, labels)):
        if seen.shape != wanted.shape or seen.dtype != wanted.dtype or seen.device != wanted.device:
            raise ValueError(
                f"the clean pass of {name} is of {what} {tuple(seen.shape)}, {seen.dtype} on {seen.device}; given are "
                f"{tuple(wanted.shape)}, {wanted.dtype} on {wanted.device}: {_MAKE_IT}"
            )
        if differing := (seen != wanted).reshape(len(seen), -1).any(1).nonzero().flatten().tolist():
            raise ValueError(f"the clean pass of {name} is of other {what} for stacks {differing}: {_MAKE_IT}")
    if loss is not None and made_of.loss != loss:
        of = "has no gradient" if made_of.loss is None else f"has the gradient of {made_of.loss!r}"
        raise ValueError(f"the clean pass of {name} {of}, {loss!r} is needed: {_MAKE_IT}, with loss={loss!r}")
