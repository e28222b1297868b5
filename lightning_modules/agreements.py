"""What the check of paths found, clip by clip, on the disk as soon as it is found: a line of JSON for each clip."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from attacks.whole_file import append_lines, whole_lines
from datamodules.flow_store import FlowStore
from datamodules.video_dataset import Clip


@dataclass(frozen=True)
class Agreement:
    """Counts over stacks of one system."""

    stacks: int = 0
    memory: int = 0
    """the class from memory is the class from PNGs"""
    video: int = 0
    """the class from the lossless video is the class from memory"""
    equal_logits: int = 0
    """all logits of the three are equal, bit for bit"""
    levels: int = 0
    """8-bit flow values, of all pixels, that differ between PNGs and memory"""
    float_differs: int = 0
    """stacks that float flow puts in another class than 8-bit flow"""
    differing: list[str] = field(default_factory=list)
    """clip and stack of each difference among the three"""

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "differing"}

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


class Agreements:
    """Those of some clips of one system. One of an earlier run counts while the store's planes are those it saw.

    Args:
        path: the file, which need not be there; None keeps them in memory alone.
        store: of the system's flow.
        clips: that are asked for.

    Raises:
        FileNotFoundError: the store no longer holds a clip of the file.
        ValueError: a line of the file is none that `add` writes; names it.
    """

    def __init__(self, path: Path | None, store: FlowStore, clips: Sequence[Clip]) -> None:
        self.path, self.store = path, store
        self.of: dict[str, Agreement] = {}
        """by the name of the clip"""
        asked = {clip.name: clip for clip in clips}
        for number, line in enumerate([] if path is None else whole_lines(path), start=1):
            try:
                entry = json.loads(line)
                name, planes = entry["clip"], entry["planes_sha256"]
                found = Agreement(*(entry[one.name] for one in fields(Agreement)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: {line[:80]!r} is not what `make check-paths` writes ({error!r}): remove "
                    "the line, and its clip is checked again"
                ) from error
            if name in asked and planes == store.checksum(asked[name]):
                self.of[name] = found

    def add(self, clip: Clip, found: Agreement) -> None:
        """Make one clip's agreement durable."""
        if self.path is not None:
            entry = {"clip": clip.name, "planes_sha256": self.store.checksum(clip), **asdict(found)}
            append_lines(self.path, [json.dumps(entry)])
        self.of[clip.name] = found

    @property
    def differences(self) -> int:
        """Stacks on which the three paths do not agree."""
        return sum(len(found.differing) for found in self.of.values())
