"""Files and folders in the making. They lie beside the place where they will appear, by a rename, whole or not at all:

    .v_Archery_g01_c01.zip.<machine>-<pid>.part

so that what a killed process left can be told from what another one is writing.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 255
"""Bytes of a file's name, on Linux and on macOS."""


def part_of(final: Path) -> Path:
    """Where this process makes `final`. What lies there is removed: it is an earlier process's of the same number, as
    they recur in containers."""
    part = final.with_name(f".{fitting(final.name, 128)}.{_machine()}-{os.getpid()}.part")
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
    return part


def fitting(name: str, most: int = _LONGEST) -> str:
    """A file name of at most `most` bytes: a longer one is cut, and a checksum keeps it apart from others."""
    data = name.encode()
    if len(data) <= most:
        return name
    return data[: most - 17].decode(errors="ignore") + "~" + hashlib.sha256(data).hexdigest()[:16]


@contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A file to write, which becomes `final` where the block ends well, and is removed where it fails. Any number of
    writers may make the same file: the last one's stays."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(final.with_name(f"{fitting(final.name, 100)}.{secrets.token_hex(4)}"))
    try:
        yield part
        part.replace(final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sweep(parts: Iterable[Path]) -> None:
    """Remove those whose writers are dead."""
    for part in parts:
        with suppress(FileNotFoundError):  # another process sweeps, too
            if not _writer_is_alive(part):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _machine() -> str:
    return fitting(re.sub(r"\W", "_", os.uname().nodename), 64).replace("~", "_")


def _writer_is_alive(part: Path) -> bool:
    """Whether the process that writes it may live: one on this machine that does, or any on another machine whose file
    changed in the last hour."""
    match = re.search(r"\.(\w*)-(\d+)\.part$", part.name)
    if match is None:
        return False
    if match[1] != _machine():
        return time.time() - part.stat().st_mtime < 3600
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
