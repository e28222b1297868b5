"""Tables 1 and 2 in the paper's layout with the paper's own figures, the noise control, and what the paper leaves out.

Accuracies in percent. The paper leaves out the accuracy of what was right when clean, and of 8-bit frames.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from attacks.metrics import Tally
from attacks.report import paper
from attacks.report.results import CONTROL, Results

Value = float | int | str | None

SHORT = {"one_shot": "one-shot", "iterative_saliency": "it-sal", "iterative_saliency_rg": "it-sal-RG"}
"""attack -> the head of its columns in the paper"""
WIDTH = 140
"""columns of text that the widest table may take"""
HERE, THERE = "this run", "paper"


class Table(NamedTuple):
    name: str
    """of its files"""
    title: str
    columns: list[tuple[str, str]]
    """(what it is about, quantity); the first is "" for the leading columns"""
    rows: list[list[Value]]
    notes: list[str]

    @property
    def headings(self) -> list[str]:
        return [f"{group}/{quantity}" if group else quantity for group, quantity in self.columns]

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return text.getvalue()

    def rich(self) -> Group:
        """For a rich console."""
        table = RichTable(box=box.SIMPLE_HEAD)
        for group, quantity in self.columns:
            table.add_column(f"{SHORT.get(group, group)}\n{quantity}", justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(f"{row[0]:g}", *map(_shown, row[1:]), style="dim" if row[1] == THERE else "")
        return Group(Text(self.title, style="bold"), table, *(Text(f"  {note}") for note in self.notes), Text())


def all_tables(results: Results) -> list[Table]:
    """Table 1; Table 2 and the control where measured; both denominators and 8-bit accuracy of each system."""
    tables = [table1(results)]
    if results.targets:
        tables.append(table2(results))
    if CONTROL in results.attacks:
        tables.append(control(results))
    return tables + [denominators(results, system) for system in results.systems if _made_on(results, system)]


def table1(results: Results) -> Table:
    """White box: stack accuracy, frames perturbed of the successful stacks, video accuracy; the paper under ours."""
    attacks = results.gradient_attacks
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        ours: list[Value] = [epsilon, HERE]
        theirs: list[Value] = [epsilon, THERE]
        for attack in attacks:
            stack = results.curve(attack, results.system)[epsilon]
            video = results.curve(attack, results.system, "video")[epsilon]
            ours += [_percent(stack.accuracy), _rounded(stack.mean_frames), _percent(video.accuracy)]
            printed = paper.table1().get((attack, epsilon))
            theirs += [value or None for value in printed] if printed else [None, None, None]
        rows += _with_paper(ours, theirs)
    return Table(
        name="table1",
        title=f"Table 1. White-box attacks on {results.system}: {results.extent}",
        columns=[("", "epsilon"), ("", "source"), *((a, q) for a in attacks for q in ("Stk-A", "Stk-FP", "Vid-A"))],
        rows=rows,
        notes=[
            "Stk-A, Vid-A: accuracy of stacks and videos, %. Stk-FP: mean frames perturbed of the successful stacks.",
            "The paper's figures are for UCF-101 split 1.",
        ],
    )


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
        ours = [_percent(results.curve(attack, system)[epsilon].accuracy) for attack, system in columns]
        theirs = [paper.table2().get((attack, system, epsilon)) for attack, system in columns]
        rows += _with_paper([epsilon, HERE, *ours], [epsilon, THERE, *theirs])
    printed = "".join(str(value) for row in rows for value in row)
    return Table(
        name="table2",
        title=f"Table 2. Stack accuracy (%) under attacks transferred from {results.system}: {results.extent}",
        columns=[("", "epsilon"), ("", "source"), *columns],
        rows=rows,
        notes=["The paper's figures are for UCF-101 split 1.", *(n for n in paper.TABLE_2_NOTES if n[0] in printed)],
    )


def control(results: Results) -> Table:
    """Random signs of the same ε: what is lost without a gradient."""
    systems = [system for system in results.systems if results.curve(CONTROL, system)]
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        row: list[Value] = [epsilon]
        for system in systems:
            stack = results.curve(CONTROL, system)[epsilon]
            row += [_percent(stack.accuracy), stack.recovered]
            row.append(_percent(results.curve(CONTROL, system, "video")[epsilon].accuracy))
        rows.append(row)
    return Table(
        name="control",
        title="Control. Accuracy (%) under noise with random signs",
        columns=[("", "epsilon"), *((s, q) for s in systems for q in ("Stk-A", "recovered", "Vid-A"))],
        rows=rows,
        notes=["recovered: stacks that were wrong when clean and right under noise; Stk-A does not count them."],
    )


def denominators(results: Results, system: str) -> Table:
    """Stack level: accuracy of all stacks, of those that were right when clean, and of all after rounding to 8 bits."""
    attacks = _made_on(results, system)
    rows: list[list[Value]] = []
    for epsilon in (0.0, *results.epsilons):
        row: list[Value] = [epsilon]
        for attack in attacks:
            stack = results.curve(attack, system)[epsilon]
            row += [_percent(stack.accuracy), _percent(stack.accuracy_of_attacked), _percent(stack.accuracy_8bit)]
        rows.append(row)
    right = results.curve(attacks[0], system)[0.0]
    return Table(
        name=f"denominators-{system}",
        title=f"Both denominators, and 8-bit frames: stack accuracy (%) of {system}",
        columns=[
            ("", "epsilon"),
            *((attack, quantity) for attack in attacks for quantity in ("all", "right", "8-bit")),
        ],
        rows=rows,
        notes=[
            f"all: of all {right.examples} stacks. right: of the {right.attacked} that were right when clean. "
            "8-bit: of all, adversarial frames rounded to 8 bits."
        ],
    )


def results_json(results: Results, tables: Iterable[Table]) -> dict[str, Any]:
    """Every cell of the sweep, accuracies and rates as fractions of 1, and the tables as they are printed."""
    return {
        "system": results.system,
        "targets": results.targets,
        "attacks": results.attacks,
        "epsilons": results.epsilons,
        "classes": len(results.classes),
        "results": [cell._asdict() | _quantities(counts) for cell, counts in results.tallies.items()],
        "tables": {
            table.name: {"title": table.title, "columns": table.headings, "rows": table.rows, "notes": table.notes}
            for table in tables
        },
    }


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Print them whole, on a terminal of any width."""
    wide = Console(file=io.StringIO(), width=WIDTH, force_terminal=console.is_terminal)
    for table in tables:
        with wide.capture() as printed:
            wide.print(table.rich())
        console.print(Text.from_ansi(printed.get()), soft_wrap=True)


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """tables.txt, and tables/<name>.csv for each."""
    (folder / "tables").mkdir(exist_ok=True)
    with (folder / "tables.txt").open("w") as file:
        console = Console(file=file, width=WIDTH, color_system=None)
        for table in tables:
            print_tables(console, [table])
            (folder / "tables" / f"{table.name}.csv").write_text(table.csv())


def _made_on(results: Results, system: str) -> list[str]:
    return [attack for attack in results.attacks if results.curve(attack, system)]


def _with_paper(ours: list[Value], theirs: list[Value]) -> list[list[Value]]:
    """Two rows, or one where the paper has nothing to set beside ours."""
    return [ours, theirs] if any(value is not None for value in theirs[2:]) else [ours]


def _quantities(counts: Tally) -> dict[str, Any]:
    shown = {key: value for key, value in asdict(counts).items() if key not in ("frames", "stacks")}
    return shown | {
        "accuracy": counts.accuracy,
        "accuracy_of_attacked": counts.accuracy_of_attacked,
        "success_rate": counts.success_rate,
        "accuracy_8bit": counts.accuracy_8bit,
        "mean_frames_perturbed": counts.mean_frames,
        "mean_stacks_perturbed": counts.mean_stacks,
        "frames_histogram": dict(sorted(counts.frames.items())),
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _shown(value: Value) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
