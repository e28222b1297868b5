"""The records of one video, at both levels, from what an attack did to its stacks (paper, sections 5.1 and 5.2)."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.attack_result import AttackResult, margin
from attacks.perceptibility import Quality
from attacks.records import NO_GRADIENT, NOT_FINITE, Record
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
    no_gradient: Tensor
    """(E, S) bool: the attack stood still because the gradient was zero everywhere"""
    not_finite: Tensor
    """(E, S) bool: there is no verdict, and no other field counts"""


def stack_outcomes(result: AttackResult, correct_8bit: Tensor, quality: list[list[Quality]]) -> StackOutcomes:
    """What is kept of a result once its frames are dropped."""
    probabilities = result.logits.float().softmax(-1).cpu()
    frame_order = result.frame_order.cpu()
    steps = None if result.step_logits is None else _steps(result.step_logits.cpu(), result.labels.cpu())
    not_finite = ~probabilities.isfinite().all(-1)
    if steps is not None:
        not_finite |= ((frame_order >= 0) & ~steps[..., 1].isfinite()).any(-1)
    return StackOutcomes(
        probabilities=probabilities,
        prediction=result.predictions.cpu(),
        margin=result.margin.cpu(),
        attacked=result.attacked.cpu(),
        correct_8bit=correct_8bit.cpu(),
        frames_perturbed=result.frames_perturbed.cpu(),
        frame_order=frame_order,
        steps=steps,
        pair_forwards=result.pair_forwards.cpu(),
        pair_backwards=result.pair_backwards.cpu(),
        quality=torch.tensor(
            [[[math.nan if value is None else value for value in of_stack] for of_stack in row] for row in quality],
            dtype=torch.float64,
        ),
        no_gradient=result.no_gradient.cpu(),
        not_finite=not_finite,
    )


def no_verdict(epsilons: int, length: int) -> StackOutcomes:
    """One stack of `length` frames whose logits or gradient were not finite, under so many ε."""
    shape = (epsilons, 1)
    none, nothing = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64)
    return StackOutcomes(
        probabilities=torch.full((*shape, 1), math.nan),  # the number of classes may be unknown
        prediction=nothing - 1,
        margin=torch.full(shape, math.nan),
        attacked=none[0],
        correct_8bit=none,
        frames_perturbed=nothing,
        frame_order=torch.full((*shape, length), -1),
        steps=None,
        pair_forwards=nothing,
        pair_backwards=nothing,
        quality=torch.full((*shape, len(Quality._fields)), math.nan, dtype=torch.float64),
        no_gradient=none,
        not_finite=~none,
    )


def join(parts: Sequence[StackOutcomes]) -> StackOutcomes:
    """The stacks of several calls as one."""
    classes = max(part.probabilities.shape[-1] for part in parts)
    steps = any(part.steps is not None for part in parts)
    filled = [_filled(part, classes, steps=steps) for part in parts]
    joined: dict[str, Any] = {}
    for field in StackOutcomes._fields:
        of_parts = [getattr(part, field) for part in filled]
        joined[field] = None if of_parts[0] is None else torch.cat(of_parts, 0 if field == "attacked" else 1)
    return StackOutcomes(**joined)


def _filled(part: StackOutcomes, classes: int, *, steps: bool) -> StackOutcomes:
    """The same in the shape of its neighbours: what has no verdict knows neither classes nor steps."""
    missing = classes - part.probabilities.shape[-1]
    if missing:
        part = part._replace(probabilities=F.pad(part.probabilities, (0, missing), value=math.nan))
    if steps and part.steps is None:
        part = part._replace(steps=torch.full((*part.frame_order.shape, 3), math.nan))
    return part


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
    unknown = clean.not_finite[0]
    of_clean_video = (-1, 0.0) if unknown.any() else video_prediction(clean_probabilities)
    of_clean_stacks = [
        (-1, 0.0) if unknown[stack] else (int(clean.prediction[0, stack]), _rounded(float(clean_confidence[stack])))
        for stack in range(len(unknown))
    ]
    for e, epsilon in enumerate(epsilons):
        no_verdict = outcomes.not_finite[e] | unknown
        for stack, (clean_prediction, confidence) in enumerate(of_clean_stacks):
            yield Record(
                **common,
                level="stack",
                stack=stack,
                epsilon=epsilon,
                clean_prediction=clean_prediction,
                clean_confidence=confidence,
                stacks_perturbed=None,
                **(_WITHOUT_VERDICT if no_verdict[stack] else _of_stack(outcomes, e, stack, label)),
            )
        fault: str | None = None
        if no_verdict.any():
            video, fault = VideoOutcome(-1, 0.0, False, False, 0, 0), NOT_FINITE
        else:
            video = _video(clean_probabilities, outcomes, e, dense, label)
            # The stacks that the judge gets wrong when clean are left alone, unless all are perturbed.
            stood_still = outcomes.no_gradient[e] & (outcomes.attacked | dense)
            if video.attacked and not video.success and stood_still.any():
                fault = NO_GRADIENT
        yield Record(
            **common,
            level="video",
            stack=None,
            epsilon=epsilon,
            clean_prediction=of_clean_video[0],
            clean_confidence=_rounded(of_clean_video[1]),
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
            fault=fault,
        )


_WITHOUT_VERDICT: dict[str, Any] = {
    "prediction": -1,
    "confidence": 0.0,
    "attacked": False,
    "success": False,
    "correct": False,
    "correct_8bit": None,
    "frames_perturbed": 0,
    "frame_order": [],
    "fault": NOT_FINITE,
}
"""Fields of a stack's row where logits or a gradient were not finite; the others keep their defaults."""


def _of_stack(outcomes: StackOutcomes, e: int, stack: int, label: int) -> dict[str, Any]:
    """Fields of the row of a stack that has a verdict."""
    prediction, attacked = int(outcomes.prediction[e, stack]), bool(outcomes.attacked[stack])
    order = [frame for frame in outcomes.frame_order[e, stack].tolist() if frame >= 0]
    return {
        "prediction": prediction,
        "confidence": _rounded(float(outcomes.probabilities[e, stack].max())),
        "attacked": attacked,
        "success": attacked and prediction != label,
        "correct": prediction == label,
        "correct_8bit": bool(outcomes.correct_8bit[e, stack]),
        "frames_perturbed": int(outcomes.frames_perturbed[e, stack]),
        "frame_order": order,
        "margin": _finite(float(outcomes.margin[e, stack])),
        "steps": None if outcomes.steps is None else _listed(order, outcomes.steps[e, stack]),
        "pair_forwards": int(outcomes.pair_forwards[e, stack]),
        "pair_backwards": int(outcomes.pair_backwards[e, stack]),
        **_quality(outcomes.quality[e, stack])._asdict(),
        "fault": NO_GRADIENT if outcomes.no_gradient[e, stack] else None,
    }


def _video(clean: Tensor, outcomes: StackOutcomes, e: int, dense: bool, label: int) -> VideoOutcome:
    adversarial, frames_perturbed = outcomes.probabilities[e], outcomes.frames_perturbed[e]
    if dense:
        return attack_all_stacks(clean, adversarial, frames_perturbed, label)
    return attack_stack_after_stack(clean, adversarial, outcomes.attacked, frames_perturbed, label)


def _quality(values: Tensor) -> Quality:
    return Quality(*(value if math.isfinite(value) else None for value in values.tolist()))


def _steps(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (E, S, T, C) to prediction, confidence and margin (E, S, T, 3)."""
    # The prediction of the logits: probabilities are rounded, and two classes may have the same one.
    prediction, confidence = logits.argmax(-1), logits.float().softmax(-1).amax(-1)
    return torch.stack([prediction, confidence, margin(logits, labels[:, None].expand(logits.shape[:-1]))], -1)


def _listed(order: list[int], steps: Tensor) -> list[list[int | float | None]]:
    """[frame, prediction, confidence, margin] of each step."""
    return [
        [frame, int(prediction), _rounded(confidence), _finite(of_label)]
        for frame, (prediction, confidence, of_label) in zip(order, steps.tolist(), strict=False)
    ]


def _finite(margin: float) -> float | None:
    """None where the label's logit, or all others, are infinite: JSON has no number for that."""
    return _rounded(margin) if math.isfinite(margin) else None


def _rounded(value: float) -> float:
    """Six digits: what is below is rounding of the machine, and would make equal sweeps differ in bytes."""
    return round(value, 6)
