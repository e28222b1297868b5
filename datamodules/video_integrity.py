"""Whether a video file is whole, judged by its packets: FFmpeg plays what is left of a damaged file, and says so only
in its log.

Found: a file that ends before its declared length, packets that are cut, blocks of zeros, a container whose first block
is lost, pauses in MPEG-2, and each error that FFmpeg logs. Not found: a file that declares no length (.ts, .mpg, a live
recording) and is cut between two packets; noise in a VP8 picture, which its decoder takes for picture.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.avi_chunks import refuse_damaged_avi

_DECLARES_ITS_LENGTH = ("matroska", "flv", "asf", "ogg")
"""Demuxers whose duration stands in the file; FFmpeg estimates the others' from what is left of it."""

_RAW = ("m4v", "mjpeg", "h264", "hevc", "h263", "mpegvideo", "obu", "vc1", "vvc")
"""Demuxers of bare packets without a container, which FFmpeg tries when a container's first block is lost."""

_WITHOUT_CHECKS = ("vp8", "vp9")
_ZEROS = bytes(64)
"""Decoders that take zeros for picture; an arithmetic coder does not write so many."""


_TRANSPORT_PACKETS = (188, 192, 204)
"""Bytes, with a Blu-ray's time codes or with parity."""


_CONSTANT_RATE = ("mpeg1video", "mpeg2video")
"""Decoders of videos that cannot pause; telecine shows a frame for half a period longer."""


class Probe(NamedTuple):
    """What the packets of a video tell."""

    stamps: list[float | None]
    """seconds of each video packet, in stored order"""
    rate: float
    """frames per second, as the file says"""


def probe(path: Path) -> Probe:
    """Read every packet of a video file; decode none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no video, or damaged; names the file, what was expected and what was read.
    """
    import av

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    refuse_damaged_avi(path)
    with errors_raised(path), opened(path) as (container, stream):
        kind = container.format.name.split(",")[0]
        if kind in _RAW:
            raise ValueError(
                f"{path}: damaged, its container's header is missing (only bare {kind} packets are left); download it "
                "again"
            )
        size = path.stat().st_size
        if kind == "mpegts" and all(size % length for length in _TRANSPORT_PACKETS):
            raise ValueError(f"{path}: cut off, {size} bytes are no whole number of MPEG-TS packets; download it again")
        stamps: list[float | None] = []
        ends: dict[int, float] = defaultdict(float)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for packet in container.demux():
            if not packet.size:
                continue  # the end of a stream
            ticks = packet.pts if packet.pts is not None else packet.dts
            # A quotient of integers is rounded as a Fraction's is, in a tenth of the time.
            up, down = packet.time_base.numerator, packet.time_base.denominator
            seconds = None if ticks is None else ticks * up / down
            if seconds is not None:
                length = (packet.duration or 0) * up / down
                ends[packet.stream_index] = max(ends[packet.stream_index], seconds + length)
            if packet.stream_index != stream.index:
                continue
            stamps.append(seconds)
            zeros = stream.codec_context.name in _WITHOUT_CHECKS and _ZEROS in bytes(packet)
            if packet.is_corrupt or zeros:
                what = "holds a block of zeros" if zeros else "is cut off"
                raise ValueError(f"{path}: damaged, packet {len(stamps)} {what}; download it again")
        if not stamps:
            raise ValueError(f"{path}: holds no video frame; is the download complete?")
        known = sorted(stamp for stamp in stamps if stamp is not None)
        gap = max((after - before for before, after in pairwise(known)), default=0.0)
        if stream.codec_context.name in _CONSTANT_RATE and gap > 1.75 / rate:
            raise ValueError(f"{path}: damaged, nothing can be read of {gap:.2f} seconds of it; download it again")
        fragmented = kind == "mov" and not stream.frames
        if container.duration and (kind in _DECLARES_ITS_LENGTH or fragmented):
            declared = container.duration / av.time_base
            read = max(ends.values(), default=0.0) - min(0.0, (container.start_time or 0) / av.time_base)
            if declared - read > 1.5 / rate + (0.1 if len(container.streams) > 1 else 0):
                raise ValueError(
                    f"{path}: cut off or damaged, {read:.2f} of {declared:.2f} seconds can be read; download it again"
                )
    return Probe(stamps, rate)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video file's container and its first video stream, decoded in this thread.

    Raises:
        ValueError: FFmpeg cannot read it; names the file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: cannot be decoded ({error}); is the download complete?") from error


@contextmanager
def errors_raised(path: Path) -> Iterator[None]:
    """Raise for what FFmpeg logs as an error meanwhile, in this thread.

    Raises:
        ValueError: names the file and FFmpeg's words.
    """
    import av.logging

    if av.logging.get_level() is None:
        av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # the last file's message may be this one's, too
    with av.logging.Capture(local=True) as messages:
        yield
    errors = [f"{source}: {text.strip()}" for level, source, text in messages if level <= av.logging.ERROR]
    if errors:
        raise ValueError(f"{path}: damaged, FFmpeg says “{errors[0]}”; download it again")
