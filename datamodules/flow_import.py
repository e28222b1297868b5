"""Flow that people already have, into a store: u and v as gray images, in any of the arrangements that are about.

A picture's axis is told by a folder or a file name's beginning (u, v, x, y, flow_x, flow_y), its clip by the folder or
file name that is one of the dataset's clips, its number by the last digits of its name.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from datamodules import flow_codec
from datamodules.flow_store import FlowStore
from datamodules.video_dataset import Clip, VideoDataset

_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_AXES = {"u": 0, "x": 0, "flow_x": 0, "flow_u": 0, "v": 1, "y": 1, "flow_y": 1, "flow_v": 1}


class FoundFlow(NamedTuple):
    """The pictures of the dataset's clips in a folder."""

    planes: dict[str, tuple[dict[int, Path], dict[int, Path]]]
    """by clip, in lower case: u and v by number"""
    description: str
    """what was found, in words"""


def find_flow(folder: Path, clips: list[Clip]) -> FoundFlow:
    """What a folder holds of the clips' flow.

    Raises:
        FileNotFoundError: no such folder, or no picture in it that is a plane of one of the clips.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold the flow to import")
    stems = {clip.name.split("/")[-1].lower() for clip in clips}
    planes: dict[str, tuple[dict[int, Path], dict[int, Path]]] = defaultdict(lambda: ({}, {}))
    arrangements, formats = set(), set()
    pictures = 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES):
        pictures += 1
        place = _place(path.relative_to(folder), stems)
        if place is None:
            continue
        stem, axis, number, arrangement = place
        planes[stem][axis][number] = path
        arrangements.add(arrangement)
        formats.add(_SUFFIXES[path.suffix.lower()])
    if not planes:
        raise FileNotFoundError(
            f"{folder}: {pictures} pictures, none of them a plane of one of the dataset's {len(clips)} clips; u and v "
            "are looked for as u/ and v/ folders or flow_x_, flow_y_ (x_, y_, u_, v_) names, under the clips' names"
        )
    firsts = {min(numbers) for both in planes.values() for numbers in both if numbers}
    count = sum(len(u) for u, _ in planes.values())
    description = (
        f"{len(planes)} of {len(clips)} clips, {count} flow fields, {' and '.join(sorted(formats))}, "
        f"{' and '.join(sorted(arrangements))}, counted from {' and '.join(map(str, sorted(firsts)))}"
    )
    return FoundFlow(dict(planes), description)


def import_flow(dataset: VideoDataset, clips: list[Clip], found: FoundFlow, store: FlowStore) -> list[str]:
    """Store what was found, the values unchanged; a line for each clip that is incomplete or does not fit its video.

    JPEG planes are stored as what they decode to: their loss stays, none is added.
    """
    store.open_for_writing()
    faults = []
    for clip in tqdm(clips, desc="import", unit="clip", mininterval=1):
        if store.has(clip):
            continue
        planes = found.planes.get(clip.name.split("/")[-1].lower())
        if planes is None:
            faults.append(f"{clip.name}: no flow found")
            continue
        try:
            _import_clip(dataset, clip, planes, store)
        except (ValueError, OSError) as error:
            faults.append(f"{clip.name}: {error}")
    return faults


def _import_clip(
    dataset: VideoDataset, clip: Clip, planes: tuple[dict[int, Path], dict[int, Path]], store: FlowStore
) -> None:
    u, v = planes
    if u.keys() != v.keys():
        odd = sorted(u.keys() ^ v.keys())
        raise ValueError(f"{len(u)} planes of u and {len(v)} of v; number {odd[0]} lacks one of them")
    numbers = sorted(u)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] not in (0, 1):
        gap = next((a for a, b in pairwise(numbers) if b != a + 1), None)
        told = f"after {gap} one is missing" if gap is not None else f"they begin with {numbers[0]}"
        raise ValueError(f"its planes do not count on from 0 or 1: {told}")
    pairs = len(dataset.decode(clip)) - 1
    if len(numbers) != pairs:
        raise ValueError(
            f"{len(numbers)} flow fields, but {pairs} pairs of frames at the dataset's frame rate: was the flow "
            "computed at another rate, or its end dropped?"
        )
    pngs, sizes = [], set()
    for number in numbers:
        for path in (u[number], v[number]):
            plane, png = _plane(path)
            sizes.add(plane.shape)
            pngs.append(png)
    if len(sizes) > 1:
        raise ValueError(f"planes of different sizes: {sorted(sizes)}")
    store.write_planes(clip.name, pngs, sizes.pop(), clip.path)


def _plane(path: Path) -> tuple[np.ndarray, bytes]:
    """A gray plane and its PNG; a PNG of one 8-bit channel is taken as it is."""
    data = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None or image.dtype != np.uint8:
        raise ValueError(f"{path} is no 8-bit image that can be read")
    if image.ndim == 3:
        if (image[..., 1:3] != image[..., :1]).any():
            raise ValueError(f"{path} is a coloured image: u and v must be gray ones")
        image = np.ascontiguousarray(image[..., 0])
    elif path.suffix.lower() == ".png":
        return image, data
    return image, flow_codec.to_png(image)


def _place(path: Path, stems: set[str]) -> tuple[str, int, int, str] | None:
    """Clip, axis, number and arrangement of a picture, by its path."""
    stem = path.stem.lower()
    number = re.search(r"(\d+)$", stem)
    clip = next((part.lower() for part in reversed(path.parent.parts) if part.lower() in stems), None)
    if number is None or clip is None:
        return None
    begins = stem[: number.start()].rstrip("_-.")
    if begins in _AXES:
        return clip, _AXES[begins], int(number[1]), f"names {begins}_…"
    for part in _lower(path.parent.parts):
        if part in _AXES:
            return clip, _AXES[part], int(number[1]), f"folders {part}/"
    return None


def _lower(parts: tuple[str, ...]) -> Iterator[str]:
    return (part.lower() for part in reversed(parts))
