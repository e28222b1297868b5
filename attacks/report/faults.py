"""Stacks that say nothing of robustness: their attack had no gradient to follow, or their logits were not finite.

The first stand without having been attacked in earnest; the second are left out of every rate. All of it is silent in
a sweep without faults.
"""

from collections.abc import Iterable

from attacks.metrics import Cell, Tally
from attacks.records import CLEAN, NO_GRADIENT, NOT_FINITE
from attacks.report.results import Results
from attacks.report.table import Table, Value, spoken

REMEDIES = {
    NO_GRADIENT: "Look for round(), a softmax at the end or saturated logits in the system, or attack in float32. "
    "With loss='cross-entropy' a large margin is enough: use 'log-odds'.",
    NOT_FINITE: "Look for a square root or a division at zero in the system, or attack in float32.",
}


def fault_table(results: Results) -> Table:
    """Every cell with a fault, stack level."""
    rows: list[list[Value]] = [
        [
            cell.attack,
            cell.target,
            cell.epsilon,
            counts.examples,
            counts.attacked,
            counts.faults[NO_GRADIENT],
            counts.faults[NOT_FINITE],
        ]
        for cell, counts in _faulty(results).items()
    ]
    return Table(
        name="faults",
        title="Stacks that say nothing of robustness",
        columns=[
            ("", name)
            for name in ("attack", "judged", "epsilon", "stacks", "attacked", "without gradient", "without verdict")
        ],
        rows=rows,
        notes=[
            "without gradient: attacked stacks whose gradient was zero everywhere, which count as standing. without "
            "verdict: stacks whose logits or gradient were not finite, which are left out of all rates."
        ],
    )


def fault_notes(results: Results, made: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each fault of each attack and target, and of each clean target; the ε with most of them."""
    pairs = list(made)
    shown = [*((CLEAN, target) for target in dict.fromkeys(target for _, target in pairs)), *pairs]
    notes = []
    for attack, target in shown:
        cells = {cell: counts for cell, counts in _faulty(results).items() if cell[2:4] == (attack, target)}
        for fault in (NO_GRADIENT, NOT_FINITE):
            found = [counts.faults[fault] for counts in cells.values()]
            if any(found):
                cell = max(cells, key=lambda cell: cells[cell].faults[fault])
                most = "" if len(set(found)) == 1 and len(found) == _epsilons(results, attack) else "Up to "
                notes.append(most + _sentence(fault, cell, cells[cell]))
    return notes


def fault_pointer(results: Results, *more: str) -> list[str]:
    """For tables of many attacks: where the faults are told, and more of them."""
    return ["Some stacks say nothing of robustness: table faults.", *more] if _faulty(results) else []


def worst_faults(results: Results) -> list[str]:
    """For the head of the page: of each fault the cell where it is most frequent."""
    cells = _faulty(results)
    said = []
    for fault in (NO_GRADIENT, NOT_FINITE):
        with_it = [cell for cell in cells if cells[cell].faults[fault]]
        if with_it:
            worst = max(with_it, key=lambda cell: cells[cell].faults[fault] / cells[cell].examples)
            at = f" At ε = {worst.epsilon:g}; table faults lists all." if worst.attack != CLEAN else " Table faults."
            said.append(f"{_sentence(fault, worst, cells[worst])}{at} {REMEDIES[fault]}")
    return said


def _sentence(fault: str, cell: Cell, counts: Tally) -> str:
    under = "clean stacks" if cell.attack == CLEAN else f"stacks under {spoken(cell.attack)}"
    if fault == NO_GRADIENT:
        return (
            f"{counts.faults[fault]} of {counts.attacked} attacked {under}, judged by {cell.target}, had a gradient of "
            "zero everywhere: that they stand says nothing of robustness."
        )
    return (
        f"{counts.faults[fault]} of {counts.examples} {under}, judged by {cell.target}, have no verdict, as logits or "
        "gradient were not finite: they are left out of all rates."
    )


def _epsilons(results: Results, attack: str) -> int:
    return 1 if attack == CLEAN else len(results.epsilons)


def _faulty(results: Results) -> dict[Cell, Tally]:
    """Stack level."""
    return {cell: counts for cell, counts in results.tallies.items() if cell.level == "stack" and counts.faults}
