"""The iterative-saliency attack and its RG variant (paper, section 3.4): frame by frame, most salient first.

Not in the paper: other orders of the frames, as a control of what saliency adds.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.attack import Attack, WorkingSet, perturb
from attacks.attack_result import FirstStep
from attacks.clean_pass import CleanPass, check_saliency, frame_saliency
from attacks.loss import Loss
from attacks.noise import stack_generator
from attacks.retained_pairs import RetainedPairs
from attacks.victim import BatchedVictim, Retain

Order = Literal["salient", "least-salient", "first-to-last", "random"]


class IterativeSaliency(Attack):
    """Eq. 3 on one frame after another by decreasing saliency (eq. 4), until the judge is wrong or all frames are used.

    Stacks that the judge gets wrong when clean are left alone. A stack whose frames are all used and which is still
    classified right has withstood the attack and stays fully perturbed. A frame that a step does not change, since its
    gradient is zero or leads out of the range, is used but not perturbed: it is neither judged nor counted.

    Args:
        refresh: iterative-saliency-RG: take gradient and saliency anew after every unsuccessful step.
        order: which frame comes next; the gradient's sign is used in all of them. "salient" is the paper's,
            "least-salient" its reverse, both decided anew with `refresh`; "first-to-last" and "random" know nothing of
            saliency. A random order depends on `seed` and the stack's own content (as float32), not on its batch.
        seed: of the random order.
        batch_size: most stacks in one pass of a system; flow is estimated for at most as many pairs as they hold.
        pairs_at_once: most frame pairs whose graphs are in memory together for a gradient; None keeps those of a whole
            pass. Results are the same; with fewer than a batch has, the clean pass estimates each pair twice that is
            not retained.
        retained_pairs: of `refresh`: most frame pairs of which the outputs of the convolutions are retained, from the
            clean pass and from the steps, for the gradients after them, which need not estimate them again; None
            retains as many as may have their graphs in memory (`pairs_at_once`), 0 none. Results are the same.
        loss: what the attack climbs, see `attacks.loss`.

    Raises:
        ValueError: an unknown order; retained_pairs below 0, or given without `refresh`.
    """

    dense = False

    def __init__(
        self,
        refresh: bool = False,
        order: Order = "salient",
        seed: int = 0,
        batch_size: int = 8,
        pairs_at_once: int | None = None,
        retained_pairs: int | None = None,
        loss: Loss = "log-odds",
    ) -> None:
        super().__init__(batch_size, pairs_at_once, loss)
        if order not in get_args(Order):
            raise ValueError(f"unknown order of frames {order!r}: choose {', '.join(get_args(Order))}")
        if retained_pairs is not None and (retained_pairs < 0 or (retained_pairs and not refresh)):
            raise ValueError(
                f"retained_pairs is {retained_pairs}: at least 0, which retains none, and 0 without refresh, whose one "
                "gradient is that of the clean pass"
            )
        self.refresh = refresh
        self.retained_pairs = retained_pairs if refresh else 0
        self.order = order
        self.seed = seed
        self.name = "iterative-saliency-RG" if refresh else "iterative-saliency"
        if order != "salient":
            self.name += f" ({order})"
        self.begins = f"{order} {seed}, {loss}" if order == "random" else f"{order}, {loss}"

    def craft(
        self,
        work: WorkingSet,
        frames: Tensor,
        victim: BatchedVictim,
        judge: BatchedVictim,
        clean: CleanPass,
        judged: CleanPass,
    ) -> None:
        assert clean.gradient is not None and clean.saliency is not None
        count, length = len(work.stack) // len(frames), frames.shape[1]
        victim_flow = work.flow
        if victim is not judge:
            victim_flow = clean.flow.repeat(count, 1, 1, 1, 1) if self.refresh and clean.flow is not None else None
        priority = self._priority(clean.saliency, frames)
        seen = clean.gradient.flatten(2).any(2)
        used = torch.zeros_like(work.frame_order, dtype=torch.bool)
        work.step_logits = work.logits.new_full((len(used), length, work.logits.shape[1]), torch.nan)
        active = (work.attacked & (work.epsilon > 0)).nonzero().flatten()
        active = _with_direction(work, active, ~seen.any(1)[work.stack[active]])
        changed = torch.zeros_like(used[active, 1:])

        for step in range(length):
            if self.refresh and step > 0:
                if victim is not judge and victim_flow is not None:  # a judge has seen the last frame in the check
                    retain = _retain(work, active, used)
                    work.pair_forwards[active] += victim.update_flow(
                        work.adversarial, victim_flow, active, changed, retain
                    )
                frame, direction, zero = self._refreshed_choice(work, victim, victim_flow, active, used, priority)
                # Where the system does not see what is left, a gradient of zero tells nothing new.
                zero &= (seen[work.stack[active]] & ~used[active]).any(1)
                active = _with_direction(work, active, zero)
                frame, direction = frame[~zero], direction[~zero]
            else:
                stack = work.stack[active]
                frame = _foremost(priority[stack], used[active])
                direction = clean.gradient[stack, frame].sign()
            original = frames[work.stack[active], frame]
            perturbed = perturb(original, direction, work.epsilon[active])
            moved = (perturbed != original).flatten(1).any(1)
            work.adversarial[active, frame] = perturbed
            used[active, frame] = True
            rows, frame = active[moved], frame[moved]
            place = (work.frame_order[rows] >= 0).sum(1)
            work.frame_order[rows, place] = frame
            changed = torch.zeros_like(used[active, 1:])
            changed[moved] = _pairs_of(frame, length - 1)
            retain = _retain(work, rows, used) if judge is victim else None
            if step == 0:
                self._first_check(work, judge, rows, frame, changed[moved], retain)
            elif len(rows):
                work.pair_forwards[rows] += judge.update_flow(work.adversarial, work.flow, rows, changed[moved], retain)
                work.logits[rows] = judge.logits(work.adversarial, work.flow, rows)
            work.step_logits[rows, place] = work.logits[rows]
            right = work.logits[active].argmax(1) == work.labels[active]
            active, changed = active[right], changed[right]
            if not len(active):
                return

    def retain(self, frames: Tensor, epsilons: int) -> RetainedPairs | None:
        in_memory = self.pairs_at_once or self.batch_size * (frames.shape[1] - 1)
        pairs = in_memory if self.retained_pairs is None else self.retained_pairs
        # More there are not: those of all rows, and of all clean stacks.
        most = (epsilons + 1) * len(frames) * (frames.shape[1] - 1)
        return RetainedPairs(min(pairs, most), frames.device) if pairs else None

    def _priority(self, saliency: Tensor, frames: Tensor) -> Tensor:
        """(n, T): of the frames that are left, the one with the greatest comes next; the first of equals."""
        if self.order == "salient":
            return saliency
        if self.order == "least-salient":
            return -saliency
        place = torch.arange(frames.shape[1], device=frames.device)
        if self.order == "first-to-last":
            return -place.expand(len(frames), -1).to(saliency)
        shuffled = [torch.randperm(len(stack), generator=stack_generator(stack, self.seed)) for stack in frames]
        return torch.stack(shuffled).to(saliency)

    def _first_check(
        self,
        work: WorkingSet,
        judge: BatchedVictim,
        active: Tensor,
        frame: Tensor,
        changed: Tensor,
        retain: Retain | None,
    ) -> None:
        """The judge's flow and logits after the first step: made, or taken from the attack that made it."""
        epsilon, shared = work.epsilon[active], work.first_step
        local, pair = changed.nonzero(as_tuple=True)
        if shared is None:
            work.pair_forwards[active] += judge.update_flow(work.adversarial, work.flow, active, changed, retain)
            if len(active):
                work.logits[active] = judge.logits(work.adversarial, work.flow, active)
            flow = None if work.flow is None else work.flow[active[local], pair]
            work.first_step = FirstStep(epsilon, frame, flow, work.logits[active])
            return
        if not torch.equal(shared.frame, frame) or not torch.equal(shared.epsilon, epsilon):
            raise ValueError(
                f"the first step given to {self.name} is not its own: pass on that of an attack that begins alike "
                f"({self.begins}), with the same victim, frames, labels, epsilons and judge"
            )
        if work.flow is not None and shared.flow is not None:
            work.flow[active[local], pair] = shared.flow
        work.logits[active] = shared.logits

    def _refreshed_choice(
        self,
        work: WorkingSet,
        victim: BatchedVictim,
        flow: Tensor | None,
        active: Tensor,
        used: Tensor,
        priority: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next frame (n,) of each active row and the sign of its gradient (n, 3, H, W), at the current frames; and
        where the gradient of all unused frames is zero (n,)."""
        keys = _keys(work, active, used)
        if work.retained is not None:
            work.retained.drop_all_but(keys)
        used = used[active]
        by_saliency = self.order in ("salient", "least-salient")
        if by_saliency:
            # Only unused frames are candidates: a pair of two used frames needs no gradient.
            live = keys >= 0
        else:
            frame = _foremost(priority[work.stack[active]], used)
            live = _pairs_of(frame, used.shape[1] - 1)
        flow = None if flow is None else flow[active]
        refreshed = victim.refreshed_gradient(
            work.adversarial[active], work.labels[active], flow, live, ~used, keys, work.retained
        )
        work.pair_forwards[active] += refreshed.forwards
        work.pair_backwards[active] += refreshed.backwards
        gradient = refreshed.frames
        saliency = frame_saliency(gradient)
        check_saliency(saliency, work.stack[active], victim.name)
        if by_saliency:
            frame = _foremost(self._priority(saliency, gradient), used)
        return frame, gradient[torch.arange(len(active), device=active.device), frame].sign(), refreshed.zero


def _with_direction(work: WorkingSet, active: Tensor, zero: Tensor) -> Tensor:
    """The active rows whose gradient is not zero everywhere; the others (n,) are noted, and stand still from here."""
    work.no_gradient[active[zero]] = True
    return active[~zero]


def _foremost(priority: Tensor, used: Tensor) -> Tensor:
    """The frame (n,) of greatest priority (n, T) that is not used yet; the first of equals."""
    return priority.masked_fill(used, -torch.inf).argmax(1)


def _keys(work: WorkingSet, active: Tensor, used: Tensor) -> Tensor:
    """(n, T-1) equal for pairs of the active rows whose two frames are equal, -1 for pairs of two used frames.

    A pair of clean frames is the same under every ε. One with a used frame is its row's own, and as long as the other
    frame is clean it stays as it is.
    """
    first, second = used[active, :-1], used[active, 1:]
    owner = torch.where(first | second, len(work.stack) + active[:, None], work.stack[active, None])
    keys = owner * first.shape[1] + torch.arange(first.shape[1], device=active.device)
    return keys.masked_fill(first & second, -1)


def _retain(work: WorkingSet, active: Tensor, used: Tensor) -> Retain | None:
    """Where the active rows' pairs are retained, with room for them in place of those that no row needs any more."""
    if work.retained is None:
        return None
    keys = _keys(work, active, used)
    work.retained.drop_all_but(keys)
    return work.retained, keys


def _pairs_of(frame: Tensor, pairs: int) -> Tensor:
    """The pairs (n, T-1) that frame n (n,) belongs to: n-1 and n."""
    pair = torch.arange(pairs, device=frame.device)
    return (pair == frame[:, None]) | (pair == frame[:, None] - 1)
