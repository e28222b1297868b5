"""The records of one video, at both levels, from what an attack did to its stacks (paper, sections 5.1 and 5.2)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attacks.attack_result import AttackResult, margin
from attacks.perceptibility import Quality
from attacks.records import Record
from attacks.video_level import VideoOutcome, attack_all_stacks, attack_stack_after_stack, video_prediction


class StackOutcomes(NamedTuple):
    """S stacks under E values of ε, as the target judges them; on the CPU."""

    probabilities: Tensor
    """(E, S, C)"""
    prediction: Tensor
    """(E, S)"""
    margin: Tensor
    """(E, S), logit of the label less the greatest other"""
    attacked: Tensor
    """(S,) bool: right when clean"""
    correct_8bit: Tensor
    """(E, S) bool: right on the adversarial frames rounded to 8 bits"""
    frames_perturbed: Tensor
    """(E, S)"""
    frame_order: Tensor
    """(E, S, T), -1 padded"""
    steps: Tensor | None
    """(E, S, T, 3): prediction, confidence and margin after each of these frames; None for all frames at once"""
    pair_forwards: Tensor
    """(E, S)"""
    pair_backwards: Tensor
    """(E, S)"""
    quality: Tensor
    """(E, S, 4) float64, the fields of Quality; nan for None"""


def stack_outcomes(result: AttackResult, correct_8bit: Tensor, quality: list[list[Quality]]) -> StackOutcomes:
    """What is kept of a result once its frames are dropped."""
    return StackOutcomes(
        probabilities=result.logits.float().softmax(-1).cpu(),
        prediction=result.predictions.cpu(),
        margin=result.margin.cpu(),
        attacked=result.attacked.cpu(),
        correct_8bit=correct_8bit.cpu(),
        frames_perturbed=result.frames_perturbed.cpu(),
        frame_order=result.frame_order.cpu(),
        steps=None if result.step_logits is None else _steps(result.step_logits.cpu(), result.labels.cpu()),
        pair_forwards=result.pair_forwards.cpu(),
        pair_backwards=result.pair_backwards.cpu(),
        quality=torch.tensor(
            [[[math.nan if value is None else value for value in of_stack] for of_stack in row] for row in quality],
            dtype=torch.float64,
        ),
    )


def join(parts: Sequence[StackOutcomes]) -> StackOutcomes:
    """The stacks of several calls as one."""
    joined: dict[str, Any] = {}
    for field in StackOutcomes._fields:
        of_parts = [getattr(part, field) for part in parts]
        joined[field] = None if of_parts[0] is None else torch.cat(of_parts, 0 if field == "attacked" else 1)
    return StackOutcomes(**joined)


def records_of(
    clean: StackOutcomes, outcomes: StackOutcomes, epsilons: Sequence[float], *, dense: bool, label: int, **common: Any
) -> Iterator[Record]:
    """The rows of one attack on one target: for each ε all stacks in order, then the video.

    Args:
        clean: the same stacks without an attack (E = 1).
        dense: the attack perturbs every stack whatever the judge says; the others stop when the video is lost.
        common: the fields that are the same in all these rows: clip, group, system, target, attack.
    """
    common = {**common, "label": label}
    clean_probabilities = clean.probabilities[0]
    clean_confidence = clean_probabilities.amax(1)
    video_clean_prediction, video_clean_confidence = video_prediction(clean_probabilities)
    for e, epsilon in enumerate(epsilons):
        for stack in range(len(outcomes.attacked)):
            correct = int(outcomes.prediction[e, stack]) == label
            attacked = bool(outcomes.attacked[stack])
            quality = _quality(outcomes.quality[e, stack])
            order = [frame for frame in outcomes.frame_order[e, stack].tolist() if frame >= 0]
            yield Record(
                **common,
                level="stack",
                stack=stack,
                epsilon=epsilon,
                clean_prediction=int(clean.prediction[0, stack]),
                clean_confidence=_rounded(float(clean_confidence[stack])),
                prediction=int(outcomes.prediction[e, stack]),
                confidence=_rounded(float(outcomes.probabilities[e, stack].max())),
                attacked=attacked,
                success=attacked and not correct,
                correct=correct,
                correct_8bit=bool(outcomes.correct_8bit[e, stack]),
                frames_perturbed=int(outcomes.frames_perturbed[e, stack]),
                frame_order=order,
                stacks_perturbed=None,
                margin=_rounded(float(outcomes.margin[e, stack])),
                steps=None if outcomes.steps is None else _listed(order, outcomes.steps[e, stack]),
                pair_forwards=int(outcomes.pair_forwards[e, stack]),
                pair_backwards=int(outcomes.pair_backwards[e, stack]),
                psnr=quality.psnr,
                ssim=quality.ssim,
                flicker=quality.flicker,
                flow_epe=quality.flow_epe,
            )
        video = _video(clean_probabilities, outcomes, e, dense, label)
        yield Record(
            **common,
            level="video",
            stack=None,
            epsilon=epsilon,
            clean_prediction=video_clean_prediction,
            clean_confidence=_rounded(video_clean_confidence),
            prediction=video.prediction,
            confidence=_rounded(video.confidence),
            attacked=video.attacked,
            success=video.success,
            correct=video.prediction == label,
            correct_8bit=None,
            frames_perturbed=video.frames_perturbed,
            frame_order=None,
            stacks_perturbed=video.stacks_perturbed,
            margin=None,
            steps=None,
            pair_forwards=0,
            pair_backwards=0,
        )


def _video(clean: Tensor, outcomes: StackOutcomes, e: int, dense: bool, label: int) -> VideoOutcome:
    adversarial, frames_perturbed = outcomes.probabilities[e], outcomes.frames_perturbed[e]
    if dense:
        return attack_all_stacks(clean, adversarial, frames_perturbed, label)
    return attack_stack_after_stack(clean, adversarial, outcomes.attacked, frames_perturbed, label)


def _quality(values: Tensor) -> Quality:
    return Quality(*(None if math.isnan(value) else value for value in values.tolist()))


def _steps(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (E, S, T, C) to prediction, confidence and margin (E, S, T, 3)."""
    confidence, prediction = logits.float().softmax(-1).max(-1)
    return torch.stack([prediction, confidence, margin(logits, labels[:, None].expand(logits.shape[:-1]))], -1)


def _listed(order: list[int], steps: Tensor) -> list[list[int | float]]:
    """[frame, prediction, confidence, margin] of each step."""
    return [
        [frame, int(prediction), _rounded(confidence), _rounded(of_label)]
        for frame, (prediction, confidence, of_label) in zip(order, steps.tolist(), strict=False)
    ]


def _rounded(value: float) -> float:
    """Six digits: what is below is rounding of the machine, and would make equal sweeps differ in bytes."""
    return round(value, 6)
