"""Files that appear whole or not at all, and files that grow by whole lines.

A file in the making lies beside its place, and names its writer: .records.jsonl.<machine>-<pid>.<random>.part
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` when the block ends well. Its folder is made.

    Any number of processes may write the same file at once: each has a part of its own, and the last one's stays. The
    parts of this file whose writers died are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = _fitting(path.name, 128)
    for left in path.parent.glob(f".{_plain(name)}.*.part"):
        with suppress(FileNotFoundError):  # another process deletes, too
            if not _may_be_written(left):
                left.unlink()
    part = path.with_name(f".{name}.{_machine()}-{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """The file bears its name once it is complete; its folder is made."""
    with appearing(path) as part:
        part.write_text(text)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines in one write; they are on the disk when this returns."""
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that may not be there yet. What a killed process left of another line is cut off, so that the
    next one starts afresh."""
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return content[:end].decode(errors="replace").splitlines()


def file_stem(clip: str) -> str:
    """The name of a clip's own file, without its suffix: "Archery/v_1" is Archery--v_1. No two clips share one.

    A name that is too long for a file is cut, and ends with a checksum.
    """
    # A hyphen beside a slash or another hyphen could be read as part of "--", which stands for the slash.
    escaped = re.sub(r"-(?=[-/])|(?<=[-/])-", "%2D", clip.replace("%", "%25"))
    return _fitting(escaped.replace("/", "--"), 200)


def _fitting(name: str, most: int) -> str:
    """A name of at most `most` bytes; the longest that a file may have is 255."""
    data = name.encode()
    if len(data) <= most:
        return name
    return data[: most - 17].decode(errors="ignore") + "~" + hashlib.sha256(data).hexdigest()[:16]


def _machine() -> str:
    return re.sub(r"\W", "_", os.uname().nodename)


def _plain(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _may_be_written(part: Path) -> bool:
    """Whether the writer may live: a living process of this machine, or any of another if it wrote in the last hour."""
    match = re.search(r"\.(\w+)-(\d+)\.\w+\.part$", part.name)
    if match is None:
        return True
    if match[1] != _machine():
        return time.time() - part.stat().st_mtime < 3600
    if int(match[2]) == os.getpid():
        # This process, or an earlier one with its number (numbers recur in containers): only age can tell.
        return time.time() - part.stat().st_mtime < 3600
    try:
        os.kill(int(match[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
