"""Tables 1 and 2 in the paper's layout with the paper's own figures, the controls, and both denominators.

Accuracies in percent, with 95 % intervals. The paper leaves out those, the controls, the accuracy of what was right
when clean, and that of 8-bit frames.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attacks.columns import SEVERAL
from attacks.metrics import Tally
from attacks.report import paper
from attacks.report.cells import between, encodable, percent, rounded
from attacks.report.faults import fault_notes
from attacks.report.intervals import CellIntervals
from attacks.report.results import NOISE, Results
from attacks.report.table import BETWEEN, HERE, THERE, Table, Value, slug, text_of

INTERVALS = (
    "95 %: interval by a bootstrap over groups of clips cut from one video, within classes where a class has several."
)
SHARED = "Groups that hold clips of several classes are drawn together, whatever the class."

BUDGET = 3
"""frames at which attacks in different orders are compared; the paper's attacks take 2 to 4"""


def table1(results: Results) -> Table:
    """White box: stack accuracy, frames perturbed of the successful stacks, video accuracy; the paper under ours."""
    attacks = results.gradient_attacks
    curves = {attack: results.curve(attack, results.system) for attack in attacks}
    videos = {attack: results.curve(attack, results.system, "video") for attack in attacks}
    bounds = {attack: results.bounds(attack, results.system) for attack in attacks}
    video_bounds = {attack: results.bounds(attack, results.system, "video") for attack in attacks}
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        ours: list[Value] = [epsilon, HERE]
        sure: list[Value] = [epsilon, BETWEEN]
        theirs: list[Value] = [epsilon, THERE]
        for attack in attacks:
            stack, video = curves[attack][epsilon], videos[attack][epsilon]
            ours += [percent(stack.accuracy), rounded(stack.mean_frames), percent(video.accuracy)]
            of_stack, of_video = bounds[attack][epsilon], video_bounds[attack][epsilon]
            sure += [between(of_stack.accuracy), between(of_stack.mean_frames, 1), between(of_video.accuracy)]
            printed = paper.table1().get((attack, epsilon))
            theirs += [value or None for value in printed] if printed else [None, None, None]
        rows += _sources(ours, sure, theirs)
    return Table(
        name="table1",
        title=f"Table 1. White-box attacks on {results.system}: {results.extent}",
        columns=[("", "epsilon"), ("", "source"), *((a, q) for a in attacks for q in ("Stk-A", "Stk-FP", "Vid-A"))],
        rows=rows,
        notes=[
            "Stk-A, Vid-A: accuracy of stacks and videos, %. Stk-FP: mean frames perturbed of the successful stacks.",
            *interval_notes(results),
            "The paper's figures are for UCF-101 split 1.",
            *fault_notes(results, [(attack, results.system) for attack in attacks]),
        ],
        printed=True,
    )


def interval_notes(results: Results) -> list[str]:
    """How the intervals of these results were made."""
    return [INTERVALS, SHARED] if (results.columns.group_labels == SEVERAL).any() else [INTERVALS]


def table2(results: Results) -> Table:
    """Transfer, stack level: attacks made with the white box's gradient, judged by every system."""
    columns = [
        (attack, system)
        for attack in results.gradient_attacks
        for system in results.systems
        if any(results.curve(attack, target) for target in results.targets) and results.curve(attack, system)
    ]
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        ours = [percent(results.curve(attack, system)[epsilon].accuracy) for attack, system in columns]
        sure = [between(results.bounds(attack, system)[epsilon].accuracy) for attack, system in columns]
        theirs = [paper.table2().get((attack, system, epsilon)) for attack, system in columns]
        rows += _sources([epsilon, HERE, *ours], [epsilon, BETWEEN, *sure], [epsilon, THERE, *theirs])
    printed = "".join(str(value) for row in rows for value in row)
    return Table(
        name="table2",
        title=f"Table 2. Stack accuracy (%) under attacks transferred from {results.system}: {results.extent}",
        columns=[("", "epsilon"), ("", "source"), *columns],
        rows=rows,
        notes=[
            *interval_notes(results),
            "The paper's figures are for UCF-101 split 1.",
            *(n for n in paper.TABLE_2_NOTES if n[0] in printed),
            *fault_notes(results, columns),
        ],
        printed=True,
    )


def control(results: Results) -> Table:
    """What is lost at the same ε without a gradient: random signs."""
    systems = [system for system in results.systems if results.curve(NOISE, system)]
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        row: list[Value] = [epsilon, HERE]
        sure: list[Value] = [epsilon, BETWEEN]
        for system in systems:
            stack = results.curve(NOISE, system)[epsilon]
            row += [percent(stack.accuracy), stack.recovered]
            row.append(percent(results.curve(NOISE, system, "video")[epsilon].accuracy))
            sure += [between(results.bounds(NOISE, system)[epsilon].accuracy), None]
            sure.append(between(results.bounds(NOISE, system, "video")[epsilon].accuracy))
        rows += [row, sure]
    return Table(
        name="control",
        title="Control. Accuracy (%) under noise with random signs",
        columns=[("", "epsilon"), ("", "source"), *((s, q) for s in systems for q in ("Stk-A", "recovered", "Vid-A"))],
        rows=rows,
        notes=[
            "recovered: stacks that were wrong when clean and right under noise; Stk-A does not count them.",
            *fault_notes(results, [(NOISE, system) for system in systems]),
        ],
        printed=True,
    )


def frame_orders(results: Results) -> Table:
    """What saliency adds: the clean gradient's signs on the frames in its order and in others, on the white box."""
    salient = [name for name in results.gradient_attacks if name not in results.dense]
    attacks = [*salient, *(name for name in results.controls if name != NOISE)]
    budget = min(BUDGET, results.frames)
    rows: list[list[Value]] = []
    for epsilon in results.epsilons:
        row: list[Value] = [epsilon, HERE]
        sure: list[Value] = [epsilon, BETWEEN]
        for attack in attacks:
            stack = results.curve(attack, results.system)[epsilon]
            bounds = results.bounds(attack, results.system)[epsilon]
            row += [percent(stack.accuracy_within(budget)), percent(stack.accuracy), rounded(stack.mean_frames)]
            within = results.budgets[results.cell(attack, results.system, epsilon)][budget]
            sure += [between(within), between(bounds.accuracy), between(bounds.mean_frames, 1)]
        rows += [row, sure]
    quantities = (f"Stk-A≤{budget}", "Stk-A", "Stk-FP")
    return Table(
        name="orders",
        title=f"Control. Frames of {results.system} in other orders than that of saliency",
        columns=[("", "epsilon"), ("", "source"), *((attack, q) for attack in attacks for q in quantities)],
        rows=rows,
        notes=[
            f"Stk-A≤{budget}: stack accuracy, %, when at most {budget} frames may be perturbed; Stk-A: when all may. "
            "Stk-FP: mean frames perturbed of the successful stacks.",
            *fault_notes(results, [(attack, results.system) for attack in attacks]),
        ],
    )


def denominators(results: Results, system: str) -> Table:
    """Stack level: accuracy of all stacks, of those that were right when clean, and of all after rounding to 8 bits."""
    attacks = results.made_on(system)
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        row: list[Value] = [epsilon, HERE]
        sure: list[Value] = [epsilon, BETWEEN]
        for attack in attacks:
            stack, bounds = results.curve(attack, system)[epsilon], results.bounds(attack, system)[epsilon]
            row += [percent(stack.accuracy), percent(stack.accuracy_of_attacked), percent(stack.accuracy_8bit)]
            sure += [between(i) for i in (bounds.accuracy, bounds.accuracy_of_attacked, bounds.accuracy_8bit)]
        rows += [row, sure]
    right = results.curve(attacks[0], system)[0.0]
    return Table(
        name=f"denominators-{slug(system)}",
        title=f"Both denominators, and 8-bit frames: stack accuracy (%) of {system}",
        columns=[
            ("", "epsilon"),
            ("", "source"),
            *((attack, quantity) for attack in attacks for quantity in ("all", "right", "8-bit")),
        ],
        rows=rows,
        notes=[
            f"all: of all {right.judged} stacks. right: of the {right.attacked} that were right when clean. "
            "8-bit: of all, adversarial frames rounded to 8 bits.",
            *interval_notes(results),
            *fault_notes(results, [(attack, system) for attack in attacks]),
        ],
    )


def results_json(results: Results, tables: Iterable[Table], reservations: Sequence[str] = ()) -> dict[str, Any]:
    """Every cell of the sweep, accuracies and rates as fractions of 1, and the tables as they are printed."""
    said = {"reservations": list(reservations)} if reservations else {}
    return said | {
        "system": results.system,
        "targets": results.targets,
        "attacks": results.attacks,
        "epsilons": results.epsilons,
        "classes": len(results.classes),
        "results": [
            cell._asdict() | _quantities(counts) | _bounds(results.intervals[cell])
            for cell, counts in results.tallies.items()
        ],
        "tables": {
            table.name: {"title": table.title, "columns": table.headings, "rows": table.rows, "notes": table.notes}
            for table in tables
            if not table.timed
        },
    }


def write_tables(folder: Path, tables: list[Table]) -> None:
    """summary.txt with what one looks at first, tables.txt with all but costs, tables/<name> as .csv, .md and .tex."""
    (folder / "tables").mkdir(exist_ok=True)
    _write(folder / "summary.txt", text_of(table for table in tables if table.printed))
    _write(folder / "tables.txt", text_of(table for table in tables if not table.timed))
    for table in tables:
        for ending, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            _write(folder / "tables" / f"{table.name}.{ending}", text)


def _write(path: Path, text: str) -> None:
    path.write_text(encodable(text), encoding="utf-8")


def _sources(ours: list[Value], sure: list[Value], theirs: list[Value]) -> list[list[Value]]:
    """Two rows, or three where the paper has something to set beside ours."""
    return [ours, sure, theirs] if any(value is not None for value in theirs[2:]) else [ours, sure]


def _quantities(counts: Tally) -> dict[str, Any]:
    left_out = ("frames", "stacks", "turns", "faults", "unjudged")
    shown = {key: value for key, value in asdict(counts).items() if key not in left_out}
    if counts.faults:
        shown |= {"faults": dict(sorted(counts.faults.items())), "judged": counts.judged}
    return shown | {
        "accuracy": counts.accuracy if counts.judged else None,
        "accuracy_of_attacked": counts.accuracy_of_attacked,
        "success_rate": counts.success_rate,
        "accuracy_8bit": counts.accuracy_8bit,
        "mean_frames_perturbed": counts.mean_frames,
        "mean_stacks_perturbed": counts.mean_stacks,
        "frames_histogram": dict(sorted(counts.frames.items())),
    }


def _bounds(intervals: CellIntervals) -> dict[str, Any]:
    named = {
        "accuracy": intervals.accuracy,
        "accuracy_of_attacked": intervals.accuracy_of_attacked,
        "success_rate": intervals.success_rate,
        "accuracy_8bit": intervals.accuracy_8bit,
        "mean_frames_perturbed": intervals.mean_frames,
    }
    return {
        f"{name}_95": None if math.isnan(i.low) else [round(i.low, 6), round(i.high, 6)] for name, i in named.items()
    }
