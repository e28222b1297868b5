"""A finished sweep read back from its folder: settings.json, records.jsonl, kept examples, and what else is there."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from attacks.columns import Columns
from attacks.examples import Example, load_examples
from attacks.group_bootstrap import Interval
from attacks.metrics import Cell, Tally, curve, tally
from attacks.provenance import read_provenance
from attacks.records import CLEAN, Record, read_records
from attacks.report.cells import literal
from attacks.report.intervals import CellIntervals, budget_intervals, cell_intervals, survivals
from attacks.report.path_table import read_paths
from attacks.survival import Survival

NOISE = "noise"
CONTROLS = (NOISE, "random_order", "first_to_last", "least_salient")
"""Attacks of these names are controls: they stand beside the paper's attacks, not among them. Random signs; and the
gradient's signs on the frames in another order."""

ROW = ("clip", "stack", "attack", "target", "epsilon", "medium", "prediction", "label", "attacked", "correct")
"""what a row of realisability.json tells"""

NO_VERDICT = "no verdict"
"""in the place of a class, where logits were not finite"""


class Results(NamedTuple):
    system: str
    """the white box"""
    targets: list[str]
    """the black boxes"""
    attacks: list[str]
    """in the order of the settings, the controls last"""
    dense: set[str]
    """the attacks that perturb every frame"""
    epsilons: list[float]
    """above 0"""
    classes: list[str]
    test_clips: int
    """in the data set; a limited run has seen fewer"""
    tallies: dict[Cell, Tally]
    examples: list[Example]
    example_records: dict[tuple[str, str, float], Record]
    """(clip, attack, ε) -> the white box's row of the example stack of that clip"""
    columns: Columns
    intervals: dict[Cell, CellIntervals]
    frames: int
    """T, of a stack"""
    survivals: dict[Cell, Survival]
    """for the attacks that go frame by frame"""
    budgets: dict[Cell, list[Interval]]
    """of the stack accuracy with 0 … T frames perturbed at most, for the same attacks"""
    settings: Mapping[str, Any]
    runs: list[dict[str, Any]]
    """the runs that made the records, as far as provenance.json tells"""
    costs: Mapping[str, Mapping[str, float]]
    """quantity -> "<attack>/<target>" -> its sum over the sweep; empty where there is no costs.json"""
    realisability: list[dict[str, Any]]
    """rows with the keys of ROW"""
    paths: dict[str, dict[str, int]]
    """system -> what `make check-paths` counted; empty where it was not run"""
    left_out: Counter[str]
    """another white box -> its rows in records.jsonl, which count nowhere"""

    def cell(self, attack: str, target: str, epsilon: float, level: str = "stack") -> Cell:
        """The cell of an attack with the white box's gradient."""
        return Cell(level, self.system, attack, target, epsilon)

    def curve(self, attack: str, target: str, level: str = "stack") -> dict[float, Tally]:
        """ε -> tally, from the clean system on; empty when the attack was not made on the target."""
        return curve(self.tallies, level=level, system=self.system, attack=attack, target=target)

    def bounds(self, attack: str, target: str, level: str = "stack") -> dict[float, CellIntervals]:
        """ε -> intervals, for the same ε as `curve`."""
        cells = {epsilon: self.cell(attack, target, epsilon, level) for epsilon in self.curve(attack, target, level)}
        clean = self.intervals[self.cell(CLEAN, target, 0.0, level)]
        return {epsilon: self.intervals.get(cell, clean) for epsilon, cell in cells.items()}

    def clean(self, target: str, level: str = "stack") -> Tally:
        """The clean system."""
        return self.tallies[self.cell(CLEAN, target, 0.0, level)]

    @property
    def gradient_attacks(self) -> list[str]:
        """All but the controls."""
        return [name for name in self.attacks if name not in CONTROLS]

    @property
    def controls(self) -> list[str]:
        return [name for name in self.attacks if name in CONTROLS]

    def made_on(self, system: str) -> list[str]:
        """The attacks that were made on a system."""
        return [attack for attack in self.attacks if self.curve(attack, system)]

    @property
    def strongest(self) -> str:
        """The attack that leaves the white box the least stack accuracy at the least ε; of equals the last."""
        attacks = self.gradient_attacks or self.attacks
        return self.least(reversed(attacks), self.system, self.epsilons[0])

    def least(self, attacks: Iterable[str], target: str, epsilon: float) -> str:
        """The attack that leaves the target the least stack accuracy; of equals the first."""

        def accuracy(name: str) -> float:
            counts = self.curve(name, target)[epsilon]
            return counts.accuracy if counts.judged else 1.0

        return min(attacks, key=accuracy)

    def class_name(self, prediction: int) -> str:
        """In words; of a stack or video without a verdict, too."""
        return self.classes[prediction] if prediction >= 0 else NO_VERDICT

    @property
    def systems(self) -> list[str]:
        return [self.system, *self.targets]

    @property
    def names(self) -> list[str]:
        """All that figures write and that is not ours."""
        return [*self.systems, *self.attacks, *self.classes, *(example.clip for example in self.examples)]

    @property
    def extent(self) -> str:
        """What the figures are about, in words."""
        videos, stacks = self.clean(self.system, "video").examples, self.clean(self.system).examples
        of = f" of {self.test_clips}" if videos < self.test_clips else ""
        return f"{videos}{of} videos, {stacks} stacks, {len(self.classes)} classes"


def sweep_folder(folder: Path) -> Path:
    """The folder of a sweep itself, where that of a whole run is given."""
    inside = folder / "attack-sweep"
    return inside if not (folder / "settings.json").exists() and inside.is_dir() else folder


def load_results(folder: Path) -> Results:
    """Read the sweep in `folder`, its records once.

    A sweep has one white box. Rows of another, as in a file that was put together by hand, are left out and counted.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
        ValueError: there are no records, none of the clean system, or a line that is not one; or a file that is not
            what its name says, or tells of stacks that have no record.
    """
    if not (folder / "settings.json").exists():
        raise FileNotFoundError(f"{folder}: no settings.json; the folder that a sweep wrote its records to is needed")
    settings = _json(folder / "settings.json", {})
    examples = load_examples(folder / "examples")
    shown = {(example.clip, example.stack) for example in examples}
    columns = Columns()
    left_out: Counter[str] = Counter()
    kept: dict[tuple[str, str, float], Record] = {}

    def keeping(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if record.system != settings["system"]:
                left_out[record.system] += 1
                continue
            columns.add(record)
            if (record.clip, record.stack) in shown and record.target == record.system:
                kept[record.clip, record.attack, record.epsilon] = record
            yield record

    tallies = tally(keeping(read_records(folder / "records.jsonl")))
    if not tallies and left_out:
        raise ValueError(
            f"{folder / 'records.jsonl'}: its {left_out.total()} rows are of the white box {', '.join(left_out)}, and "
            f"{folder / 'settings.json'} names {settings['system']}: put the files of one sweep together"
        )
    if not tallies:
        raise ValueError(f"{folder / 'records.jsonl'} is empty: the sweep saw no video")
    attacks = sorted(settings["attacks"], key=lambda name: CONTROLS.index(name) + 1 if name in CONTROLS else 0)
    dense = {name for name, attack in settings["attacks"].items() if attack["dense"]}
    _check_clean(folder / "records.jsonl", tallies, settings["system"])
    clean = tallies[Cell("stack", settings["system"], CLEAN, settings["system"], 0.0)]
    # T - 1 pairs are estimated of a clean stack. Records that do not count pairs tell T by their attacks on all frames.
    perturbed = max(int(cell.frames.max()) for name, cell in columns.cells.items() if name.level == "stack")
    frames = max(1 + clean.pair_forwards // clean.examples, perturbed)
    frame_by_frame = [name for name in attacks if name not in dense]
    return Results(
        system=settings["system"],
        targets=[name for name in settings["systems"] if name != settings["system"]],
        attacks=attacks,
        dense=dense,
        epsilons=sorted(settings["epsilons"]),
        classes=[literal(name) for name in settings["classes"]],
        test_clips=settings["test_clips"],
        tallies=tallies,
        # A clip may have been chosen, and its frames kept, by a process that was killed before it wrote the rows.
        examples=[example for example in examples if (example.clip, CLEAN, 0.0) in kept],
        example_records=kept,
        columns=columns,
        intervals=cell_intervals(columns),
        frames=frames,
        survivals=survivals(columns, frame_by_frame, frames),
        budgets=budget_intervals(columns, frame_by_frame, frames),
        settings=settings,
        runs=read_provenance(folder),
        costs={name: value for name, value in _json(folder / "costs.json", {}).items() if isinstance(value, dict)},
        realisability=_realisability(folder / "realisability.json", columns),
        paths=read_paths(folder),
        left_out=left_out,
    )


def _check_clean(path: Path, tallies: Mapping[Cell, Tally], system: str) -> None:
    """Every curve begins at the clean system: both levels of the white box, and whatever else was attacked."""
    needed = {(level, system) for level in ("stack", "video")} | {(cell.level, cell.target) for cell in tallies}
    for level, target in sorted(needed):
        if Cell(level, system, CLEAN, target, 0.0) not in tallies:
            seen = sorted({cell.attack for cell in tallies if (cell.level, cell.target) == (level, target)})
            raise ValueError(
                f"{path}: no {level} of {target} has a row of attack {CLEAN!r} at epsilon 0; its rows are of "
                f"{', '.join(seen) or 'no attack'}. A sweep writes a clip's rows together: remove the folder's "
                "records*.jsonl and run the sweep again"
            )


def _realisability(path: Path, columns: Columns) -> list[dict[str, Any]]:
    """The rows of realisability.json, each of a stack that has its records."""
    way_out = "remove the file, and the report does without; the sweep, started again, writes it anew"
    rows = _json(path, [])
    for number, row in enumerate(rows):
        missing = [name for name in ROW if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}: row {number}, {row!r}, has no {', '.join(missing)}; {way_out}")
        if (row["clip"], row["stack"]) not in columns.unit_names:
            raise ValueError(
                f"{path}: row {number} is of clip {row['clip']!r}, stack {row['stack']}, of which "
                f"{path.with_name('records.jsonl')} has no row; {way_out}"
            )
    return rows


def _json(path: Path, absent: Any) -> Any:
    """A file that a sweep may leave; of another type than `absent`, or half of one, it is refused."""
    if not path.exists():
        return absent
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it or run again") from error
    if not isinstance(value, type(absent)):
        raise ValueError(
            f"{path} holds a {type(value).__name__}, not a {type(absent).__name__}: remove it or run again"
        )
    return value
