"""What an attack gives back: adversarial frames, whom they fool and how many frames that took."""

from typing import NamedTuple

from torch import Tensor


class AttackResult(NamedTuple):
    """B stacks under E values of ε. The judge is the system that success is checked on: `stop_on`, else the victim."""

    adversarial: Tensor
    """(E, B, T, 3, H, W) in [0, 1]"""
    logits: Tensor
    """(E, B, C), of the judge on `adversarial`"""
    attacked: Tensor
    """(B,) bool: the judge is right on the clean stack"""
    success: Tensor
    """(E, B) bool: attacked, and the judge is wrong on `adversarial`"""
    frames_perturbed: Tensor
    """(E, B) int64"""
    frame_order: Tensor
    """(E, B, T) int64: the perturbed frames in the order of perturbation, then -1"""

    @property
    def predictions(self) -> Tensor:
        """(E, B) int64"""
        return self.logits.argmax(-1)

    @property
    def confidence(self) -> Tensor:
        """(E, B), softmax probability of the predicted class"""
        return self.logits.softmax(-1).amax(-1)
