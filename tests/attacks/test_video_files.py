"""Video files read back: FFV1 byte for byte; H.264 not, and the less so the lower its quality."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from attacks.video_files import read_video, write_h264, write_lossless


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(20, 24), (45, 63), (240, 320)])
def test_ffv1_keeps_every_byte(tmp_path: Path, size: tuple[int, int]) -> None:
    """White noise in each colour: whatever is subsampled, filtered or converted would change it."""
    frames = noise(11, *size, 3)
    write_lossless(tmp_path / "a.mkv", frames)
    assert np.array_equal(read_video(tmp_path / "a.mkv"), frames)


def test_every_colour_survives_ffv1(tmp_path: Path) -> None:
    """All 2^24 of them: a conversion to luma and chroma and back merges three quarters."""
    red, green, blue = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij")
    frames = np.stack([red, green, blue], -1).reshape(16, 1024, 1024, 3)
    write_lossless(tmp_path / "colours.mkv", frames)
    assert np.array_equal(read_video(tmp_path / "colours.mkv"), frames)


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    digests = set()
    for name in "abcdefghij":
        scratch = noise(int(np.random.default_rng().integers(1, 40)), 64, 64, 3)  # leaves other bytes in freed memory
        del scratch
        write_lossless(tmp_path / f"{name}.mkv", noise(5, 20, 20, 3))
        write_h264(tmp_path / f"{name}.mp4", noise(5, 20, 20, 3), crf=18)
        digests |= {hashlib.sha256((tmp_path / f"{name}.{kind}").read_bytes()).hexdigest() for kind in ("mkv", "mp4")}
    assert len(digests) == 2
    assert {path.name[1:] for path in tmp_path.iterdir()} == {".mkv", ".mp4"}


def test_h264_loses_more_at_each_quality_and_keeps_grey_at_the_best(tmp_path: Path) -> None:
    smooth = 128 + 90 * np.sin(np.linspace(0, 9, 48))[None, :, None] * np.cos(np.linspace(0, 7, 64) + 0.3)[None, None]
    grey = smooth + 8 * np.random.default_rng(0).standard_normal((6, 48, 64))
    frames = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 3)
    errors = []
    for crf in (0, 10, 18, 23, 28, 40):
        write_h264(tmp_path / "a.mp4", frames, crf=crf)
        errors.append(np.abs(read_video(tmp_path / "a.mp4").astype(int) - frames).mean())
    assert errors == sorted(errors) and len(set(errors)) == 6
    assert errors[0] <= 1  # luma of 16 … 235 has fewer levels than grey has; nothing else is lost at crf 0
    assert errors[-1] > 4


def test_odd_sides_grow_by_one_in_h264(tmp_path: Path) -> None:
    write_h264(tmp_path / "a.mp4", noise(3, 21, 33, 3), crf=10)
    assert read_video(tmp_path / "a.mp4").shape == (3, 22, 34, 3)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mkv: no such video"):
        read_video(tmp_path / "none.mkv")
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mkv: cannot be decoded"):
        read_video(tmp_path / "text.mkv")
    with pytest.raises(ValueError, match=r"a\.mkv: frames are float64 \(3, 4, 4, 3\)"):
        write_lossless(tmp_path / "a.mkv", np.zeros((3, 4, 4, 3)))
