"""One row per (level, clip, stack, attack, target system, ε): what the sweep leaves and all that the report reads.

A clip is the unit of durability. Its rows reach the disk in one write that ends with a closing line, which has their
number and checksum. What a killed process left half-written, or a file system damaged, is recognised and dropped: any
number of processes and runs end with the same records.jsonl.
"""

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from attacks.whole_file import appearing, append_lines

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


def sum_costs(costs: Iterable[Mapping[str, Cost]]) -> dict[str, Cost]:
    """Part by part."""
    total: dict[str, Cost] = {}
    for of_parts in costs:
        for what, cost in of_parts.items():
            seconds, forwards, backwards = total.get(what, Cost())
            total[what] = Cost(seconds + cost.seconds, forwards + cost.pair_forwards, backwards + cost.pair_backwards)
    return total


class RecordStore:
    """The records of one sweep in `folder`, written by the process of this `rank`.

    Reading takes every process's file, so the number of processes may differ from run to run. A clip with a damaged
    line is not done; a warning names it.
    """

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self.folder = folder
        self._path = folder / f"records-rank{rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # a killed run may have left half a clip: the next one must start on a fresh line
            os.truncate(self._path, max((clip.end for clip in _complete_clips(self._path)), default=0))
        damaged: list[_Damage] = []
        self.stacks = {name: clip.stacks for name, clip in _stored_clips(folder, damaged).items()}
        """complete clip -> how many stacks it has"""
        for place in damaged:
            # Damage stays in its file for good: once its clips are made again, there is nothing left to say.
            if not place.clips or place.clips - self.done:
                names = ", ".join(sorted(place.clips - self.done)) or "of clips that cannot be told"
                warnings.warn(
                    f"{place.path}, lines {place.first} to {place.last}: damaged rows ({names}); they do not count, "
                    "and the sweep makes these clips again",
                    stacklevel=2,
                )

    @property
    def done(self) -> Set[str]:
        """Names of the complete clips."""
        return self.stacks.keys()

    def append(self, clip: str, records: Sequence[Record], costs: Mapping[str, Cost] | None = None) -> None:
        """Make all rows of one clip durable, or none of them, and with them what they cost."""
        lines = [json.dumps(record._asdict(), allow_nan=False) for record in records]
        checksum = zlib.crc32("".join(f"{line}\n" for line in lines).encode())
        stacks = _count_stacks(records)
        closing = {"clip_complete": clip, "rows": len(records), "stacks": stacks, "crc32": checksum}
        closing["costs"] = costs or {}
        append_lines(self._path, [*lines, json.dumps(closing)])
        self.stacks[clip] = stacks

    def merge(self) -> Path:
        """Write records.jsonl: every complete clip once, sorted by name. One clip at a time is in memory."""
        clips = _stored_clips(self.folder)
        merged = self.folder / "records.jsonl"
        with appearing(merged) as part, part.open("wb") as out:
            for name in sorted(clips):
                out.write(clips[name].read())
            out.flush()
            os.fsync(out.fileno())
        return merged

    def costs(self) -> dict[str, Cost]:
        """What all complete clips cost, summed over clips and processes."""
        return dict(sorted(sum_costs(clip.costs for clip in _stored_clips(self.folder).values()).items()))

    def right_when_clean(self, clips: Iterable[str], system: str) -> "dict[str, CleanVerdicts]":
        """How `system`, the white box, judged the clean frames of each of these clips that is complete."""
        stored = _stored_clips(self.folder)
        return {name: _clean_verdicts(stored[name], system) for name in clips if name in stored}


class CleanVerdicts(NamedTuple):
    """Of one clip; what has no verdict, as its logits are not finite, is left out."""

    stacks: int
    right: int
    """stacks"""
    video: bool | None
    """right at video level"""


class _StoredClip(NamedTuple):
    name: str
    path: Path
    start: int
    rows_end: int
    end: int
    """after the closing line"""
    rows: int
    stacks: int
    costs: dict[str, Cost]

    def read(self) -> bytes:
        """Its rows."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.rows_end - self.start)


class _Damage(NamedTuple):
    """Lines of a file, numbered from 1, that belong to no complete clip though others follow."""

    path: Path
    first: int
    last: int
    clips: set[str]
    """those that the lines still name"""


def finished_clips(folder: Path) -> set[str]:
    """Names of the clips whose records are complete; it changes nothing in the folder."""
    return set(_stored_clips(folder))


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


def _stored_clips(folder: Path, damaged: list[_Damage] | None = None) -> dict[str, _StoredClip]:
    """Each complete clip once: a DistributedSampler may hand one to two processes."""
    parts = sorted(folder.glob("records-rank*.jsonl"))
    return {clip.name: clip for path in reversed(parts) for clip in _complete_clips(path, damaged)}


def _complete_clips(path: Path, damaged: list[_Damage] | None = None) -> Iterator[_StoredClip]:
    """The clips whose closing line is there, and whose rows are those that it closes. Other lines go into `damaged`."""
    lines: list[bytes] = []
    position = number = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            position, number = position + len(line), number + 1
            if not line.startswith(_CLOSING):
                lines.append(line)
                continue
            clip = _closed(path, line, lines, position)
            left = lines if clip is None else lines[: len(lines) - clip.rows]
            if damaged is not None and (left or clip is None):
                first = number - len(lines)
                last = number if clip is None else first + len(left) - 1
                damaged.append(_Damage(path, first, last, _names([*left, *([line] if clip is None else [])])))
            if clip is not None:
                yield clip
            lines = []


def _closed(path: Path, line: bytes, lines: Sequence[bytes], position: int) -> _StoredClip | None:
    """The clip that a closing line ends at `position`, of the last of these lines; None unless all of it is sound."""
    try:
        closing = json.loads(line)
        name, rows = closing["clip_complete"], closing["rows"]
        costs = {what: Cost(*cost) for what, cost in closing["costs"].items()}
        of_clip = lines[len(lines) - rows :]
        if len(of_clip) != rows:
            return None
        if "crc32" in closing:
            stacks, sound = closing["stacks"], zlib.crc32(b"".join(of_clip)) == closing["crc32"]
        else:  # written before closing lines had a checksum
            records = [Record(**json.loads(row)) for row in of_clip]
            stacks = _count_stacks(records)
            sound = all(record.clip == name for record in records)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    if not sound:
        return None
    rows_end = position - len(line)
    start = rows_end - sum(map(len, of_clip))
    return _StoredClip(name, path, start, rows_end, position, rows, stacks, costs)


def _count_stacks(records: Iterable[Record]) -> int:
    return len({record.stack for record in records} - {None})


def _names(lines: Iterable[bytes]) -> set[str]:
    """The clips that damaged lines still name."""
    names = set()
    for line in lines:
        try:
            content = json.loads(line)
            names.add(str(content["clip_complete"] if "clip_complete" in content else content["clip"]))
        except (TypeError, ValueError, KeyError):
            continue
    return names


def _clean_verdicts(clip: _StoredClip, system: str) -> CleanVerdicts:
    rows = (Record(**json.loads(line)) for line in clip.read().splitlines() if f'"{CLEAN}"'.encode() in line)
    right: dict[str, list[bool]] = {"stack": [], "video": []}
    for row in rows:
        if (row.attack, row.target) == (CLEAN, system) and row.fault != NOT_FINITE:
            right[row.level].append(row.correct)
    return CleanVerdicts(len(right["stack"]), sum(right["stack"]), any(right["video"]) if right["video"] else None)
