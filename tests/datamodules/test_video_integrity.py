"""Whole videos of every kind are read; damaged ones are refused, whatever their container."""

import io
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from datamodules.video_decode import decode_video
from datamodules.video_integrity import probe

COUNT = 40


def write(path, codec, texture, *, pixels="yuv420p", size=(48, 64), rate=30, options=None, mux=None, sound=False):
    """A video of COUNT frames; `path` may be a file object with its format."""
    target, kind = path if isinstance(path, tuple) else (str(path), None)
    with av.open(target, "w", format=kind, options=mux or {}) as container:
        voice = container.add_stream("aac", rate=48000) if sound else None
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if voice is not None:  # the sound first, and longer than the picture
            for index in range(70):
                samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
                samples.sample_rate, samples.pts = 48000, 1024 * index
                container.mux(voice.encode(samples))
        for frame in texture(3, count=COUNT, size=size):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if voice is not None:
            container.mux(voice.encode(None))


WHOLE = {
    "h264.mp4": {"codec": "libx264"},
    "faststart.mp4": {"codec": "libx264", "mux": {"movflags": "faststart"}},
    "fragments.mp4": {"codec": "libx264", "options": {"g": "8"}, "mux": {"movflags": "frag_keyframe+empty_moov"}},
    "ten-bit.mp4": {"codec": "libx264", "pixels": "yuv420p10le"},
    "full-colour.mp4": {"codec": "libx264", "pixels": "yuv444p"},
    "full-range.mov": {"codec": "libx264", "pixels": "yuvj420p"},
    "60-fps.mp4": {"codec": "libx264", "rate": 60},
    "sound-first.mp4": {"codec": "libx264", "sound": True},
    "sound.mkv": {"codec": "libx264", "sound": True},
    "portrait.mkv": {"codec": "libx264", "size": (64, 48), "options": {"bf": "3"}},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
    "odd.mkv": {"codec": "ffv1", "pixels": "bgr0", "size": (49, 65)},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"b": "8000000", "qmax": "2"}},
    "h264.ts": {"codec": "libx264"},
    "flash.flv": {"codec": "flv1"},
    "windows.wmv": {"codec": "wmv2"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_videos_of_every_kind_are_read(tmp_path, texture, name):
    options = WHOLE[name]
    write(tmp_path / name, texture=texture, **options)
    frames = decode_video(tmp_path / name, frame_rate=None)
    assert frames.shape == (COUNT, *options.get("size", (48, 64)), 3)
    grey = options.get("pixels") == "gray"
    expected = texture(3, count=COUNT, size=options.get("size", (48, 64))).astype(float)
    expected = np.repeat(expected.mean(-1, keepdims=True), 3, -1) if grey else expected
    assert np.abs(frames - expected).mean() < 25


def test_a_video_that_opencv_wrote_is_read(tmp_path, texture):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for frame in texture(4, count=20):
        writer.write(frame)
    writer.release()
    assert len(decode_video(tmp_path / "a.avi", frame_rate=None)) == 20


class Pipe:
    """Cannot seek: lengths stay unknown."""

    def __init__(self):
        self.written = io.BytesIO()

    def write(self, data):
        return self.written.write(data)


def piped(kind, codec, texture, mux=None):
    pipe = Pipe()
    write((pipe, kind), codec, texture, mux=mux)
    return pipe.written.getvalue()


def damaged(how: str, data: bytes) -> bytes:
    middle, quarter = len(data) // 2, len(data) // 4
    return {
        "cut in the middle": data[:middle],
        "cut near its end": data[: int(0.93 * len(data))],
        "a hole of zeros": data[:middle] + bytes(quarter) + data[middle + quarter :],
        "a piece lost": data[:middle] + data[middle + quarter // 2 :],
        "its first block lost": data[512:],
    }[how]


DAMAGES = ["cut in the middle", "cut near its end", "a hole of zeros", "a piece lost", "its first block lost"]
# A file without a declared length may end anywhere, and an MPEG program stream may begin anywhere.
TELLS = [
    (name, how) for name in WHOLE for how in DAMAGES
    if name not in ("mpeg2.mpg", "windows.wmv") or how in ("a hole of zeros", "a piece lost")
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, request):
    made = {}

    def video(name, texture):
        if name not in made:
            path = tmp_path_factory.mktemp("whole") / name
            write(path, texture=texture, **WHOLE[name])
            made[name] = path.read_bytes()
        return made[name]

    return video


@pytest.mark.parametrize(("name", "how"), TELLS)
def test_damaged_videos_are_refused_by_name(tmp_path, texture, whole, name, how):
    path = tmp_path / name
    path.write_bytes(damaged(how, whole(name, texture)))
    with pytest.raises(ValueError, match=rf"{name}: .*download"):
        decode_video(path, frame_rate=None)


@pytest.mark.parametrize("how", ["cut in the middle", "cut near its end", "a hole of zeros", "a piece lost"])
@pytest.mark.parametrize(("kind", "codec", "mux"), [("avi", "mpeg4", {}), ("matroska", "libx264", {"live": "1"})])
def test_videos_without_lengths_are_read_whole_and_refused_damaged(tmp_path, texture, kind, codec, mux, how):
    data = piped(kind, codec, texture, mux)
    path = tmp_path / "piped.avi"
    path.write_bytes(data)
    assert len(decode_video(path, frame_rate=None)) == COUNT
    path.write_bytes(damaged(how, data))
    with pytest.raises(ValueError, match=r"piped\.avi: .*download"):
        decode_video(path, frame_rate=None)


def test_the_same_fault_is_found_in_every_file_that_has_it(tmp_path, texture):
    """FFmpeg's log leaves out a message that repeats the last one."""
    data = piped("matroska", "libx264", texture, {"live": "1"})
    for name in "abc":
        path = tmp_path / f"{name}.mkv"
        path.write_bytes(data[: int(0.9 * len(data))])
        with pytest.raises(ValueError, match=rf"{name}\.mkv: damaged, FFmpeg says “matroska,webm: File ended"):
            decode_video(path, frame_rate=None)


def test_what_is_expected_and_what_was_read_is_said(tmp_path, texture, whole):
    path = tmp_path / "half.webm"
    path.write_bytes(damaged("cut in the middle", whole("vp8.webm", texture)))
    with pytest.raises(ValueError, match=r"half\.webm: cut off or damaged, 0\.\d\d of 1\.33 seconds can be read"):
        probe(path)


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_frames_are_turned_as_a_player_shows_them(tmp_path, texture, angle):
    """Beside OpenCV, which turns them by the same metadata."""
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(angle)
        for frame in texture(5, count=10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    shown = decode_video(path, frame_rate=None)
    capture = cv2.VideoCapture(str(path))
    reference = np.stack([capture.read()[1] for _ in range(10)])[..., ::-1]
    assert shown.shape == reference.shape == (10, *((64, 48) if angle % 180 else (48, 64)), 3)
    assert np.abs(shown.astype(int) - reference).max() <= 3
    assert np.array_equal(decode_video(path, frame_rate=None, frame_size=(24, 20)).shape, (10, 24, 20, 3))


MEASURE = """
import sys, threading, time
import numpy
from pathlib import Path
from datamodules.video_decode import decode_video

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

decode_video(Path(sys.argv[1]), frame_rate=None, max_frames=1)
before = most = resident()
done = False
def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
frames = decode_video(Path(sys.argv[1]))
done = True
thread.join()
print((most - before - frames.nbytes) / 2**20, frames.nbytes / 2**20)
"""


@pytest.mark.slow
def test_only_the_frames_asked_for_are_kept_in_memory(tmp_path):
    """Of five seconds of 1080p60 every fifth frame: the peak is 64 MB above them at most."""
    path = tmp_path / "large.mp4"
    colours = np.random.default_rng(0).integers(0, 255, (34, 60, 3)).astype(np.uint8)
    picture = cv2.resize(colours, (2240, 1080), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=60, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        for index in range(300):
            frame = np.ascontiguousarray(picture[:, index : index + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode())
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path)], cwd=root, capture_output=True, text=True)
    beside, kept = map(float, run.stdout.split())
    assert kept > 350
    assert beside < 64


def test_the_odd_videos_that_once_passed(odd_cases):
    for name in ("cut_half.mkv", "cut_half_webm.avi"):
        with pytest.raises(ValueError, match=rf"{name}: (cut off|damaged)"):
            decode_video(odd_cases / "videos" / name)
    for name in ("vfr.mkv", "vfr_one_double_stamp.mkv"):
        assert len(decode_video(odd_cases / "videos" / name)) == 49
    capture = cv2.VideoCapture(str(odd_cases / "videos" / "rotated90.mp4"))
    first = capture.read()[1][..., ::-1]
    assert np.abs(decode_video(odd_cases / "videos" / "rotated90.mp4")[0].astype(int) - first).max() <= 3
