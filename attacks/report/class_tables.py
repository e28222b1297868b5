"""Class by class: how robust each is, and what its stacks are taken for. Stack level, white box."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

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
    """Of each cell: index of each class that has a stack -> its counts. A stack counts for its own class.

    The intervals of a class are by a bootstrap over all groups that have a stack of it, those of several classes too.
    """
    columns = results.columns
    labels = columns.class_groups[:, 1]
    units, attacked, standing = (
        np.stack([columns.per_class_group(cell, values) for cell in cells], 1)
        for values in (lambda c: np.ones_like(c.attacked), lambda c: c.attacked, lambda c: c.attacked & ~c.success)
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
    cells = [Cell("stack", attack, results.system, epsilon) for attack, epsilon in names]
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
    cell = results.columns.cells[Cell("stack", attack, results.system, epsilon)]
    counts = np.zeros((len(results.classes),) * 2, int)
    np.add.at(counts, tuple(cell.predictions[cell.attacked].T), 1)
    return counts


def confusions(results: Results) -> Table:
    """What the fooled stacks are taken for: most frequent first."""
    rows: list[list[Value]] = []
    for attack in results.attacks:
        for epsilon in results.epsilons:
            counts = confusion(results, attack, epsilon)
            of_class = counts.sum(1)
            np.fill_diagonal(counts, 0)
            found: Counter[tuple[int, int]] = Counter(
                {(int(i), int(j)): int(counts[i, j]) for i, j in np.argwhere(counts)}
            )
            for (clean, adversarial), stacks in found.most_common():
                rows.append(
                    [
                        attack,
                        epsilon,
                        results.classes[clean],
                        results.classes[adversarial],
                        stacks,
                        percent(stacks / of_class[clean]),
                    ]
                )
    return Table(
        name="confusion",
        title=f"What fooled stacks are taken for, {results.system}",
        columns=[("", name) for name in ("attack", "epsilon", "clean", "adversarial", "stacks", "% of class")],
        rows=rows,
        notes=["% of class: of the stacks of that class that were right when clean."],
    )
