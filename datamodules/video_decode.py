"""Videos to frames with PyAV, subsampled by time stamps (section 4: "we also subsample the videos to 12 fps").

Only the frames asked for are kept, and those few whose place in time is not known yet.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from datamodules.video_integrity import Probe, errors_raised, opened, probe

_REORDERED = 8
"""Frames by which a B-frame's stamp may be off its place; the most that codecs of such files use."""

_SLACK = 5e-4
"""Seconds: a last frame at 0.9999 s stands for the instant 1 s."""

Frame = TypeVar("Frame")


def decode_video(
    path: Path,
    *,
    frame_rate: float | None = 12.0,
    frame_size: tuple[int, int] | None = None,
    max_frames: int | None = None,
    only: Sequence[int] | None = None,
) -> np.ndarray:
    """The frames nearest in time to 0, 1/rate, 2/rate, … seconds after the first, upright as a player shows them.

    Args:
        path: a video file that FFmpeg reads.
        frame_rate: frames per second of the result, at most the source's own rate; None takes every frame.
        frame_size: (H, W) to resize to (area interpolation); None keeps the source's size.
        max_frames: stop after this many frames.
        only: indices of the frames wanted, increasing; the others are decoded, but not converted to RGB. None: all.

    Returns:
        uint8 RGB (T, H, W, 3); T is the length of `only` where that is given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be decoded, is cut off or damaged inside, holds no frame, or has fewer frames, or
            frames per second, than asked for; names the file. Or an option is out of range.
    """
    refuse_impossible(frame_rate, frame_size, max_frames)
    known = probe(path)
    most = min(_most(known, frame_rate), max_frames or math.inf)
    kept = _Frames(int(most) if only is None else len(only))
    wanted = None if only is None else frozenset(only)
    waiting: deque[Any] = deque()
    last = (-1, 0.0)
    with errors_raised(path), opened(path) as (container, stream):

        def stamps() -> Iterator[float | None]:
            for index, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:  # where bits make no sense the decoder guesses, and says so of the frame
                    raise ValueError(f"{path}: damaged, frame {index + 1} cannot be decoded whole; download it again")
                waiting.append(frame)
                yield frame.time

        def timed() -> Iterator[tuple[float, Any]]:
            nonlocal last
            for index, seconds in enumerate(display_times(stamps(), known.rate)):
                last = index, seconds
                yield seconds, waiting.popleft()

        orientation: Orientation | None = None
        chosen = nearest_in_time(timed(), frame_rate) if frame_rate else (frame for _, frame in timed())
        for place, frame in enumerate(islice(chosen, max_frames)):
            if wanted is not None and place not in wanted:
                continue
            # Of the first frame alone: one whose side data were looked at lives until garbage is collected.
            orientation = orientation or Orientation.of(frame, path)
            image = resize_frame(orientation.upright(frame.to_ndarray(format="rgb24")), frame_size)
            if kept.count and image.shape != kept.frames.shape[1:]:
                raise ValueError(
                    f"{path}: its frames change from {_shown(kept.frames[0])} to {_shown(image)} pixels; set "
                    "`frame_size`, or re-encode it at one size"
                )
            kept.add(image)
    index, seconds = last
    if index < 0:
        raise ValueError(f"{path}: holds no video frame; is the download complete?")
    if frame_rate is not None and index and index / seconds < 0.99 * frame_rate:
        raise ValueError(
            f"{path}: has {index / seconds:.4g} frames per second, fewer than the {frame_rate:g} asked for; lower "
            f"`frame_rate`, or set it to null for each video's own"
        )
    if only is not None and kept.count < len(only):
        raise ValueError(f"{path}: frames {list(only)} are wanted, and it does not have them all")
    return kept.frames


def count_frames(path: Path, *, frame_rate: float | None, max_frames: int | None) -> tuple[int, tuple[int, int]]:
    """How many frames `decode_video` gives, and their size (H, W) before it is changed, from the packets and one frame.

    Raises:
        FileNotFoundError, ValueError: as `decode_video`, but for what only decoding shows.
    """
    known = probe(path)
    with opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError(f"{path}: holds no video frame; is the download complete?")
        size = (first.width, first.height) if Orientation.of(first, path).swapped else (first.height, first.width)
    seconds = list(display_times(sorted(known.stamps, key=lambda stamp: stamp or 0.0), known.rate))
    count = len(seconds)
    if frame_rate is not None:
        count = sum(1 for _ in nearest_in_time(((time, None) for time in seconds), frame_rate))
    return min(count, max_frames or count), size


def refuse_impossible(frame_rate: float | None, frame_size: tuple[int, int] | None, max_frames: int | None) -> None:
    """Raise where an option is out of range, so that no video is blamed for it.

    Raises:
        ValueError: names option and value.
    """
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate {frame_rate}: frames per second, above 0, or null for each video's own")
    if frame_size is not None and (len(frame_size) != 2 or min(frame_size) < 1):
        raise ValueError(f"frame_size {tuple(frame_size)}: height and width, at least 1 each, or null for the source's")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames {max_frames}: at least 1, or null for all")


def display_times(stamps: Iterable[float | None], rate: float) -> Iterator[float]:
    """Seconds after the first frame, for frames in display order; reads eight stamps ahead.

    XviD in AVI gives B-frames the stamps of the order in which they are stored, so neighbours may be swapped. The
    decoder's order is right: the stamps are dealt out in increasing order. A frame without a stamp comes one period of
    `rate` after the frame before it. Equal stamps are spread towards the next one, by one period at most.
    """
    first = None
    for seconds in _spread(_ascending(_filled(stamps, 1 / rate)), 1 / rate):
        first = seconds if first is None else first
        yield seconds - first


def _filled(stamps: Iterable[float | None], period: float) -> Iterator[float]:
    last, missing = None, 0
    for stamp in stamps:
        if stamp is None and last is None and missing < _REORDERED:
            missing += 1
            continue
        if last is None:
            start = missing * period if stamp is None else stamp
            yield from (start - k * period for k in range(missing, 0, -1))
            last = start if stamp is None else stamp
        else:
            last = last + period if stamp is None else stamp
        yield last
    if last is None:
        yield from (k * period for k in range(missing))


def _ascending(stamps: Iterable[float]) -> Iterator[float]:
    ahead: list[float] = []
    for stamp in stamps:
        heapq.heappush(ahead, stamp)
        if len(ahead) > _REORDERED:
            yield heapq.heappop(ahead)
    yield from sorted(ahead)


def _spread(ascending: Iterable[float], period: float) -> Iterator[float]:
    value, equal = 0.0, 0
    for stamp in ascending:
        if equal and stamp <= value:
            equal += 1
            continue
        step = min(period, (stamp - value) / max(equal, 1))
        yield from (value + k * step for k in range(equal))
        value, equal = stamp, 1
    yield from (value + k * period for k in range(equal))


def nearest_in_time(timed: Iterable[tuple[float, Frame]], frame_rate: float) -> Iterator[Frame]:
    """The frames nearest to 0, 1/rate, 2/rate, … seconds (the earlier of two equally near), as long as the video lasts;
    a frame that is nearest to several is given several times.

    Args:
        timed: seconds, increasing from 0, each with its frame.
    """
    instants = 0
    before: tuple[float, Frame] | None = None
    for after in timed:
        while (instant := instants / frame_rate) <= after[0]:
            nearer = before is not None and instant - before[0] <= after[0] - instant + 1e-9
            yield before[1] if nearer and before is not None else after[1]
            instants += 1
        before = after
    while before is not None and instants / frame_rate <= before[0] + _SLACK:
        yield before[1]
        instants += 1


class Orientation(NamedTuple):
    """How stored pictures are turned and mirrored to be shown."""

    swapped: bool
    """rows become columns first"""
    across: int
    """-1 mirrors left to right"""
    down: int
    """-1 mirrors upside down"""

    @classmethod
    def of(cls, frame: Any, path: Path) -> "Orientation":
        """What the display matrix that comes with a decoded frame says.

        Raises:
            ValueError: something else than quarter turns and mirrors; names the file.
        """
        found = (np.frombuffer(bytes(d), np.int32) for d in frame.side_data if d.type.name == "DISPLAYMATRIX")
        matrix = next(found, None)
        if matrix is None:
            return cls(False, 1, 1)
        (a, b), (c, d) = np.sign(matrix[0:2]).tolist(), np.sign(matrix[3:5]).tolist()  # x' = a·x + c·y, y' = b·x + d·y
        if a and d and not (b or c):
            return cls(False, a, d)
        if b and c and not (a or d):
            return cls(True, c, b)
        raise ValueError(
            f"{path}: is to be shown turned by {frame.rotation}°, and only quarter turns are read; re-encode it upright"
        )

    def upright(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) as it is shown."""
        shown = image.swapaxes(0, 1) if self.swapped else image
        return np.ascontiguousarray(shown[:: self.down, :: self.across])


def resize_frame(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A frame (H, W, 3) at `size`, (height, width), by area interpolation; None keeps its own."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)


class _Frames:
    """One array that the frames are written into as they come: a list of them, and then an array, would be twice as
    large. Memory that is never written costs nothing."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self._all = np.empty((0, 0, 0, 3), np.uint8)

    def add(self, image: np.ndarray) -> None:
        if self.count == 0:
            self._all = np.empty((self.most, *image.shape), np.uint8)
        elif self.count == len(self._all):
            self._all = np.concatenate([self._all, np.empty_like(self._all)])
        self._all[self.count] = image
        self.count += 1

    @property
    def frames(self) -> np.ndarray:
        return self._all[: self.count]


def _shown(image: np.ndarray) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


def _most(known: Probe, frame_rate: float | None) -> int:
    """More frames than the video will give."""
    stamps = [stamp for stamp in known.stamps if stamp is not None]
    span = max(max(stamps) - min(stamps) if stamps else 0.0, len(known.stamps) / known.rate)
    return len(known.stamps) + 1 if frame_rate is None else int((span + 1) * frame_rate) + 2
