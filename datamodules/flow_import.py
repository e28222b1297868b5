"""Flow that people already have, into a store."""

import json
import math
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datamodules import flow_codec, half_written
from datamodules.flow_finding import FoundFlow
from datamodules.flow_store import FlowStore
from datamodules.video_dataset import Clip, VideoDataset
from datamodules.video_decode import count_frames


def conversion(bound: float) -> str:
    """What becomes of planes in which 0 and 255 stand for -bound and bound pixels, in words.

    Raises:
        ValueError: the bound is not above 0.
    """
    _refuse_impossible(bound)
    ours, level = flow_codec.FLOW_BOUND, 1 / flow_codec.LEVELS_PER_PIXEL
    if bound == ours:
        return f"0 to 255 are taken for ±{bound:g} pixels, as in the store: the values are unchanged"
    clipped = f", and flow beyond ±{ours:g} clipped" if bound > ours else ""
    return (
        f"0 to 255 are taken for ±{bound:g} pixels, the store's stand for ±{ours:g}: the values are rounded to its "
        f"levels, {level:.3f} pixels apart, by {level / 2:.3f} at most{clipped}"
    )


def import_flow(
    dataset: VideoDataset,
    clips: list[Clip],
    found: FoundFlow,
    store: FlowStore,
    *,
    bound: float = flow_codec.FLOW_BOUND,
) -> list[str]:
    """Store what was found; a line for each clip that is incomplete or does not fit its video.

    JPEG planes are stored as what they decode to: their loss stays, none is added.

    Args:
        bound: 0 and 255 stand for -bound and bound pixels. With the codec's own, 20, the values are kept; others are
            decoded and coded anew, see `conversion`. `import.json` in the store keeps it.

    Raises:
        ValueError: the bound is not above 0, or another than that of what is in the store already.
    """
    _refuse_impossible(bound)
    store.open_for_writing()
    _keep_bound(store, clips, bound)
    levels = None if bound == flow_codec.FLOW_BOUND else _levels(bound)
    faults = []
    for clip in tqdm(clips, desc="import", unit="clip", mininterval=1):
        if store.has(clip):
            continue
        planes = found.planes.get(clip.name.lower())
        if planes is None:
            faults.append(f"{clip.name}: no flow found")
            continue
        try:
            _import_clip(dataset, clip, planes, store, levels)
        except (ValueError, OSError) as error:
            faults.append(f"{clip.name}: {error}")
    return faults


def _refuse_impossible(bound: float) -> None:
    if not 0 < bound < math.inf:
        raise ValueError(f"bound {bound}: the pixels that 255 stands for, above 0")


def _levels(bound: float) -> np.ndarray:
    """(256,) the codec's level for each level of flow within ±`bound`."""
    return flow_codec.encode(np.arange(256) * (2 * bound / 255) - bound)


def _keep_bound(store: FlowStore, clips: list[Clip], bound: float) -> None:
    path = store.folder / "import.json"
    if any(store.has(clip) for clip in clips):
        # Without the file it was imported before there was a choice.
        kept = json.loads(path.read_text())["bound"] if path.is_file() else flow_codec.FLOW_BOUND
        if kept != bound:
            raise ValueError(
                f"{store.folder}: holds flow that was imported with bound {kept:g}, {bound:g} is asked for; ask for "
                "the same, name another store (make … RUNS=DIR), or delete the folder"
            )
    with half_written.appearing(path) as part:
        part.write_text(json.dumps({"bound": bound}) + "\n")


def _import_clip(
    dataset: VideoDataset,
    clip: Clip,
    planes: tuple[dict[int, Path], dict[int, Path]],
    store: FlowStore,
    levels: np.ndarray | None,
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
    frames = dataset.decode(clip)
    pairs, size = len(frames) - 1, frames.shape[1:3]
    if len(numbers) != pairs:
        own = count_frames(clip.path, frame_rate=None, max_frames=None)[0] - 1
        raise ValueError(
            f"{len(numbers)} flow fields, but {pairs} pairs of frames at the dataset's frame rate"
            + (
                ", and as many as at the video's own: give a dataset with `frame_rate: null`, such as make … "
                "DATASET=configs/data/ucf101_native.yaml"
                if len(numbers) == own
                else f" and {own} at the video's own: was the flow computed at another rate, or its end dropped?"
            )
        )
    pngs = []
    for number in numbers:
        for path in (u[number], v[number]):
            plane, png = _plane(path)
            if plane.shape != size:
                raise ValueError(
                    f"{path} is {plane.shape[1]}×{plane.shape[0]} pixels, the dataset's frames {size[1]}×{size[0]}: "
                    f"set the dataset's `frame_size` to {list(plane.shape)}, height and width, or import flow of the "
                    "frames' size"
                )
            pngs.append(png if levels is None else flow_codec.to_png(levels[plane]))
    store.write_planes(clip.name, pngs, size, clip.path)


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
