"""The interval of every rate and mean of a sweep, and its survival curves, by the bootstrap over groups."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from attacks.columns import CellColumns, Columns
from attacks.group_bootstrap import Interval
from attacks.metrics import Cell
from attacks.statistics import clustered_mean, clustered_rates
from attacks.survival import Survival, survival

Values = Callable[[CellColumns], np.ndarray]


class CellIntervals(NamedTuple):
    """95 % intervals of the quantities of the same names of a Tally; (nan, nan) where there is none."""

    accuracy: Interval
    accuracy_of_attacked: Interval
    accuracy_8bit: Interval
    mean_frames: Interval

    @property
    def success_rate(self) -> Interval:
        return Interval(1 - self.accuracy_of_attacked.high, 1 - self.accuracy_of_attacked.low)


def cell_intervals(columns: Columns) -> dict[Cell, CellIntervals]:
    """Of all cells."""
    accuracy = _rates(columns, columns.cells, _standing, _judged)
    of_attacked = _rates(columns, columns.cells, _standing, lambda cell: cell.attacked)
    eight_bit = _rates(
        columns, columns.cells, lambda cell: cell.attacked & cell.correct_8bit, lambda cell: cell.judged_8bit
    )
    return {
        cell: CellIntervals(accuracy[cell], of_attacked[cell], eight_bit[cell], _mean_frames(columns, cell))
        for cell in columns.cells
    }


def survivals(columns: Columns, attacks: Sequence[str], last: int) -> dict[Cell, Survival]:
    """Survival of the attacked stacks of `last` frames, of each cell of attacks that go frame by frame.

    A stack that stands has withstood the attack on all frames, even where some of them could not move; without a
    gradient it has withstood those that it had moved until then.
    """
    curves = {}
    for cell, of in columns.cells.items():
        attacked = of.attacked
        if cell.level == "stack" and cell.attack in attacks and attacked.any():
            withstood = ~of.success & ~of.no_gradient
            curves[cell] = survival(
                np.where(withstood, last, of.frames)[attacked],
                of.success[attacked],
                last,
                columns.groups[of.units[attacked]],
                columns.group_labels,
            )
    return dict(sorted(curves.items(), key=lambda of: (attacks.index(of[0].attack), of[0].target, of[0].epsilon)))


def budget_intervals(columns: Columns, attacks: Sequence[str], last: int) -> dict[Cell, list[Interval]]:
    """Intervals of the stack accuracy with 0 … T = `last` frames perturbed at most, T + 1 of them, of each cell of
    attacks that go frame by frame."""
    cells = [cell for cell in columns.cells if cell.level == "stack" and cell.attack in attacks]
    if not cells:
        return {}
    standing = np.concatenate([columns.standing_within(cell, last) for cell in cells], 1)
    units = np.stack([columns.per_group(cell, _judged) for cell in cells], 1).repeat(last + 1, 1)
    intervals = clustered_rates(standing, units, columns.group_labels)
    return {cell: intervals[i * (last + 1) :][: last + 1] for i, cell in enumerate(cells)}


def _rates(
    columns: Columns, cells: Mapping[Cell, CellColumns], successes: Values, totals: Values
) -> dict[Cell, Interval]:
    of_groups, units = (
        np.stack([columns.per_group(cell, values) for cell in cells], 1) for values in (successes, totals)
    )
    return dict(zip(cells, clustered_rates(of_groups, units, columns.group_labels), strict=True))


def _mean_frames(columns: Columns, cell: Cell) -> Interval:
    frames = columns.per_group(cell, lambda units: units.frames * units.success)
    return clustered_mean(frames, columns.per_group(cell, lambda units: units.success), columns.group_labels)


def _standing(cell: CellColumns) -> np.ndarray:
    return cell.attacked & ~cell.success


def _judged(cell: CellColumns) -> np.ndarray:
    return cell.judged
