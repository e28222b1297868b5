"""Against cases that were counted by hand."""

from typing import Any

import pytest

from attacks.metrics import BudgetMap, Cell, budget_map, curve, frames_histogram, tally
from attacks.records import CLEAN, Record


def row(attack: str, epsilon: float, attacked: bool, correct: bool, frames: int = 0, **fields: Any) -> Record:
    level = fields.pop("level", "stack")
    values = {
        "level": level,
        "clip": "Archery/v_Archery_g01_c01",
        "group": "Archery_g01",
        "stack": 0,
        "label": 1,
        "system": "flownet2",
        "target": "flownet2",
        "attack": attack,
        "epsilon": epsilon,
        "clean_prediction": 1 if attacked else 0,
        "clean_confidence": 0.9,
        "prediction": 1 if correct else 0,
        "confidence": 0.9,
        "attacked": attacked,
        "success": attacked and not correct,
        "correct": correct,
        "correct_8bit": correct if level == "stack" else None,
        "frames_perturbed": frames,
        "frame_order": list(range(frames)),
        "stacks_perturbed": None,
        "margin": None if level == "video" else 1.0 if correct else -1.0,
        "steps": None,
        "pair_forwards": 0,
        "pair_backwards": 0,
    }
    return Record(**{**values, **fields})


def test_both_denominators_and_sparsity() -> None:
    # Ten stacks, eight of them right when clean; three of the eight are fooled, with 1, 2 and 5 frames.
    rows = [row("rg", 0.01, True, False, frames) for frames in (1, 2, 5)]
    rows += [row("rg", 0.01, True, True, 11) for _ in range(5)]
    rows += [row("rg", 0.01, False, False), row("rg", 0.01, False, True, 11)]  # one is corrected by chance
    counts = tally(rows)[Cell("stack", "rg", "flownet2", 0.01)]
    assert (counts.examples, counts.attacked, counts.success, counts.recovered) == (10, 8, 3, 1)
    assert counts.accuracy == 0.5
    assert counts.accuracy_of_attacked == 0.625
    assert counts.success_rate == 0.375
    assert counts.mean_frames == pytest.approx(8 / 3)  # not of the five that withstood with 11
    assert counts.frames == {1: 1, 2: 1, 5: 1}


def test_eight_bit_accuracy_counts_what_rounding_undoes() -> None:
    rows = [
        row("rg", 0.01, True, False, 1, correct_8bit=True),
        row("rg", 0.01, True, False, 1),
        row("rg", 0.01, True, True, 11, correct_8bit=False),
        row("rg", 0.01, False, False, correct_8bit=True),  # wrong when clean: wrong at every ε
    ]
    counts = tally(rows)[Cell("stack", "rg", "flownet2", 0.01)]
    assert counts.accuracy == 0.25
    assert counts.accuracy_8bit == 0.25


def test_micro_average_weighs_stacks_alike() -> None:
    # One class with 9 stacks all right, one with 1 stack wrong: 0.9, where a mean over classes would say 0.5.
    rows = [row(CLEAN, 0.0, True, True) for _ in range(9)] + [row(CLEAN, 0.0, False, False, label=2)]
    assert tally(rows)[Cell("stack", CLEAN, "flownet2", 0.0)].accuracy == 0.9


def test_nothing_attacked_has_no_rate() -> None:
    counts = tally([row("rg", 0.01, False, False)])[Cell("stack", "rg", "flownet2", 0.01)]
    assert counts.accuracy == 0
    assert counts.success_rate is counts.accuracy_of_attacked is counts.mean_frames is None


def test_video_rows_are_cells_of_their_own() -> None:
    video = {"level": "video", "stack": None, "frame_order": None}
    rows = [row("rg", 0.01, True, False, 3), row("rg", 0.01, True, False, 7, stacks_perturbed=2, **video)]
    rows += [row("rg", 0.01, True, True, 22, stacks_perturbed=4, **video)]
    counts = tally(rows)
    assert counts[Cell("stack", "rg", "flownet2", 0.01)].accuracy == 0
    videos = counts[Cell("video", "rg", "flownet2", 0.01)]
    assert (videos.accuracy, videos.mean_frames, videos.mean_stacks) == (0.5, 7, 2)
    assert videos.accuracy_8bit is None


def test_curve_starts_at_the_clean_system_of_its_target() -> None:
    rows = [row(CLEAN, 0.0, True, True), row(CLEAN, 0.0, False, False, target="tvl1")]
    rows += [row("rg", 0.02, True, True), row("rg", 0.01, True, False, 1)]
    points = curve(tally(rows), level="stack", attack="rg", target="flownet2")
    assert {epsilon: counts.accuracy for epsilon, counts in points.items()} == {0.0: 1, 0.01: 0, 0.02: 1}
    assert list(points) == sorted(points)
    assert curve(tally(rows), level="stack", attack="rg", target="tvl1") == {}


def test_histogram_is_the_mean_over_epsilon() -> None:
    # ε = 0.01: one success, 1 frame. ε = 0.02: four, 1 1 2 4. Pooled, one frame would have 3/5; the mean is 3/4.
    rows = [row("rg", 0.01, True, False, 1), row("rg", 0.03, True, True, 11), row(CLEAN, 0.0, True, True)]
    rows += [row("rg", 0.02, True, False, frames) for frames in (1, 1, 2, 4)]
    shares = frames_histogram(curve(tally(rows), level="stack", attack="rg", target="flownet2"))
    assert shares == {1: 0.75, 2: 0.125, 4: 0.125}
    assert frames_histogram(curve(tally(rows[1:3]), level="stack", attack="rg", target="flownet2")) == {}


def _stepwise(*predictions: int, attacked: bool = True, **fields: Any) -> Record:
    """An attack on a stack of class 1 that made these predictions one after the other."""
    steps = [[n, prediction, 0.9, 1.0 if prediction == 1 else -1.0] for n, prediction in enumerate(predictions)]
    correct = not predictions or predictions[-1] == 1
    return row("rg", fields.pop("epsilon", 0.01), attacked, correct, len(steps), steps=steps, **fields)


def test_budget_map_by_hand() -> None:
    # Five stacks: one wrong when clean, lost after 1, lost after 3, and two that withstand with 4.
    rows = [
        _stepwise(attacked=False),
        _stepwise(0),
        _stepwise(1, 1, 2),
        _stepwise(1, 1, 1, 1),
        _stepwise(1, 1, 1, 1),
        _stepwise(2, epsilon=0.005),
        _stepwise(1, 0, target="tvl1"),
        row("one_shot", 0.01, True, False, 4),  # all frames at once: there are no budgets
        row(CLEAN, 0.0, True, True),
        row("rg", 0.01, True, False, 3, level="video", stack=None),
    ]
    assert budget_map(rows) == {
        ("rg", "flownet2"): BudgetMap([0.005, 0.01], [[1, 0, 0, 0, 0], [0.8, 0.6, 0.6, 0.4, 0.4]]),
        ("rg", "tvl1"): BudgetMap([0.01], [[1, 1, 0, 0, 0]]),
    }
    longer = budget_map(rows, frames=11)["rg", "flownet2"]
    assert longer.accuracy[1] == [0.8, 0.6, 0.6] + [0.4] * 9
    assert budget_map(rows, frames=2)["rg", "flownet2"].accuracy[1] == [0.8, 0.6, 0.6]


def test_the_greatest_budget_is_the_attack_itself() -> None:
    rows = [_stepwise(1, 0), _stepwise(1, 1, 1), _stepwise(0), _stepwise(attacked=False)]
    accuracy = budget_map(rows)["rg", "flownet2"].accuracy[0]
    counts = tally(rows)[Cell("stack", "rg", "flownet2", 0.01)]
    assert accuracy[-1] == counts.accuracy and accuracy[0] == counts.attacked / counts.examples
