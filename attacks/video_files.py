"""Stacks of frames as video files: FFV1 in Matroska keeps every byte, H.264 at a quality does not. By PyAV."""

from pathlib import Path
from typing import Any

import numpy as np

FRAME_RATE = 12
"""Frames per second of the stacks (section 4)."""


def write_lossless(path: Path, frames: np.ndarray, *, frame_rate: int = FRAME_RATE) -> None:
    """Write frames (T, H, W, 3) uint8 RGB as FFV1; `read_video` gives the same bytes back.

    The pixel format is bgr0: RGB in another order, without the conversion to luma and chroma that would round it.
    """
    _write(path, frames, "ffv1", "bgr0", {}, frame_rate)


def write_h264(path: Path, frames: np.ndarray, *, crf: int, frame_rate: int = FRAME_RATE) -> None:
    """Write frames (T, H, W, 3) uint8 RGB as H.264 by libx264, colour subsampled (yuv420p), as video is shared.

    Args:
        path: .mp4 or .mkv.
        frames: an odd side grows by a copy of its last row or column, because subsampled colour needs even ones.
        crf: constant rate factor, 0 (no loss but that of colour) to 51; x264's own default is 23.
        frame_rate: frames per second.
    """
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # x264's assembly looks ahead into memory that nobody wrote: with it, equal frames now and then make unequal files.
    _write(path, even, "libx264", "yuv420p", {"crf": str(crf), "x264-params": "asm=0"}, frame_rate)


def read_video(path: Path) -> np.ndarray:
    """All frames (T, H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be decoded; names the file.
    """
    import av

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error
    if not frames:
        raise ValueError(f"{path}: holds no video frame")
    return np.stack(frames)


def _write(
    path: Path, frames: np.ndarray, codec: str, pixel_format: str, options: dict[str, str], frame_rate: int
) -> None:
    """Equal frames make equal files; a half-written one never bears the name."""
    import av
    from av.codec.context import Flags

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"{path}: frames are {frames.dtype} {frames.shape}: uint8 (T, H, W, 3) with T > 0 is needed")
    if codec not in av.codecs_available:
        raise ValueError(
            f"{path}: the FFmpeg of this PyAV ({av.__version__}) has no {codec}; PyAV's own wheels have it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with av.open(str(part), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=frame_rate, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    part.replace(path)
