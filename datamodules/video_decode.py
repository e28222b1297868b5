"""Videos to frames with PyAV, subsampled by time stamps (section 4: "we also subsample the videos to 12 fps")."""

import math
from bisect import bisect_left
from pathlib import Path

import cv2
import numpy as np

from datamodules.avi_chunks import refuse_damaged_avi

_REORDERED = 8
"""Frames by which a B-frame's stamp may be off its place; the most that codecs of such files use."""


def decode_video(
    path: Path,
    *,
    frame_rate: float = 12.0,
    frame_size: tuple[int, int] | None = None,
    max_frames: int | None = None,
) -> np.ndarray:
    """The frames nearest in time to 0, 1/rate, 2/rate, … seconds after the first.

    Args:
        path: a video file that FFmpeg reads.
        frame_rate: frames per second of the result; at most the source's own rate.
        frame_size: (H, W) to resize to (area interpolation); None keeps the source's size.
        max_frames: stop after this many frames.

    Returns:
        uint8 RGB (T, H, W, 3).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be decoded, is cut off or damaged inside, holds no frame, or has fewer frames per
            second than asked for; names the file. Or an option is out of range.
    """
    import av

    refuse_impossible(frame_rate, frame_size, max_frames)

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    refuse_damaged_avi(path)
    stamps: list[float | None] = []
    frames: list[av.VideoFrame] = []
    # B-frames may lag a few places behind their time stamp: look that much further before stopping early.
    last_instant = math.inf if max_frames is None else (max_frames - 1) / frame_rate
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            for frame in container.decode(stream):
                stamps.append(frame.time)
                frames.append(frame)
                if (len(frames) - _REORDERED) / rate > last_instant + 1 / rate and _enough(stamps, last_instant):
                    break
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); is the download complete?") from error
    if not frames:
        raise ValueError(f"{path}: holds no video frame; is the download complete?")
    # Where bits make no sense the decoder guesses, and says so of the frame.
    corrupt = [index for index, frame in enumerate(frames) if frame.is_corrupt]
    if corrupt:
        raise ValueError(
            f"{path}: damaged, {len(corrupt)} of its first {len(frames)} frames cannot be decoded whole, the first is "
            f"number {corrupt[0] + 1}; download it again"
        )

    seconds = display_times(stamps, rate)
    source_rate = (len(seconds) - 1) / seconds[-1] if len(seconds) > 1 else frame_rate
    if source_rate < 0.99 * frame_rate:
        raise ValueError(
            f"{path}: has {source_rate:.4g} frames per second, fewer than the {frame_rate:g} asked for; lower "
            f"`frame_rate`"
        )
    chosen = nearest_in_time(seconds, frame_rate)[:max_frames]
    return np.stack([resize_frame(frames[i].to_ndarray(format="rgb24"), frame_size) for i in chosen])


def refuse_impossible(frame_rate: float, frame_size: tuple[int, int] | None, max_frames: int | None) -> None:
    """Raise where an option is out of range, so that no video is blamed for it.

    Raises:
        ValueError: names option and value.
    """
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate {frame_rate}: frames per second, above 0")
    if frame_size is not None and (len(frame_size) != 2 or min(frame_size) < 1):
        raise ValueError(f"frame_size {tuple(frame_size)}: height and width, at least 1 each, or null for the source's")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames {max_frames}: at least 1, or null for all")


def display_times(stamps: list[float | None], rate: float) -> list[float]:
    """Seconds after the first frame, for frames in display order.

    XviD in AVI marks B-frames with the stamps of the order in which they are stored, so neighbours may be swapped: the
    decoder's order is right, and the stamps are dealt out in increasing order. Where stamps are absent or repeat, the
    rate counts.
    """
    if None in stamps or len(set(stamps)) < len(stamps):
        return [index / rate for index in range(len(stamps))]
    ordered = sorted(stamp for stamp in stamps if stamp is not None)
    return [stamp - ordered[0] for stamp in ordered]


def _enough(stamps: list[float | None], last_instant: float) -> bool:
    known = [stamp for stamp in stamps if stamp is not None]
    return len(known) < len(stamps) or known[-_REORDERED] - min(known) > last_instant


def nearest_in_time(seconds: list[float], frame_rate: float) -> list[int]:
    """Indices of the frames nearest to 0, 1/rate, 2/rate, … (the earlier of two equally near), as long as the video
    lasts.

    Args:
        seconds: increasing time stamps, the first 0.
    """
    # Half a millisecond of slack: a last frame at 0.9999 s stands for the instant 1 s.
    count = int((seconds[-1] + 5e-4) * frame_rate) + 1
    chosen = []
    for k in range(count):
        instant = k / frame_rate
        after = min(bisect_left(seconds, instant), len(seconds) - 1)
        before = max(after - 1, 0)
        chosen.append(before if instant - seconds[before] <= seconds[after] - instant + 1e-9 else after)
    return chosen


def resize_frame(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A frame (H, W, 3) at `size`, (height, width), by area interpolation; None keeps its own."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
