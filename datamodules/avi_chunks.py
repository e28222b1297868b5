"""Whether an AVI file's chunks follow one another from its first byte to its last."""

import mmap
from pathlib import Path

_CONTAINERS = (b"AVI ", b"AVIX", b"movi", b"rec ")
"""Lists whose chunks are looked at; the others, title and author for two, have no frames, and writers that are careless
with them."""

_UNKNOWN = (0, 0xFFFFFFFF)
"""Lengths of a list that was written to a pipe, where its end was not known yet."""


def refuse_damaged_avi(path: Path) -> None:
    """Raise where an AVI file is cut off, or where no chunk begins at the place at which one must; other files pass.

    FFmpeg seeks the next frame that looks sound and says nothing, so that such a file decodes as a shorter clip. Damage
    within one frame leaves the chunks as they are: that is for the decoder to tell.

    Raises:
        ValueError: names the file, and the byte.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            length = int.from_bytes(data[4:8], "little")
            if length not in _UNKNOWN and length + 8 > size:
                raise ValueError(f"{path}: cut off, {size} of {length + 8} bytes; download it again")
            start = 0
            while data[start : start + 4] == b"RIFF":  # a file of more than a gigabyte has several
                start = _walk(data, start, size, path)


def _walk(data: mmap.mmap, start: int, end: int, path: Path) -> int:
    """Over one chunk, which ends by `end`: where the next begins."""
    name, length = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
    container = name in (b"RIFF", b"LIST") and data[start + 8 : start + 12] in _CONTAINERS
    after = end if container and length in _UNKNOWN else start + 8 + length
    if after > end or not all(0x20 <= letter < 0x7F for letter in name):
        what = "a chunk is cut off" if after > end else "no chunk of an AVI file begins"
        raise ValueError(f"{path}: damaged, {what} at byte {start}; download it again")
    if container:
        place = start + 12
        while place + 8 <= after:
            place = _walk(data, place, after, path)
    return min(after + length % 2, end)
