"""What an attack starts from: flow, logits, gradient and saliency of the clean frames (paper, sections 3.2 and 3.4).

It does not depend on the attack or on ε: one pass is shared by all of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attacks.loss import Loss
from attacks.retained_pairs import RetainedPairs
from attacks.victim import BatchedVictim, Victim, under_attack


class MadeOf(NamedTuple):
    """Inputs of a clean pass, which is valid for these alone."""

    victim: Victim
    frames: Tensor
    """(B, T, 3, H, W), the caller's own memory"""
    version: int
    """of these frames, which grows when they are written to"""
    labels: Tensor
    """(B,)"""
    loss: Loss | None
    """None without gradient"""


class CleanPass(NamedTuple):
    """One victim on B clean stacks."""

    flow: Tensor | None
    """(B, T-1, 2, H, W) in pixels; None for a victim that does not estimate it."""
    logits: Tensor
    """(B, C)"""
    gradient: Tensor | None
    """(B, T, 3, H, W), of each stack's loss; None where it was not asked for."""
    saliency: Tensor | None
    """(B, T), eq. 4; None without gradient."""
    made_of: MadeOf
    retained: RetainedPairs | None = None
    """Its pairs, for the first attack that goes on from them; that one uses them up."""


def clean_pass(
    victim: Victim,
    frames: Tensor,
    labels: Tensor,
    *,
    gradient: bool = True,
    batch_size: int = 8,
    pairs_at_once: int | None = None,
    retained: RetainedPairs | None = None,
    loss: Loss = "log-odds",
    check: bool = True,
) -> CleanPass:
    """Run `victim` on frames (B, T, 3, H, W) in [0, 1] with labels (B,), at most `batch_size` stacks at once.

    Without `gradient` the victim need not be differentiable: the form for a system that only judges. With one, the
    graphs of at most `pairs_at_once` frame pairs are in memory together; where a batch has more, each pair that is not
    retained is estimated twice, first without and then with its graph. None keeps the graphs of a whole batch.
    `retained`, from an attack's `retain`, is filled with the pairs: pair n of stack b by the key b·(T-1) + n.

    Args:
        loss: whose gradient is taken, see `attacks.loss`.
        check: run the first stack twice more, to see that the victim gives it the same logits each time and, if it is
            pairwise, on both of its ways. For a caller that has checked this victim already.

    Raises:
        ValueError: bad frames or labels, a gradient asked of a victim that has none, or a victim that fails the check.
        FloatingPointError: NaN logits, or a gradient that is not finite.
    """
    check_stacks(frames, labels)
    batched = BatchedVictim(victim, batch_size, pairs_at_once, loss)
    with under_attack(victim):
        frames, labels = usable(frames), usable(labels).to(frames.device, torch.int64)
        if check:
            batched.check(frames[:1])
        keys = torch.arange(len(frames) * (frames.shape[1] - 1), device=frames.device).view(len(frames), -1)
        chunks = list(zip(*(tensor.split(batch_size) for tensor in (frames, labels, keys)), strict=True))
        if gradient:
            passes = (
                batched.loss_gradient(part, of_part, None if retained is None else (retained, of_pairs))
                for part, of_part, of_pairs in chunks
            )
            flows, logits, gradients = zip(*passes, strict=True)
            whole_gradient = torch.cat(gradients)
            saliency = frame_saliency(whole_gradient)
            check_saliency(saliency, torch.arange(len(frames)), batched.name)
        else:
            flows, logits = zip(*(batched.forward(chunk) for chunk, *_ in chunks), strict=True)
        whole_logits = torch.cat(logits)
        if int(labels.max()) >= whole_logits.shape[1]:
            raise ValueError(
                f"label {int(labels.max())} is out of range: {batched.name} has {whole_logits.shape[1]} classes"
            )
        return CleanPass(
            flow=torch.cat(flows) if batched.pairwise else None,
            logits=whole_logits,
            gradient=whole_gradient if gradient else None,
            saliency=saliency if gradient else None,
            made_of=MadeOf(victim, frames, frames._version, labels, loss if gradient else None),
            retained=retained,
        )


def frame_saliency(gradient: Tensor) -> Tensor:
    """Mean magnitude of the gradient (B, T, 3, H, W) over each frame's pixels and colours, (B, T) (eq. 4)."""
    return gradient.abs().mean((2, 3, 4))


def usable(tensor: Tensor) -> Tensor:
    """The values without their history, copied where autograd could not save them: a tensor made in inference mode."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def check_saliency(saliency: Tensor, items: Tensor, victim: str) -> None:
    """Raise FloatingPointError that names the `items` (n,) with a gradient that is not finite, so has no sign.

    The mean magnitude (n, T) tells as much as every value of the gradient does.
    """
    bad = ~saliency.isfinite().all(1)
    if bad.any():
        raise FloatingPointError(
            f"the gradient of {victim} is NaN or infinite for stacks {items[bad.to(items.device)].tolist()} of the "
            "batch: look for a square root or a division at zero in it, or attack in float32"
        )


def check_stacks(frames: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless frames are floating (B, T, 3, H, W) in [0, 1], T > 1, and labels are B class indices.

    Frames (B, 3, 3, H, W) may have their axes either way round, colour or time first; nothing here can tell.
    """
    if not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}: floating RGB in [0, 1] is needed (divide 8-bit frames by 255)")
    if frames.ndim != 5 or frames.shape[2] != 3 or frames.shape[1] < 2 or not len(frames):
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}: (B, T, 3, H, W) with B > 0 and T > 1 is needed"
            + _way_out(frames.shape)
        )
    low, high = frames.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"frames lie in [{low:g}, {high:g}]: RGB in [0, 1] is needed")
    if labels.shape != frames.shape[:1] or labels.is_floating_point() or labels.dtype is torch.bool:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: one class index for each of {len(frames)} "
            "stacks is needed"
        )
    if labels.min() < 0:
        raise ValueError(f"label {int(labels.min())} is out of range: class indices start at 0")


def _way_out(shape: torch.Size) -> str:
    """What to do with frames whose colours lie on another axis."""
    if len(shape) == 5 and shape[1] == 3:
        return "; of (B, 3, T, H, W), as 3D networks take them, that is frames.transpose(1, 2)"
    if len(shape) == 5 and shape[4] == 3:
        return "; of (B, T, H, W, 3) that is frames.permute(0, 1, 4, 2, 3)"
    return ""
