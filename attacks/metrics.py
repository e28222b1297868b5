"""What the paper reports, from records alone: accuracy, success rate, sparsity (section 5.1), and the same at every
frame budget. Pure functions, one pass.

Micro averages: every stack (or video) weighs the same. Only examples that were judged right when clean are attacked.
The others count as wrong at every ε; one that a perturbation happens to correct is counted in `recovered` alone.
One without a verdict, as its logits were not finite, is neither right nor fooled: it is left out of the rates.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from attacks.records import CLEAN, NOT_FINITE, Record


class Cell(NamedTuple):
    """What a figure of the report is about."""

    level: str
    system: str
    """the white box, whose gradient the attack used"""
    attack: str
    target: str
    """the system that was judged"""
    epsilon: float

    @classmethod
    def of(cls, record: Record) -> "Cell":
        """The one that a record counts in."""
        return cls(record.level, record.system, record.attack, record.target, record.epsilon)


@dataclass
class Tally:
    """Counts over the examples of one cell."""

    examples: int = 0
    attacked: int = 0
    success: int = 0
    recovered: int = 0
    """wrong when clean, right when perturbed"""
    standing_8bit: int = 0
    """attacked, and right after rounding to 8 bits"""
    judged_8bit: int = 0
    frames: Counter[int] = field(default_factory=Counter)
    """frames perturbed -> successful examples"""
    stacks: Counter[int] = field(default_factory=Counter)
    """stacks perturbed -> successful videos"""
    turns: Counter[int] = field(default_factory=Counter)
    """frames perturbed -> attacked examples that became right there, less those that became wrong"""
    pair_forwards: int = 0
    pair_backwards: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """fault -> examples that say nothing of robustness; NO_GRADIENT of attacked ones alone"""
    unjudged: int = 0
    """without a verdict"""

    def add(self, record: Record) -> None:
        self.examples += 1
        self.unjudged += not judged(record)
        if record.fault is not None and (record.attacked or record.fault == NOT_FINITE):
            self.faults[record.fault] += 1
        self.attacked += record.attacked
        self.success += record.success
        self.recovered += record.correct and not record.attacked
        if record.correct_8bit is not None and judged(record):
            self.judged_8bit += 1
            self.standing_8bit += record.attacked and record.correct_8bit
        if record.success:
            self.frames[record.frames_perturbed] += 1
            if record.stacks_perturbed is not None:
                self.stacks[record.stacks_perturbed] += 1
        for frames, change in turns(record):
            self.turns[frames] += change
        self.pair_forwards += record.pair_forwards
        self.pair_backwards += record.pair_backwards

    def accuracy_within(self, budget: int) -> float:
        """Of all examples: right when clean, and still right with `budget` frames perturbed or fewer."""
        standing = self.attacked + sum(change for frames, change in self.turns.items() if frames <= budget)
        return standing / self.judged if self.judged else math.nan

    @property
    def judged(self) -> int:
        """Examples with a verdict."""
        return self.examples - self.unjudged

    @property
    def accuracy(self) -> float:
        """Of all examples with a verdict: judged right when clean and still right; nan when there are none."""
        return (self.attacked - self.success) / self.judged if self.judged else math.nan

    @property
    def accuracy_of_attacked(self) -> float | None:
        """The same of the examples that the clean system judged right; None when there are none."""
        return (self.attacked - self.success) / self.attacked if self.attacked else None

    @property
    def success_rate(self) -> float | None:
        return self.success / self.attacked if self.attacked else None

    @property
    def accuracy_8bit(self) -> float | None:
        """Accuracy of all examples, the adversarial frames rounded to 8 bits; None where that was not judged."""
        return self.standing_8bit / self.judged_8bit if self.judged_8bit else None

    @property
    def mean_frames(self) -> float | None:
        """Mean frames perturbed of the successful examples (Table 1, Stk-FP); None when none succeeded."""
        return _mean(self.frames)

    @property
    def mean_stacks(self) -> float | None:
        """Mean stacks perturbed of the successful videos."""
        return _mean(self.stacks)


def tally(records: Iterable[Record]) -> dict[Cell, Tally]:
    """Counts per cell, cells in order of first appearance."""
    tallies: dict[Cell, Tally] = {}
    for record in records:
        tallies.setdefault(Cell.of(record), Tally()).add(record)
    return tallies


def curve(tallies: Mapping[Cell, Tally], *, level: str, system: str, attack: str, target: str) -> dict[float, Tally]:
    """ε -> tally in order of ε, the clean target at ε = 0; empty when `system`'s attack was not made on this target."""
    points = {cell.epsilon: t for cell, t in tallies.items() if cell[:-1] == (level, system, attack, target)}
    clean = tallies.get(Cell(level, system, CLEAN, target, 0.0))
    if points and clean is not None:
        points.setdefault(0.0, clean)
    return dict(sorted(points.items()))


def budget_map(
    tallies: Mapping[Cell, Tally], *, system: str, attack: str, target: str, epsilons: Iterable[float], frames: int
) -> np.ndarray:
    """Stack accuracy (E, T+1) under each ε with 0 … T = `frames` perturbed, for an attack that goes frame by frame."""
    cells = [tallies[Cell("stack", system, attack, target, epsilon)] for epsilon in epsilons]
    return np.array([[cell.accuracy_within(budget) for budget in range(frames + 1)] for cell in cells])


def judged(record: Record) -> bool:
    """The example has a verdict, clean and attacked."""
    return record.attacked or record.fault != NOT_FINITE


def turns(record: Record) -> Iterator[tuple[int, int]]:
    """(frames perturbed, +1 or -1) where an attacked example becomes right or wrong; none of one that was not."""
    if not record.attacked:
        return
    if record.steps is None:
        if record.success:
            yield record.frames_perturbed, -1
        return
    right = True
    for frames, step in enumerate(record.steps, start=1):
        if (step[1] == record.label) != right:
            right = not right
            yield frames, 1 if right else -1


def frames_histogram(points: Mapping[float, Tally]) -> dict[int, float]:
    """Share of the successful examples that took so many frames, averaged over ε > 0 (Fig. 5).

    Every ε with a success weighs the same; the shares sum to 1, or there are none.
    """
    tallies = [t for epsilon, t in points.items() if epsilon > 0 and t.success]
    shares: Counter[int] = Counter()
    for t in tallies:
        for frames, count in t.frames.items():
            shares[frames] += count / t.success / len(tallies)  # type: ignore[assignment]
    return dict(sorted(shares.items()))


def _mean(counts: Counter[int]) -> float | None:
    return sum(value * count for value, count in counts.items()) / counts.total() if counts else None
