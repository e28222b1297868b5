"""provenance.json: which code made the records, with what and how it was called. It tells, and decides nothing.

A sweep that goes on adds a run to it; settings.json alone guards a sweep's folder.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from attacks.processor import processor_name
from attacks.whole_file import write_whole

PACKAGES = (
    "flowfool",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "numpy",
    "scipy",
    "opencv-contrib-python-headless",
    "av",
)


def provenance(device: torch.device | str, **more: Any) -> dict[str, Any]:
    """What one run on a device can tell of itself: time, command, commit, versions, seed, machine; `more` is added.

    What cannot be found out is None. On a GPU the processor is the CPU and the GPU.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "seed": _seed(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": str(device),
        "processor": ", ".join(dict.fromkeys((processor_name(), processor_name(device)))),
        **more,
    }


def add_provenance(folder: Path, run: dict[str, Any]) -> None:
    """Add a run to the folder's provenance.json. Call it in one process.

    It never stops a sweep: a file that cannot be read is kept as provenance.json.unreadable and begun anew.
    """
    path = folder / "provenance.json"
    try:
        runs = read_provenance(folder)
    except ValueError:
        path.replace(path.with_suffix(".json.unreadable"))
        runs = []
    write_whole(path, json.dumps({"runs": [*runs, run]}, indent=1, ensure_ascii=False, default=str) + "\n")


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The runs that made a sweep, in order; none where no file tells.

    Raises:
        ValueError: the file is not what `add_provenance` writes.
    """
    path = folder / "provenance.json"
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text())["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of runs ({error}); remove it, and the report does without") from error
    return list(runs)


def commit() -> str | None:
    """Commit of the checkout that this file is tracked in, with "+changes" where tracked files differ from it."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _seed() -> int | None:
    """What `seed_everything` left for the other processes; no attack of this project draws without its own seed."""
    value = os.environ.get("PL_GLOBAL_SEED", "")
    return int(value) if value.isdigit() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
