"""paths.json in a sweep's folder: three ways from a clip to its class, which must agree, and float flow beside them."""

import json
from collections.abc import Mapping
from pathlib import Path

from attacks.report.table import Table
from attacks.whole_file import write_whole

FILE = "paths.json"
COUNTS = {
    "stacks": "stacks",
    "memory": "PNG = memory",
    "video": "memory = video",
    "equal_logits": "equal logits",
    "levels": "8-bit levels off",
    "float_differs": "float differs",
}
"""entry of the file -> head of its column"""


def write_paths(sweep: Path, systems: Mapping[str, Mapping[str, int]]) -> None:
    """Write the counts (`COUNTS`) of each system into the folder of the sweep that attacked them."""
    write_whole(sweep / FILE, json.dumps(systems, indent=1) + "\n")


def read_paths(sweep: Path) -> dict[str, dict[str, int]]:
    """The counts of each system; empty where none were taken.

    Raises:
        ValueError: the file is not what `write_paths` writes; names it.
    """
    path = sweep / FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {name: {count: int(counts[count]) for count in COUNTS} for name, counts in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what `make check-paths` writes ({error!r}): remove it or run that again"
        ) from error


def prediction_paths(systems: Mapping[str, Mapping[str, int]]) -> Table:
    """A row for each system that was asked."""
    return Table(
        name="paths",
        title="The same clean stacks on other paths: PNG flow, 8-bit flow from memory, lossless video, float flow",
        columns=[("", "system"), *(("", head) for head in COUNTS.values())],
        rows=[[name, *(counts[count] for count in COUNTS)] for name, counts in systems.items()],
        notes=[
            "Of the stacks that were asked; `make check-paths` asks of all test stacks. PNG = memory, memory = video: "
            "stacks that get the same class on both paths. 8-bit levels off: flow values, of all pixels, that differ "
            "between PNGs and memory. float differs: stacks that float flow, which the sweep attacks unless "
            "`eight_bit` is set, puts in another class than 8-bit flow.",
        ],
    )
