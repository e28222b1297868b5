"""Flow that people already have: u and v as gray images, in any of the arrangements that are about.

A picture's axis is told by its name's beginning or end (u, v, x, y, flow_x, flow_y), or by a folder of such a name; its
number by the last digits of its name. Its clip is the nearest folder that is called like one of the dataset's clips, or
else what its name has beside axis and number; the class is a folder above, which may be left out as long as no two
classes have a clip of that name:

    Archery/v_Archery_g01_c01/flow_x_00001.jpg      u/v_Archery_g01_c01/frame000001.jpg
    u/v_Archery_g01_c01_0001.png                    v_Archery_g01_c01/u/0000.png
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from datamodules.video_dataset import Clip

_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_AXES = {"u": 0, "x": 0, "flow_x": 0, "flow_u": 0, "v": 1, "y": 1, "flow_y": 1, "flow_v": 1}


class FoundFlow(NamedTuple):
    """The pictures of the dataset's clips in a folder."""

    planes: dict[str, tuple[dict[int, Path], dict[int, Path]]]
    """by clip, its name in lower case: u and v by number"""
    description: str
    """what was found, in words"""


class _Place(NamedTuple):
    """Which plane a picture is."""

    clip: str
    axis: int
    number: int
    arrangement: str


class _Names:
    """The clips' names in lower case, by stem and by class."""

    def __init__(self, clips: list[Clip]) -> None:
        self.by_stem: dict[str, dict[str, str]] = defaultdict(dict)
        for name in (clip.name.lower() for clip in clips):
            class_name, _, stem = name.rpartition("/")
            self.by_stem[stem][class_name] = name
        self.classes = {class_name for named in self.by_stem.values() for class_name in named}


def find_flow(folder: Path, clips: list[Clip]) -> FoundFlow:
    """What a folder holds of the clips' flow.

    Raises:
        FileNotFoundError: no such folder, or no picture in it that is a plane of one of the clips.
        ValueError: two pictures are the same plane; or a picture may be of several clips, as its path does not tell the
            class. Names them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold the flow to import")
    names = _Names(clips)
    planes: dict[str, tuple[dict[int, Path], dict[int, Path]]] = defaultdict(lambda: ({}, {}))
    arrangements, formats = set(), set()
    pictures = 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES):
        pictures += 1
        place = _place(path, folder, names)
        if place is None:
            continue
        known = planes[place.clip][place.axis].setdefault(place.number, path)
        if known != path:
            raise ValueError(
                f"{known} and {path}: both are plane {place.number} of {'uv'[place.axis]} of {place.clip}; take one of "
                "them away, or name a folder that holds only one (make import-flow FROM=DIR)"
            )
        arrangements.add(place.arrangement)
        formats.add(_SUFFIXES[path.suffix.lower()])
    if not planes:
        raise FileNotFoundError(
            f"{folder}: {pictures} pictures, none of them a plane of one of the dataset's {len(clips)} clips; u and v "
            "are looked for as u/ and v/ folders or flow_x_, flow_y_ (x_, y_, u_, v_) names, with the clips' names"
        )
    firsts = {min(numbers) for both in planes.values() for numbers in both if numbers}
    count = sum(len(u) for u, _ in planes.values())
    description = (
        f"{len(planes)} of {len(clips)} clips, {count} flow fields, {' and '.join(sorted(formats))}, "
        f"{' and '.join(sorted(arrangements))}, counted from {' and '.join(map(str, sorted(firsts)))}"
    )
    return FoundFlow(dict(planes), description)


def _place(path: Path, folder: Path, names: _Names) -> _Place | None:
    """Which plane a picture below `folder` is; None where it is none of the clips'."""
    folders = [part.lower() for part in path.relative_to(folder).parent.parts]
    name = path.stem.lower()
    number = re.search(r"(\d+)$", name)
    if number is None:
        return None
    stem, axis = _read_name(name[: number.start()].rstrip("_-."), names)
    depth = next((depth for depth in reversed(range(len(folders))) if folders[depth] in names.by_stem), len(folders))
    if depth < len(folders):
        stem = folders[depth]
    arrangement = f"names {axis}_…"
    if axis is None:
        axis = next((part for part in reversed(folders) if part in _AXES), None)
        arrangement = f"folders {axis}/"
    if stem is None or axis is None:
        return None
    clip = _clip(path, stem, folders[:depth], names)
    return None if clip is None else _Place(clip, _AXES[axis], int(number[1]), arrangement)


def _read_name(name: str, names: _Names) -> tuple[str | None, str | None]:
    """The clip's stem and the axis, as far as a picture's name without its number tells them."""
    if name in _AXES:
        return None, name
    if name in names.by_stem:
        return name, None
    for axis in _AXES:
        for stem in (name.removeprefix(f"{axis}_"), name.removesuffix(f"_{axis}")):
            if stem in names.by_stem:
                return stem, axis
    return None, None


def _clip(path: Path, stem: str, above: list[str], names: _Names) -> str | None:
    """The clip of that stem in the class that a folder above tells; None where that class has none."""
    named = names.by_stem[stem]
    class_name = next((part for part in reversed(above) if part in names.classes), None)
    if class_name is not None:
        return named.get(class_name)
    if len(named) > 1:
        told = " and ".join(sorted(named.values()))
        raise ValueError(
            f"{path}: which clip is it of, {told}? Lay the pictures into folders of the classes' names, and name the "
            "folder above them (make import-flow FROM=DIR)"
        )
    return next(iter(named.values()))
