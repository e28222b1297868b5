"""The video level (paper, section 5.2): the mean of the stacks' predictions, attacked stack after stack.

Pure functions of what the stack-level attacks gave for the S stacks of one video, in temporal order. A sweep attacks
all stacks, since the stack level needs them, and a stack's attack does not depend on its video: so the attack stack
after stack that stops as soon as the video is lost follows exactly, without a further pass of any system.
"""

from typing import NamedTuple

from torch import Tensor


class VideoOutcome(NamedTuple):
    """One video under one attack and ε."""

    prediction: int
    """class of the video as the attack leaves it"""
    confidence: float
    """its mean probability"""
    attacked: bool
    """the clean video is classified right"""
    success: bool
    """attacked, and now classified wrong"""
    stacks_perturbed: int
    frames_perturbed: int


def video_prediction(probabilities: Tensor) -> tuple[int, float]:
    """Class and confidence of a video: the largest entry of the mean of its stacks' softmax probabilities (S, C)."""
    confidence, prediction = probabilities.double().mean(0).max(0)
    return int(prediction), float(confidence)


def attack_all_stacks(clean: Tensor, adversarial: Tensor, frames_perturbed: Tensor, label: int) -> VideoOutcome:
    """One-shot and noise: every stack is perturbed, always.

    Args:
        clean, adversarial: softmax probabilities (S, C) of the judge on the clean and on the perturbed stacks.
        frames_perturbed: (S,), of the stack-level result.
        label: the video's class.
    """
    _check(clean, adversarial, frames_perturbed)
    attacked = video_prediction(clean)[0] == label
    prediction, confidence = video_prediction(adversarial)
    return VideoOutcome(
        prediction=prediction,
        confidence=confidence,
        attacked=attacked,
        success=attacked and prediction != label,
        stacks_perturbed=int((frames_perturbed > 0).sum()),
        frames_perturbed=int(frames_perturbed.sum()),
    )


def attack_stack_after_stack(
    clean: Tensor, adversarial: Tensor, attacked: Tensor, frames_perturbed: Tensor, label: int
) -> VideoOutcome:
    """The iterative attacks: the stacks in order, each as the stack-level attack leaves it, until the video is lost.

    A stack that the judge gets wrong when clean is left alone; one that withstood its attack stays fully perturbed. A
    video that is misclassified when clean is left alone.

    Args:
        clean, adversarial: softmax probabilities (S, C) of the judge on the clean and on the attacked stacks.
        attacked: (S,) bool, the stack is classified right when clean.
        frames_perturbed: (S,), of the stack-level result.
        label: the video's class.
    """
    _check(clean, adversarial, frames_perturbed, attacked)
    current = clean.clone()
    prediction, confidence = video_prediction(current)
    video_attacked = prediction == label
    stacks = frames = 0
    if video_attacked:
        # At ε = 0 no stack has a perturbed frame, and none counts.
        for stack in (attacked & (frames_perturbed > 0)).nonzero().flatten().tolist():
            current[stack] = adversarial[stack]
            stacks += 1
            frames += int(frames_perturbed[stack])
            prediction, confidence = video_prediction(current)
            if prediction != label:
                break
    return VideoOutcome(prediction, confidence, video_attacked, video_attacked and prediction != label, stacks, frames)


def _check(clean: Tensor, adversarial: Tensor, *per_stack: Tensor) -> None:
    if clean.ndim != 2 or clean.shape != adversarial.shape or any(t.shape != clean.shape[:1] for t in per_stack):
        shapes = [tuple(t.shape) for t in (clean, adversarial, *per_stack)]
        raise ValueError(f"stack results have shapes {shapes}: (S, C), (S, C) and (S,) for the rest are needed, S > 0")
