"""The records of a sweep as columns, some 20 bytes each: what groups, pairs of attacks and classes are counted from.

A unit is a stack or a video. Its class and its group are kept once, its verdict once for each attack, target and ε.
"""

from array import array
from collections.abc import Callable

import numpy as np

from attacks.metrics import Cell
from attacks.records import Record

QUALITIES = ("psnr", "ssim", "flicker", "flow_epe")
"""the perceptibility that a record may carry"""


class CellColumns:
    """The units of one cell, in the order of their records."""

    def __init__(self) -> None:
        self._units, self._frames = array("I"), array("I")
        self._verdicts = array("B")
        self._classes = array("H")
        self._qualities = array("f")

    def add(self, unit: int, record: Record) -> None:
        self._units.append(unit)
        self._frames.append(record.frames_perturbed)
        judged = record.correct_8bit is not None
        verdict = record.attacked | record.success << 1 | record.correct << 2 | judged << 3
        self._verdicts.append(verdict | bool(record.correct_8bit) << 4)
        self._classes.extend((record.clean_prediction, record.prediction))
        values = (record.psnr, record.ssim, record.flicker, record.flow_epe)
        if any(value is not None for value in values):
            missing = 4 * (len(self._units) - 1) - len(self._qualities)
            self._qualities.extend([np.nan] * missing)
            self._qualities.extend(np.nan if value is None else value for value in values)

    @property
    def units(self) -> np.ndarray:
        """(N,) indices into the level's groups and labels."""
        return np.array(self._units)

    @property
    def frames(self) -> np.ndarray:
        """(N,) frames perturbed."""
        return np.array(self._frames)

    @property
    def attacked(self) -> np.ndarray:
        return self._flag(0)

    @property
    def success(self) -> np.ndarray:
        return self._flag(1)

    @property
    def judged_8bit(self) -> np.ndarray:
        return self._flag(3)

    @property
    def correct_8bit(self) -> np.ndarray:
        return self._flag(4)

    @property
    def predictions(self) -> np.ndarray:
        """(N, 2) class of the clean and of the attacked unit."""
        return np.array(self._classes).reshape(-1, 2)

    @property
    def qualities(self) -> np.ndarray:
        """(N, 4) in the order of QUALITIES, nan where they were not measured."""
        values = np.full((len(self._units), len(QUALITIES)), np.nan, np.float32)
        values.reshape(-1)[: len(self._qualities)] = self._qualities
        return values

    def _flag(self, bit: int) -> np.ndarray:
        return (np.array(self._verdicts) >> bit & 1).astype(bool)


class Columns:
    """All cells, and what their units have in common."""

    def __init__(self) -> None:
        self.cells: dict[Cell, CellColumns] = {}
        self._units: dict[tuple[str, int | None], int] = {}
        self._groups: dict[str, int] = {}
        self._unit_groups, self._unit_labels, self._group_labels = array("I"), array("H"), array("H")

    def add(self, record: Record) -> None:
        unit = self._units.setdefault((record.clip, record.stack), len(self._unit_groups))
        if unit == len(self._unit_groups):
            group = self._groups.setdefault(record.group, len(self._group_labels))
            if group == len(self._group_labels):
                self._group_labels.append(record.label)
            self._unit_groups.append(group)
            self._unit_labels.append(record.label)
        cell = Cell(record.level, record.attack, record.target, record.epsilon)
        if cell not in self.cells:
            self.cells[cell] = CellColumns()
        self.cells[cell].add(unit, record)

    def group_of(self, clip: str, stack: int | None) -> int:
        """Index of the group of a unit."""
        return self._unit_groups[self._units[clip, stack]]

    @property
    def unit_names(self) -> dict[tuple[str, int | None], int]:
        """(clip, stack) -> unit; the stack of a video is None."""
        return self._units

    @property
    def groups(self) -> np.ndarray:
        """(units,) index of each unit's group."""
        return np.array(self._unit_groups)

    @property
    def labels(self) -> np.ndarray:
        """(units,) class of each unit."""
        return np.array(self._unit_labels)

    @property
    def group_labels(self) -> np.ndarray:
        """(groups,) class of each group: the strata of the bootstrap."""
        return np.array(self._group_labels)

    def per_group(self, cell: Cell, values: Callable[[CellColumns], np.ndarray]) -> np.ndarray:
        """(groups,) sums over the units of each group."""
        columns = self.cells[cell]
        return np.bincount(self.groups[columns.units], values(columns), minlength=len(self._group_labels))
