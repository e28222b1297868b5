"""The records of a sweep as columns, some 20 bytes each: what groups, pairs of attacks and classes are counted from.

A unit is a stack or a video. Its class and its group are kept once, its verdict once for each cell.
What a group holds of one class is a class group: all of the group where, as in UCF-101, groups are within classes.
"""

from array import array
from collections.abc import Callable

import numpy as np

from attacks.metrics import Cell, judged, turns
from attacks.records import NO_GRADIENT, Record

QUALITIES = ("psnr", "ssim", "flicker", "flow_epe")
"""the perceptibility that a record may carry"""
SEVERAL = -1
"""the stratum of all groups with units of several classes"""


class CellColumns:
    """The units of one cell, in the order of their records."""

    def __init__(self) -> None:
        self._units, self._frames = array("I"), array("I")
        self._verdicts = array("B")
        self._classes = array("i")
        self._qualities = array("f")
        self._turn_places, self._turn_frames, self._turn_changes = array("I"), array("H"), array("b")

    def add(self, unit: int, record: Record) -> None:
        for frames, change in turns(record):
            self._turn_places.append(len(self._units))
            self._turn_frames.append(frames)
            self._turn_changes.append(change)
        self._units.append(unit)
        self._frames.append(record.frames_perturbed)
        with_8bit = record.correct_8bit is not None and judged(record)
        verdict = record.attacked | record.success << 1 | record.correct << 2 | with_8bit << 3
        verdict |= bool(record.correct_8bit) << 4 | judged(record) << 5 | (record.fault == NO_GRADIENT) << 6
        self._verdicts.append(verdict)
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
    def judged(self) -> np.ndarray:
        """Has a verdict."""
        return self._flag(5)

    @property
    def judged_8bit(self) -> np.ndarray:
        return self._flag(3)

    @property
    def correct_8bit(self) -> np.ndarray:
        return self._flag(4)

    @property
    def no_gradient(self) -> np.ndarray:
        """Its attack stopped because the gradient was zero."""
        return self._flag(6)

    @property
    def predictions(self) -> np.ndarray:
        """(N, 2) class of the clean and of the attacked unit; -1 where there is no verdict."""
        return np.array(self._classes).reshape(-1, 2)

    @property
    def qualities(self) -> np.ndarray:
        """(N, 4) in the order of QUALITIES, nan where they were not measured."""
        values = np.full((len(self._units), len(QUALITIES)), np.nan, np.float32)
        values.reshape(-1)[: len(self._qualities)] = self._qualities
        return values

    @property
    def turns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where attacked units became right (+1) or wrong (-1): places in this cell, frames perturbed, which."""
        return np.array(self._turn_places), np.array(self._turn_frames), np.array(self._turn_changes)

    def _flag(self, bit: int) -> np.ndarray:
        return (np.array(self._verdicts) >> bit & 1).astype(bool)


class Columns:
    """All cells, and what their units have in common."""

    def __init__(self) -> None:
        self.cells: dict[Cell, CellColumns] = {}
        self._units: dict[tuple[str, int | None], int] = {}
        self._groups: dict[str, int] = {}
        self._class_groups: dict[tuple[int, int], int] = {}
        self._unit_groups, self._unit_labels, self._unit_class_groups = array("I"), array("H"), array("I")

    def add(self, record: Record) -> None:
        unit = self._units.setdefault((record.clip, record.stack), len(self._unit_groups))
        if unit == len(self._unit_groups):
            group = self._groups.setdefault(record.group, len(self._groups))
            of_class = self._class_groups.setdefault((group, record.label), len(self._class_groups))
            self._unit_groups.append(group)
            self._unit_labels.append(record.label)
            self._unit_class_groups.append(of_class)
        cell = Cell.of(record)
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
    def class_groups(self) -> np.ndarray:
        """(P, 2) group and class of each class group."""
        return np.array(list(self._class_groups))

    @property
    def group_labels(self) -> np.ndarray:
        """(groups,) class of each group, SEVERAL where it holds more than one: the strata of the bootstrap."""
        groups, labels = self.class_groups.T
        of_groups = np.empty(len(self._groups), int)
        of_groups[groups] = labels
        return np.where(np.bincount(groups) > 1, SEVERAL, of_groups)

    def per_group(self, cell: Cell, values: Callable[[CellColumns], np.ndarray]) -> np.ndarray:
        """(groups,) sums over the units of each group."""
        columns = self.cells[cell]
        return np.bincount(self.groups[columns.units], values(columns), minlength=len(self._groups))

    def per_class_group(self, cell: Cell, values: Callable[[CellColumns], np.ndarray]) -> np.ndarray:
        """(P,) sums over the units of each class group."""
        columns = self.cells[cell]
        of_units = np.array(self._unit_class_groups)[columns.units]
        return np.bincount(of_units, values(columns), minlength=len(self._class_groups))

    def standing_within(self, cell: Cell, last: int) -> np.ndarray:
        """(groups, T+1) units of each group, right when clean, that still are with 0 … T = `last` frames perturbed."""
        columns = self.cells[cell]
        places, frames, changes = columns.turns
        standing = np.zeros((len(self._groups), last + 1))
        standing[:, 0] = self.per_group(cell, lambda of: of.attacked)
        np.add.at(standing, (self.groups[columns.units[places]], frames), changes)
        return standing.cumsum(1)
