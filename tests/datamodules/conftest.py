"""Small real videos, and a tree of them in UCF-101's layout."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from torch import nn


def write_video(path: Path, frames: np.ndarray, *, rate: Fraction | int = 25, codec: str = "ffv1") -> None:
    """Frames uint8 (T, H, W, 3) as a video, by default a lossless one: what is decoded is what was written."""
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())


def moving_texture(seed: int, *, count: int = 26, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A random texture moving one pixel a frame, uint8 (count, H, W, 3)."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 255, (size[0] + count, size[1] + count, 3)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([texture[: size[0], k : k + size[1]] for k in range(count)])


CLASSES = ["Archery", "HandstandPushups", "Rowing"]


@pytest.fixture
def video_writer() -> Callable[..., None]:
    return write_video


@pytest.fixture
def texture() -> Callable[..., np.ndarray]:
    return moving_texture


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Three classes with two train and one test clip each; lists with CR LF and other capitals than the files."""
    root = tmp_path / "videos"
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    names = {name: [f"v_{name}_g{g:02d}_c01.avi" for g in (1, 2, 3)] for name in CLASSES}
    for seed, (name, files) in enumerate(names.items()):
        for k, file in enumerate(files):
            write_video(root / "UCF-101" / name / file, moving_texture(10 * seed + k))
    other = {name: [file.replace("Handstand", "HandStand") for file in files] for name, files in names.items()}
    (lists / "classInd.txt").write_bytes(b"".join(f"{i} {name}\r\n".encode() for i, name in enumerate(CLASSES, 1)))
    train = [f"{name}/{file} {i}\r\n" for i, name in enumerate(CLASSES, 1) for file in other[name][1:]]
    test = [f"{name}/{other[name][0]}\r\n" for name in CLASSES]
    for split in (1, 2, 3):
        (lists / f"trainlist{split:02d}.txt").write_bytes("".join(train).encode())
        (lists / f"testlist{split:02d}.txt").write_bytes("".join(test).encode())
    return root


class Difference(nn.Module):
    """A stand-in for a flow algorithm: the difference of two frames' colours, times a factor. Picklable, quick."""

    differentiable = False

    def __init__(self, factor: float = 8.0) -> None:
        super().__init__()
        self.factor = factor
        self.versions: dict[str, str] = {}

    @property
    def settings(self) -> dict:
        return {"algorithm": "difference", "factor": self.factor, **self.versions}

    def forward(self, frames):
        return (frames[:, 1:, :2] - frames[:, :-1, :2]) * self.factor


@pytest.fixture
def difference() -> type[nn.Module]:
    return Difference
