"""Text files that appear whole or not at all, and files that grow by whole lines."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """The file bears its name once it is complete; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


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
