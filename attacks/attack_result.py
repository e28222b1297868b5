"""What an attack gives back: adversarial frames, whom they fool, how many frames and how much work that took."""

from typing import NamedTuple

from torch import Tensor


class FirstStep(NamedTuple):
    """The first step of an attack that goes frame by frame, which the attacks that begin alike have in common.

    It depends on the clean gradient, ε and the judge alone. n rows: the attacked stacks under ε > 0 whose first frame
    moved.
    """

    epsilon: Tensor
    """(n,)"""
    frame: Tensor
    """(n,) int64, the frame that is perturbed"""
    flow: Tensor | None
    """(m, 2, H, W), the judge's flow of that frame's pairs, row after row; None where it does not estimate it"""
    logits: Tensor
    """(n, C), of the judge after the step"""


class AttackResult(NamedTuple):
    """B stacks under E values of ε. The judge is the system that success is checked on: `stop_on`, else the victim."""

    adversarial: Tensor
    """(E, B, T, 3, H, W) in [0, 1]"""
    flow: Tensor | None
    """(E, B, T-1, 2, H, W) in pixels, the judge's of `adversarial`; None for a judge that does not estimate it"""
    logits: Tensor
    """(E, B, C), of the judge on `adversarial`"""
    labels: Tensor
    """(B,) int64"""
    attacked: Tensor
    """(B,) bool: the judge is right on the clean stack"""
    success: Tensor
    """(E, B) bool: attacked, and the judge is wrong on `adversarial`"""
    frames_perturbed: Tensor
    """(E, B) int64"""
    frame_order: Tensor
    """(E, B, T) int64: the perturbed frames in the order of perturbation, then -1"""
    no_gradient: Tensor
    """(E, B) bool: the attack stopped because the gradient was zero everywhere, or at all frames that were left after
    some. Attacks on all frames set it for stacks that were wrong when clean, too."""
    step_logits: Tensor | None
    """(E, B, T, C), of the judge after each of these frames, then NaN; None for an attack on all frames at once"""
    pair_forwards: Tensor
    """(E, B) int64: frame pairs whose flow was estimated for this, by victim and judge, the clean pass not included"""
    pair_backwards: Tensor
    """(E, B) int64: frame pairs that a gradient went through, with those that a retained graph had besides"""
    first_step: FirstStep | None
    """to be passed on to an attack that begins alike; None for an attack on all frames at once"""

    @property
    def predictions(self) -> Tensor:
        """(E, B) int64"""
        return self.logits.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """(E, B), softmax probability of the predicted class"""
        return self.logits.softmax(-1).amax(-1)

    @property
    def margin(self) -> Tensor:
        """(E, B), see `margin`"""
        return margin(self.logits, self.labels.expand(self.logits.shape[:-1]))


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit of the label less the greatest other, of logits (..., C) and labels (...); negative where wrong."""
    of_label = logits.gather(-1, labels[..., None])
    others = logits.scatter(-1, labels[..., None], -float("inf"))
    return of_label[..., 0] - others.amax(-1)
