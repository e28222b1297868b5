"""Class by class: how robust each is, and what its stacks are taken for. Stack level, white box."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from attacks.columns import CellColumns
from attacks.group_bootstrap import Interval
from attacks.metrics import Cell
from attacks.records import CLEAN
from attacks.report.cells import percent, percents
from attacks.report.results import Results
from attacks.report.table import Table, Value
from attacks.statistics import clustered_rates


class ClassCounts(NamedTuple):
    """One class in one cell."""

    groups: int
    stacks: int
    attacked: int
    """right when clean"""
    standing: int
    """attacked, and still right"""
    interval: Interval
    """of `accuracy`"""
    success_interval: Interval
    """of the success rate, (attacked - standing) / attacked"""

    @property
    def accuracy(self) -> float:
        """Of all stacks of the class."""
        return self.standing / self.stacks


def by_class(results: Results, cells: Sequence[Cell]) -> list[dict[int, ClassCounts]]:
    """Of each cell: index of each class with a stack that has a verdict -> counts. A stack counts for its class.

    The intervals of a class are by a bootstrap over all groups that have a stack of it, those of several classes too.
    """
    columns = results.columns
    labels = columns.class_groups[:, 1]
    units, attacked, standing = (
        np.stack([columns.per_class_group(cell, values) for cell in cells], 1)
        for values in (lambda c: c.judged, lambda c: c.attacked, lambda c: c.attacked & ~c.success)
    )
    found: list[dict[int, ClassCounts]] = [{} for _ in cells]
    for label in np.unique(labels).tolist():
        own = labels == label
        of_all = clustered_rates(standing[own], units[own])
        of_right = clustered_rates(standing[own], attacked[own])
        for i, counts in enumerate(found):
            if units[own, i].any():
                counts[label] = ClassCounts(
                    groups=int((units[own, i] > 0).sum()),
                    stacks=int(units[own, i].sum()),
                    attacked=int(attacked[own, i].sum()),
                    standing=int(standing[own, i].sum()),
                    interval=of_all[i],
                    success_interval=Interval(1 - of_right[i].high, 1 - of_right[i].low),
                )
    return found


def per_class(results: Results) -> Table:
    """Accuracy and success of each class, stack level, white box."""
    rows: list[list[Value]] = []
    names = [(CLEAN, 0.0), *product(results.attacks, results.epsilons)]
    cells = [results.cell(attack, results.system, epsilon) for attack, epsilon in names]
    for cell, of_classes in zip(cells, by_class(results, cells), strict=True):
        for label, counts in of_classes.items():
            fooled = counts.attacked - counts.standing
            rows.append(
                [
                    results.classes[label],
                    cell.attack,
                    cell.epsilon,
                    counts.groups,
                    counts.stacks,
                    counts.attacked,
                    percent(counts.accuracy),
                    *percents(counts.interval),
                    percent(fooled / counts.attacked) if counts.attacked else None,
                    *percents(counts.success_interval),
                ]
            )
    heads = ("class", "attack", "epsilon", "groups", "stacks", "attacked")
    return Table(
        name="per-class",
        title=f"Stack accuracy and success of each class (%), {results.system}",
        columns=[
            *(("", name) for name in heads),
            *((name, bound) for name in ("accuracy", "success") for bound in ("", "low", "high")),
        ],
        rows=rows,
        notes=["A class has few groups: its intervals are wide, and with one group say nothing."],
    )


def confusion(results: Results, attack: str, epsilon: float) -> np.ndarray:
    """(C, C) stacks that were right when clean: class when clean -> class when attacked, by the white box."""
    cell = results.columns.cells[results.cell(attack, results.system, epsilon)]
    counts = np.zeros((len(results.classes),) * 2, int)
    np.add.at(counts, tuple(cell.predictions[_of_two_classes(cell)].T), 1)
    return counts


def _of_two_classes(cell: CellColumns) -> np.ndarray:
    """(N,) bool: attacked, with a class when clean and one when attacked."""
    return cell.attacked & (cell.predictions >= 0).all(1)


def confusions(results: Results) -> Table:
    """What the fooled stacks are taken for: most frequent first."""
    names = list(product(results.attacks, results.epsilons))
    intervals = _confusion_intervals(results, [results.cell(a, results.system, epsilon) for a, epsilon in names])
    rows: list[list[Value]] = []
    for place, (attack, epsilon) in enumerate(names):
        counts = confusion(results, attack, epsilon)
        of_class = counts.sum(1)
        np.fill_diagonal(counts, 0)
        found: Counter[tuple[int, int]] = Counter({(int(i), int(j)): int(counts[i, j]) for i, j in np.argwhere(counts)})
        for (clean, adversarial), stacks in found.most_common():
            rows.append(
                [
                    attack,
                    epsilon,
                    results.classes[clean],
                    results.classes[adversarial],
                    stacks,
                    percent(stacks / of_class[clean]),
                    *percents(intervals[place, clean, adversarial]),
                ]
            )
    heads = ("attack", "epsilon", "clean", "adversarial", "stacks", "% of class", "low", "high")
    return Table(
        name="confusion",
        title=f"What fooled stacks are taken for, {results.system}",
        columns=[("", name) for name in heads],
        rows=rows,
        notes=[
            "% of class: of the stacks of that class that were right when clean. low, high: 95 % interval; a class has "
            "few groups, and with one it says nothing."
        ],
    )


def _confusion_intervals(results: Results, cells: Sequence[Cell]) -> dict[tuple[int, int, int], Interval]:
    """(place in `cells`, class when clean, class when attacked) -> interval of that share, where there is one.

    One call of the bootstrap for each class when clean: it has few groups, and all cells' shares of it have them in
    common.
    """
    found = []
    for place, cell in enumerate(cells):
        of = results.columns.cells[cell]
        shown = _of_two_classes(of)
        groups = results.columns.groups[of.units[shown]]
        found.append(np.column_stack([np.full(len(groups), place), groups, of.predictions[shown]]))
    stacks = np.concatenate(found)
    intervals = {}
    for clean in np.unique(stacks[:, 2]).tolist():
        place, groups, _, attacked = stacks[stacks[:, 2] == clean].T
        fooled = attacked != clean
        if not fooled.any():
            continue
        groups = np.unique(groups, return_inverse=True)[1]
        totals = np.zeros((groups.max() + 1, len(cells)), int)
        np.add.at(totals, (groups, place), 1)
        pairs, of_pair = np.unique(np.stack([place, attacked])[:, fooled], axis=1, return_inverse=True)
        successes = np.zeros((len(totals), pairs.shape[1]), int)
        np.add.at(successes, (groups[fooled], of_pair.reshape(-1)), 1)
        for pair, interval in zip(pairs.T.tolist(), clustered_rates(successes, totals[:, pairs[0]]), strict=True):
            intervals[pair[0], clean, pair[1]] = interval
    return intervals
