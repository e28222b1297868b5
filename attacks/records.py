"""One row per (level, clip, stack, attack, target system, ε): what the sweep leaves and all that the report reads.

A clip is the unit of durability. Its rows reach the disk in one write that ends with a closing line, so what a killed
process left half-written is recognised and dropped: any number of processes and runs end with the same records.jsonl.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attacks.whole_file import append_lines

CLEAN = "clean"
"""The name that rows without an attack (ε = 0) carry in `attack`."""

NO_GRADIENT = "no gradient"
"""The fault of a row whose attack stood still because the gradient was zero everywhere."""
NOT_FINITE = "not finite"
"""The fault of a row without a verdict: logits or a gradient were NaN or infinite."""

_CLOSING = b'{"clip_complete": '


class Record(NamedTuple):
    level: str
    """stack, or video (section 5.2)"""
    clip: str
    group: str
    """the source video that the clip was cut from: clips of one group are not independent"""
    stack: int | None
    """index of the stack in its clip; None at video level"""
    label: int
    system: str
    """the white box, whose gradient the attack used"""
    target: str
    """the system that was judged, and that iterative attacks stopped on"""
    attack: str
    epsilon: float
    clean_prediction: int
    clean_confidence: float
    prediction: int
    confidence: float
    """softmax probability of `prediction`"""
    attacked: bool
    """the target judged the clean frames right"""
    success: bool
    """attacked and now misclassified"""
    correct: bool
    """prediction == label, attacked or not"""
    correct_8bit: bool | None
    """the same after rounding the adversarial frames to 8 bits; None at video level"""
    frames_perturbed: int
    frame_order: list[int] | None
    """frames in the order of their perturbation; None at video level"""
    stacks_perturbed: int | None
    """video level only"""
    margin: float | None = None
    """logit of the label less the greatest other: negative where wrong; None at video level, a mean of probabilities"""
    steps: list[list[Any]] | None = None
    """[frame, prediction, confidence, margin] after each perturbed frame; None for an attack on all frames at once, and
    at video level"""
    pair_forwards: int = 0
    """frame pairs whose flow was estimated for this row, by white box and target; a step that several attacks share
    counts in the one that makes it, a pair that several ε share in the smallest; 0 at video level, which follows from
    the stacks"""
    pair_backwards: int = 0
    """frame pairs that a gradient went through for this row, with those that a retained graph had besides; the clean
    gradient counts in the white box's clean row"""
    psnr: float | None = None
    """of the adversarial frames against the clean ones, as the three below, the fields of `Quality`; None where no
    frame was perturbed"""
    ssim: float | None = None
    flicker: float | None = None
    flow_epe: float | None = None
    """of the target's flow of the adversarial frames against that of the clean ones, pixels"""
    fault: str | None = None
    """NO_GRADIENT or NOT_FINITE where the row says nothing of robustness; of a video, where that is so of a stack"""


class Cost(NamedTuple):
    """Of one part of a sweep: one attack on one target, one system's clean passes, its look at frames rounded to 8
    bits, the measures of visibility, or the way through files."""

    seconds: float = 0.0
    """of the wall; they differ from run to run, and so stay out of the rows"""
    pair_forwards: int = 0
    pair_backwards: int = 0


class RecordStore:
    """The records of one sweep in `folder`, written by the process of this `rank`.

    Reading takes every process's file, so the number of processes may differ from run to run.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self.folder = folder
        self._path = folder / f"records-rank{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # a killed run may have left half a clip: the next one must start on a fresh line
            os.truncate(self._path, max((clip.end for clip in _complete_clips(self._path)), default=0))
        self.done: set[str] = set(self._clips())

    def append(self, clip: str, records: Sequence[Record], costs: Mapping[str, Cost] | None = None) -> None:
        """Make all rows of one clip durable, or none of them, and with them what they cost."""
        lines = [json.dumps(record._asdict()) for record in records]
        lines.append(json.dumps({"clip_complete": clip, "rows": len(records), "costs": costs or {}}))
        append_lines(self._path, lines)
        self.done.add(clip)

    def merge(self) -> Path:
        """Write records.jsonl: every complete clip once, sorted by name. One clip at a time is in memory."""
        clips = self._clips()
        merged = self.folder / "records.jsonl"
        scratch = merged.with_suffix(".tmp")
        with scratch.open("wb") as out:
            for name in sorted(clips):
                with clips[name].path.open("rb") as file:
                    file.seek(clips[name].start)
                    out.write(file.read(clips[name].rows_end - clips[name].start))
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(merged)
        return merged

    def costs(self) -> dict[str, Cost]:
        """What all complete clips cost, summed over clips and processes."""
        total: dict[str, Cost] = {}
        for clip in self._clips().values():
            for what, cost in clip.costs.items():
                seconds, forwards, backwards = total.get(what, Cost())
                total[what] = Cost(
                    seconds + cost.seconds, forwards + cost.pair_forwards, backwards + cost.pair_backwards
                )
        return dict(sorted(total.items()))

    def _clips(self) -> dict[str, "_StoredClip"]:
        """Each complete clip once: a DistributedSampler may hand one to two processes."""
        parts = sorted(self.folder.glob("records-rank*.jsonl"))
        return {clip.name: clip for path in reversed(parts) for clip in _complete_clips(path)}


class _StoredClip(NamedTuple):
    name: str
    path: Path
    start: int
    rows_end: int
    end: int
    """after the closing line"""
    costs: dict[str, Cost]


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a merged records.jsonl, one at a time."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a sweep writes it when its test run ends")
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Record(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a record ({error})") from error


def _complete_clips(path: Path) -> Iterator[_StoredClip]:
    """The clips whose closing line is there."""
    start = position = rows = 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            if not line.endswith(b"\n"):
                return
            if not line.startswith(_CLOSING):
                rows += 1
                continue
            closing = json.loads(line)
            if closing["rows"] == rows:
                rows_end = position - len(line)
                costs = {what: Cost(*cost) for what, cost in closing["costs"].items()}
                yield _StoredClip(closing["clip_complete"], path, start, rows_end, position, costs)
            start, rows = position, 0
