"""How the planes of a clip lie on disk: the same PNG bytes in one archive a clip, or as loose files.

    archive   <store>/<Class>/<clip>.zip                        13 thousand files for UCF-101; the default
    loose     <store>/<Class>/<clip>/flow_x_00001.png …         2.3 million; what mmaction2-style loaders read

Planes are counted from 1; flow_x is u, flow_y is v. A clip appears by a rename, whole or not at all.
"""

import io
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from datamodules import half_written

Kind = Literal["archive", "loose"]
RECORD = "clip.json"


def plane_name(index: int) -> str:
    """`flow_x_00001.png`, `flow_y_00001.png`, `flow_x_00002.png`, … for 0, 1, 2, …"""
    return f"flow_{'xy'[index % 2]}_{index // 2 + 1:05d}.png"


class Layout(ABC):
    """The clips of one store; a clip goes by its name, `Archery/v_Archery_g01_c01`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def path(self, name: str) -> Path:
        """The clip's file or folder."""

    @abstractmethod
    def write(self, name: str, pngs: Sequence[bytes], record: dict[str, Any]) -> None:
        """Store a clip's planes, u and v of each field in turn, with what is to be known of it. What a failure leaves
        is removed."""

    @abstractmethod
    def record(self, name: str) -> dict[str, Any]:
        """What is known of a clip that is there."""

    @abstractmethod
    def fields(self, name: str) -> int:
        """Number of flow fields of a clip that is there."""

    @abstractmethod
    def planes(self, name: str, start: int, count: int) -> list[memoryview | bytes]:
        """The PNGs of the fields start … start + count - 1 (the first is 0), u and v in turn.

        Raises:
            FileNotFoundError, ValueError: a plane is not there, or the archive is damaged; names it.
        """

    def has(self, name: str) -> bool:
        """Whether the clip is there (it is whole then)."""
        return self.path(name).exists()

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        half_written.sweep(self.folder.glob("*/.*.part"))


class Loose(Layout):
    """A folder of PNGs a clip."""

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, pngs: Sequence[bytes], record: dict[str, Any]) -> None:
        final = self.path(name)
        part = half_written.part_of(final)
        part.mkdir(parents=True)
        try:
            for index, png in enumerate(pngs):
                (part / plane_name(index)).write_bytes(png)
            (part / RECORD).write_text(_dumped(record))
            replaced = half_written.part_of(final.with_name(f"{half_written.fitting(final.name, 100)}.replaced"))
            if final.exists():  # a folder cannot be renamed to one that holds files
                final.rename(replaced)
            try:
                part.rename(final)
            except BaseException:
                if replaced.exists():
                    replaced.rename(final)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def record(self, name: str) -> dict[str, Any]:
        path = self.path(name) / RECORD
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: damaged ({error}); `make repair-…` computes the clip again") from error

    def fields(self, name: str) -> int:
        return int(self.record(name)["n_flow"])

    def planes(self, name: str, start: int, count: int) -> list[memoryview | bytes]:
        folder = self.path(name)
        return [(folder / plane_name(index)).read_bytes() for index in range(2 * start, 2 * (start + count))]


class Archive(Layout):
    """An uncompressed ZIP file a clip: fields in order, u and v in turn, then clip.json.

    All names of planes are of one length, so that the directory at the end of the file is a table, and the planes of a
    stack are one piece of the file: three reads, however long the clip.
    """

    def path(self, name: str) -> Path:
        class_name, _, stem = name.rpartition("/")
        return self.folder / class_name / half_written.fitting(f"{stem}.zip")

    def write(self, name: str, pngs: Sequence[bytes], record: dict[str, Any]) -> None:
        final = self.path(name)
        if len(pngs) > _MOST_PLANES:
            raise ValueError(f"{name}: {len(pngs) // 2} flow fields do not fit an archive; use the layout `loose`")
        part = half_written.part_of(final)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                for index, png in enumerate(pngs):
                    archive.writestr(
                        zipfile.ZipInfo(plane_name(index)), png
                    )  # dated 1980: the same bytes whenever written
                archive.writestr(zipfile.ZipInfo(RECORD), _dumped(record))
            part.replace(final)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def record(self, name: str) -> dict[str, Any]:
        path = self.path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read(RECORD))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(_damaged(path, error)) from error

    def fields(self, name: str) -> int:
        path = self.path(name)
        with path.open("rb", buffering=0) as file:
            return (int(_end(file, path)["entries"]) - 1) // 2

    def planes(self, name: str, start: int, count: int) -> list[memoryview | bytes]:
        path = self.path(name)
        with path.open("rb", buffering=0) as file:
            end = _end(file, path)
            fields = (int(end["entries"]) - 1) // 2
            if start + count > fields:
                raise FileNotFoundError(
                    f"{path}: holds {fields} flow fields, {start} to {start + count - 1} were asked"
                )
            table = np.frombuffer(_read(file, int(end["start"]), 2 * fields * _ENTRY.itemsize, path), _ENTRY)
            if (table["signature"] != _ENTRY_SIGNATURE).any() or (table["name_length"] != _NAME_LENGTH).any():
                raise ValueError(_damaged(path, "its directory is not the one that was written"))
            rows = table[2 * start : 2 * (start + count)]
            first = rows["offset"].astype(np.int64) + _LOCAL_HEADER
            last = first + rows["size"]
            piece = memoryview(_read(file, int(first[0]), int(last[-1] - first[0]), path))
        return [piece[a:b] for a, b in zip((first - first[0]).tolist(), (last - first[0]).tolist(), strict=True)]


def layout_of(kind: str, folder: Path) -> Layout:
    """The layout by its name.

    Raises:
        ValueError: unknown; names the choices.
    """
    layouts: dict[str, type[Layout]] = {"archive": Archive, "loose": Loose}
    if kind not in layouts:
        raise ValueError(f"unknown layout {kind!r} of a flow store: choose {' or '.join(get_args(Kind))}")
    return layouts[kind](folder)


_MOST_PLANES = 65534  # of a ZIP file without the 64-bit extension, with clip.json
_NAME_LENGTH = len(plane_name(0))
_LOCAL_HEADER = 30 + _NAME_LENGTH
_ENTRY_SIGNATURE = int.from_bytes(b"PK\1\2", "little")
_END_SIGNATURE = int.from_bytes(b"PK\5\6", "little")
_ENTRY = np.dtype(
    [
        ("signature", "<u4"),
        ("versions_flags_method_date", "V12"),
        ("crc32", "<u4"),
        ("compressed", "<u4"),
        ("size", "<u4"),
        ("name_length", "<u2"),
        ("lengths_disk_attributes", "V12"),
        ("offset", "<u4"),
        ("name", f"S{_NAME_LENGTH}"),
    ]
)
_END = np.dtype(
    [
        ("signature", "<u4"),
        ("disks_entries_here", "V6"),
        ("entries", "<u2"),
        ("size", "<u4"),
        ("start", "<u4"),
        ("comment_length", "<u2"),
    ]
)


def _end(file: io.FileIO, path: Path) -> np.void:
    """The end record, which says where the directory is."""
    size = os.fstat(file.fileno()).st_size
    if size < _END.itemsize:
        raise ValueError(_damaged(path, f"{size} bytes"))
    end = np.frombuffer(_read(file, size - _END.itemsize, _END.itemsize, path), _END)[0]
    if end["signature"] != _END_SIGNATURE or end["entries"] < 1 or end["start"] + end["size"] + _END.itemsize != size:
        raise ValueError(_damaged(path, "no ZIP file that a flow store wrote"))
    return end


def _read(file: io.FileIO, start: int, length: int, path: Path) -> bytes:
    data = os.pread(file.fileno(), length, start)
    if len(data) != length:
        raise ValueError(_damaged(path, "cut off"))
    return data


def _damaged(path: Path, reason: object) -> str:
    return f"{path}: damaged ({reason}); `make verify-…` lists all such clips, `make repair-…` computes them again"


def _dumped(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"
