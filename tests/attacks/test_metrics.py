"""Against cases that were counted by hand."""

from typing import Any

import pytest

from attacks.columns import Columns
from attacks.metrics import Cell, budget_map, curve, frames_histogram, tally
from attacks.records import CLEAN, NO_GRADIENT, Record
from attacks.report.intervals import budget_intervals, survivals


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
    counts = tally(rows)[Cell("stack", "flownet2", "rg", "flownet2", 0.01)]
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
    counts = tally(rows)[Cell("stack", "flownet2", "rg", "flownet2", 0.01)]
    assert counts.accuracy == 0.25
    assert counts.accuracy_8bit == 0.25


def test_micro_average_weighs_stacks_alike() -> None:
    # One class with 9 stacks all right, one with 1 stack wrong: 0.9, where a mean over classes would say 0.5.
    rows = [row(CLEAN, 0.0, True, True) for _ in range(9)] + [row(CLEAN, 0.0, False, False, label=2)]
    assert tally(rows)[Cell("stack", "flownet2", CLEAN, "flownet2", 0.0)].accuracy == 0.9


def test_nothing_attacked_has_no_rate() -> None:
    counts = tally([row("rg", 0.01, False, False)])[Cell("stack", "flownet2", "rg", "flownet2", 0.01)]
    assert counts.accuracy == 0
    assert counts.success_rate is counts.accuracy_of_attacked is counts.mean_frames is None


def test_video_rows_are_cells_of_their_own() -> None:
    video = {"level": "video", "stack": None, "frame_order": None}
    rows = [row("rg", 0.01, True, False, 3), row("rg", 0.01, True, False, 7, stacks_perturbed=2, **video)]
    rows += [row("rg", 0.01, True, True, 22, stacks_perturbed=4, **video)]
    counts = tally(rows)
    assert counts[Cell("stack", "flownet2", "rg", "flownet2", 0.01)].accuracy == 0
    videos = counts[Cell("video", "flownet2", "rg", "flownet2", 0.01)]
    assert (videos.accuracy, videos.mean_frames, videos.mean_stacks) == (0.5, 7, 2)
    assert videos.accuracy_8bit is None


def test_curve_starts_at_the_clean_system_of_its_target() -> None:
    rows = [row(CLEAN, 0.0, True, True), row(CLEAN, 0.0, False, False, target="tvl1")]
    rows += [row("rg", 0.02, True, True), row("rg", 0.01, True, False, 1)]
    points = curve(tally(rows), level="stack", system="flownet2", attack="rg", target="flownet2")
    assert {epsilon: counts.accuracy for epsilon, counts in points.items()} == {0.0: 1, 0.01: 0, 0.02: 1}
    assert list(points) == sorted(points)
    assert curve(tally(rows), level="stack", system="flownet2", attack="rg", target="tvl1") == {}


def test_histogram_is_the_mean_over_epsilon() -> None:
    # ε = 0.01: one success, 1 frame. ε = 0.02: four, 1 1 2 4. Pooled, one frame would have 3/5; the mean is 3/4.
    rows = [row("rg", 0.01, True, False, 1), row("rg", 0.03, True, True, 11), row(CLEAN, 0.0, True, True)]
    rows += [row("rg", 0.02, True, False, frames) for frames in (1, 1, 2, 4)]
    shares = frames_histogram(curve(tally(rows), level="stack", system="flownet2", attack="rg", target="flownet2"))
    assert shares == {1: 0.75, 2: 0.125, 4: 0.125}
    assert (
        frames_histogram(curve(tally(rows[1:3]), level="stack", system="flownet2", attack="rg", target="flownet2"))
        == {}
    )


def test_budget_map_follows_the_steps() -> None:
    """Four stacks of three frames: wrong when clean; lost at 2; standing; lost at 1, right again at 2, lost at 3."""

    def steps(*predictions: int) -> list[list]:
        return [[frame, prediction, 0.9, 1.0] for frame, prediction in enumerate(predictions)]

    rows = [row("rg", 0.01, False, False), row("rg", 0.01, True, False, 2, steps=steps(1, 0))]
    rows += [
        row("rg", 0.01, True, True, 3, steps=steps(1, 1, 1)),
        row("rg", 0.01, True, False, 3, steps=steps(0, 1, 0)),
    ]
    # Of older records, that have no steps: two of four are lost, with one frame and with three.
    rows += [row("rg", 0.02, True, False, 1), row("rg", 0.02, True, False, 3)]
    rows += [row("rg", 0.02, True, True, 3), row("rg", 0.02, True, True, 3)]
    accuracy = budget_map(
        tally(rows), system="flownet2", attack="rg", target="flownet2", epsilons=[0.01, 0.02], frames=3
    )
    assert accuracy.tolist() == [[0.75, 0.5, 0.5, 0.25], [1.0, 0.75, 0.75, 0.5]]
    counts = tally(rows)
    assert accuracy[:, -1].tolist() == [
        counts[Cell("stack", "flownet2", "rg", "flownet2", e)].accuracy for e in (0.01, 0.02)
    ]


def test_a_stack_that_withstands_has_had_all_frames() -> None:
    """One of ten falls at the last frame. The nine that stand moved ten frames, as the eleventh cannot."""

    def standing(*rows: Record) -> list[float]:
        columns = Columns()
        for number, record in enumerate(rows):
            columns.add(record._replace(stack=number))
        (of_cell,) = survivals(columns, ["rg"], 11).values()
        return of_cell.standing[-2:].tolist()

    falls, stands = row("rg", 0.01, True, False, 11), row("rg", 0.01, True, True, 10)
    unmoved = row("rg", 0.01, True, True, 0)  # every step leads out of the range
    assert standing(falls, *[stands] * 8, unmoved) == pytest.approx([1.0, 0.9])
    # Without a gradient after ten frames, they are at risk no more when the last one comes.
    assert standing(falls, *[stands._replace(fault=NO_GRADIENT)] * 9) == [1.0, 0.0]


def test_two_white_boxes_never_share_a_cell() -> None:
    """Both judged by tvl1 under one name of attack: one fools it always, the other never. No rate is of both."""
    rows = [row(CLEAN, 0.0, True, True, system=system, target="tvl1") for system in ("flownet2", "raft")]
    rows += [
        row("rg", 0.01, True, False, 2, target="tvl1"),
        row("rg", 0.01, True, True, 3, system="raft", target="tvl1"),
    ]
    counts = tally(rows)
    for system, accuracy in (("flownet2", 0), ("raft", 1)):
        of = curve(counts, level="stack", system=system, attack="rg", target="tvl1")
        assert {epsilon: (t.examples, t.accuracy) for epsilon, t in of.items()} == {0.0: (1, 1), 0.01: (1, accuracy)}
        shape = {"system": system, "attack": "rg", "target": "tvl1", "epsilons": [0.01], "frames": 3}
        assert budget_map(counts, **shape)[0, -1] == accuracy
    columns = Columns()
    for record in rows:
        columns.add(record)
    assert columns.cells.keys() == counts.keys()
    curves = survivals(columns, ["rg"], 3)
    assert {cell.system: share.standing[-1] for cell, share in curves.items()} == {"flownet2": 0, "raft": 1}
    budgets = budget_intervals(columns, ["rg"], 3)
    assert {cell.system: bounds[-1].high == 1 for cell, bounds in budgets.items()} == {"flownet2": False, "raft": True}
