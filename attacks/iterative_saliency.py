"""The iterative-saliency attack and its RG variant (paper, section 3.4): frame by frame, most salient first."""

import torch
from torch import Tensor

from attacks.attack import Attack, WorkingSet, perturb
from attacks.clean_pass import CleanPass, check_saliency, frame_saliency
from attacks.victim import BatchedVictim


class IterativeSaliency(Attack):
    """Eq. 3 on one frame after another by decreasing saliency (eq. 4), until the judge is wrong or all frames are used.

    Stacks that the judge gets wrong when clean are left alone. A stack whose frames are all used and which is still
    classified right has withstood the attack and stays fully perturbed.

    Args:
        refresh: iterative-saliency-RG: take gradient and saliency anew after every unsuccessful step.
        batch_size: most stacks in one pass of a system; flow is estimated for at most as many pairs as they hold.
    """

    dense = False

    def __init__(self, refresh: bool = False, batch_size: int = 8) -> None:
        super().__init__(batch_size)
        self.refresh = refresh
        self.name = "iterative-saliency-RG" if refresh else "iterative-saliency"

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
        count = len(work.stack) // len(frames)
        judge_flow = _repeat(judged.flow, count)
        victim_flow = judge_flow if victim is judge else _repeat(clean.flow, count) if self.refresh else None
        used = torch.zeros_like(work.frame_order, dtype=torch.bool)
        active = (work.attacked & (work.epsilon > 0)).nonzero().flatten()
        changed = torch.zeros_like(used[active, 1:])

        for step in range(frames.shape[1]):
            if not len(active):
                return
            if self.refresh and step > 0:
                # A victim that is the judge has seen the last frame in the check.
                unseen = torch.zeros_like(changed) if victim is judge else changed
                frame, direction = self._refreshed_choice(work, victim, victim_flow, active, used, unseen)
            else:
                stack = work.stack[active]
                frame = _most_salient(clean.saliency[stack], used[active])
                direction = clean.gradient[stack, frame].sign()
            work.adversarial[active, frame] = perturb(
                frames[work.stack[active], frame], direction, work.epsilon[active]
            )
            work.frame_order[active, step] = frame
            used[active, frame] = True
            changed = _pairs_of(frame, frames.shape[1] - 1)
            judge.update_flow(work.adversarial, judge_flow, active, changed)
            work.logits[active] = judge.logits(work.adversarial, judge_flow, active)
            right = work.logits[active].argmax(1) == work.labels[active]
            active, changed = active[right], changed[right]

    def _refreshed_choice(
        self,
        work: WorkingSet,
        victim: BatchedVictim,
        flow: Tensor | None,
        active: Tensor,
        used: Tensor,
        unseen: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The next frame (n,) of each active row and the sign of its gradient (n, 3, H, W), at the current frames.

        `unseen` (n, T-1) are the pairs that changed in the last step and of which the victim's flow does not know.
        """
        # Only unused frames are candidates: a pair of two used frames needs no gradient, an estimate if it changed.
        live = ~(used[active, :-1] & used[active, 1:])
        victim.update_flow(work.adversarial, flow, active, unseen & ~live)
        choices, directions = [], []
        for rows, live_pairs in zip(active.split(self.batch_size), live.split(self.batch_size), strict=True):
            _, _, gradient = victim.loss_gradient(
                work.adversarial[rows], work.labels[rows], None if flow is None else flow[rows], live_pairs
            )
            saliency = frame_saliency(gradient)
            check_saliency(saliency, work.stack[rows], victim.name)
            frame = _most_salient(saliency, used[rows])
            choices.append(frame)
            directions.append(gradient[torch.arange(len(rows), device=rows.device), frame].sign())
        return torch.cat(choices), torch.cat(directions)


def _most_salient(saliency: Tensor, used: Tensor) -> Tensor:
    """The most salient frame (n,) of saliency (n, T) that is not used yet; the first of equals."""
    return saliency.masked_fill(used, -torch.inf).argmax(1)


def _pairs_of(frame: Tensor, pairs: int) -> Tensor:
    """The pairs (n, T-1) that frame n (n,) belongs to: n-1 and n."""
    pair = torch.arange(pairs, device=frame.device)
    return (pair == frame[:, None]) | (pair == frame[:, None] - 1)


def _repeat(flow: Tensor | None, count: int) -> Tensor | None:
    return None if flow is None else flow.repeat(count, 1, 1, 1, 1)
