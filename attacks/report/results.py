"""A finished sweep read back from its folder: settings.json, records.jsonl and the kept examples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from attacks.examples import Example, load_examples
from attacks.metrics import Cell, Tally, curve, tally
from attacks.records import CLEAN, Record, read_records

CONTROL = "noise"
"""The attack of this name is the control: it stands beside the paper's attacks, not among them."""


class Results(NamedTuple):
    system: str
    """the white box"""
    targets: list[str]
    """the black boxes"""
    attacks: list[str]
    """in the order of the settings, the control last"""
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

    def curve(self, attack: str, target: str, level: str = "stack") -> dict[float, Tally]:
        """ε -> tally, from the clean system on; empty when the attack was not made on the target."""
        return curve(self.tallies, level=level, attack=attack, target=target)

    def clean(self, target: str, level: str = "stack") -> Tally:
        """The clean system."""
        return self.tallies[Cell(level, CLEAN, target, 0.0)]

    @property
    def gradient_attacks(self) -> list[str]:
        """All but the control."""
        return [name for name in self.attacks if name != CONTROL]

    @property
    def systems(self) -> list[str]:
        return [self.system, *self.targets]

    @property
    def extent(self) -> str:
        """What the figures are about, in words."""
        videos, stacks = self.clean(self.system, "video").examples, self.clean(self.system).examples
        of = f" of {self.test_clips}" if videos < self.test_clips else ""
        return f"{videos}{of} videos, {stacks} stacks, {len(self.classes)} classes"


def load_results(folder: Path) -> Results:
    """Read the sweep in `folder`.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
        ValueError: there are no records, or a line that is not one.
    """
    if not (folder / "settings.json").exists():
        raise FileNotFoundError(f"{folder}: no settings.json; the folder that a sweep wrote its records to is needed")
    settings = json.loads((folder / "settings.json").read_text())
    examples = load_examples(folder / "examples")
    kept: dict[tuple[str, str, float], Record] = {}
    shown = {(example.clip, example.stack) for example in examples}

    def keeping(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if (record.clip, record.stack) in shown and record.target == record.system:
                kept[record.clip, record.attack, record.epsilon] = record
            yield record

    tallies = tally(keeping(read_records(folder / "records.jsonl")))
    if not tallies:
        raise ValueError(f"{folder / 'records.jsonl'} is empty: the sweep saw no video")
    return Results(
        system=settings["system"],
        targets=[name for name in settings["systems"] if name != settings["system"]],
        attacks=sorted(settings["attacks"], key=lambda name: name == CONTROL),
        dense={name for name, attack in settings["attacks"].items() if attack["dense"]},
        epsilons=sorted(settings["epsilons"]),
        classes=settings["classes"],
        test_clips=settings["test_clips"],
        tallies=tallies,
        # A clip may have been chosen, and its frames kept, by a process that was killed before it wrote the rows.
        examples=[example for example in examples if (example.clip, CLEAN, 0.0) in kept],
        example_records=kept,
    )
