"""The embedded dataset: clips rendered as compressed video in UCF-101's layout; the classes differ by motion alone."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from tqdm import tqdm

from datamodules import half_written
from datamodules.appearances import draw_appearance
from datamodules.rendering import MOTIONS, draw_clip, draw_scene
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip, Subset

FRAME_RATE = 25
"""Frames per second of the files, as of most of UCF-101's."""

_DRAWING = 1  # raise it when a seed comes to be drawn otherwise, so that no folder mixes the two
_QUANTISER = 3  # of 1 to 31, in MPEG-4
_GOLDEN = 0.618034  # steps on the hue circle by which any number of groups keep their colours apart


class _Name(NamedTuple):
    motion: str
    group: int
    clip: int

    def __str__(self) -> str:
        return f"{self.motion}/v_{self.motion}_g{self.group:02d}_c{self.clip:02d}.avi"


class EmbeddedDataset(UCF101):
    """Rendered clips in UCF-101's layout: a shape whose textured surface moves, before a textured background.

    The eight classes are motions (`datamodules.rendering.MOTIONS`). A group's texture, colours and shape are the same
    in all of them, and a single frame does not tell the class. Split 1 tests on the first `test_groups` groups, splits
    2 and 3 on the next, as UCF-101's do.

    Args:
        root: where the clips are, or will be rendered.
        seed: draws everything; the same seed renders the same files.
        groups: groups per class.
        clips_per_group: clips of each class in a group.
        test_groups: groups tested on, per split.
        frames: of a clip, at 25 per second; 45 become 22 at 12 per second, two stacks.
        speeds: slowest and fastest surface, pixels per 12-fps step at 64 pixels. The slowest moves hardly more
            than the camera shakes: between the two lie hard clips and easy ones.
        contrast: of the textures, above 0 and at most 1: the lower, the more a small perturbation weighs.
        size: (H, W) of the frames, even. The drawing scales with the shorter side; texture features are 5 pixels at 64.
        split: 1, 2 or 3.
        frame_rate: frames per second that `decode` gives; None: all 25.
        frame_size: (H, W) that `decode` resizes to; None keeps `size`.
        max_frames: `decode` gives the first frames only.

    Raises:
        ValueError: three splits need more groups than there are; a size is odd; another option is out of range;
            `root` was rendered with other settings, or holds something else.
    """

    def __init__(
        self,
        root: Path,
        *,
        seed: int = 0,
        groups: int = 12,
        clips_per_group: int = 2,
        test_groups: int = 2,
        frames: int = 45,
        speeds: tuple[float, float] = (0.4, 2.5),
        contrast: float = 1.0,
        size: tuple[int, int] = (64, 64),
        split: Literal[1, 2, 3] = 1,
        frame_rate: float | None = 12.0,
        frame_size: tuple[int, int] | None = None,
        max_frames: int | None = None,
    ) -> None:
        super().__init__(root, split=split, frame_rate=frame_rate, frame_size=frame_size, max_frames=max_frames)
        if not 1 <= test_groups <= groups // 3:
            raise ValueError(
                f"test_groups {test_groups} of groups {groups}: each of the three splits tests on its own groups, so "
                "`test_groups` is at least 1 and at most a third of `groups`"
            )
        if seed < 0 or clips_per_group < 1 or frames < 1:
            raise ValueError(f"seed {seed}, clips_per_group {clips_per_group}, frames {frames}: at least 0, 1 and 1")
        if not 0 < speeds[0] <= speeds[1]:
            raise ValueError(f"speeds {tuple(speeds)}: the slowest above 0, then the fastest")
        if not 0 < contrast <= 1:
            raise ValueError(f"contrast {contrast}: above 0 and at most 1")
        if min(size) < 16 or any(side % 2 for side in size):
            raise ValueError(f"size {tuple(size)}: both sides must be even (colour is subsampled) and at least 16")
        self.recipe: dict[str, Any] = {
            "drawing": _DRAWING,
            "seed": seed,
            "groups": groups,
            "clips_per_group": clips_per_group,
            "test_groups": test_groups,
            "frames": frames,
            "speeds": list(speeds),
            "contrast": contrast,
            "size": list(size),
        }

    @property
    def classes(self) -> list[str]:
        """The motions; known before anything is rendered."""
        return sorted(MOTIONS)

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the frames of a clip of a given name."""
        return {**super().frame_settings, "rendering": self.recipe}

    def clips(self, subset: Subset) -> list[Clip]:
        """The clips of the train or test list; an error as long as `prepare` has not rendered them all."""
        self._refuse_other_settings()
        missing = self._missing()
        if missing:
            raise FileNotFoundError(
                f"{self.root}: {len(missing)} of the clips to render are missing, first {missing[0]}; `prepare()` "
                "renders them"
            )
        return super().clips(subset)

    def prepare(self) -> None:
        """Render what is missing; a call that was cut short is taken up where it stopped. Several processes may call it
        at once."""
        self._refuse_other_settings()
        for folder in (".", "ucfTrainTestlist", "UCF-101/*"):
            half_written.sweep(self.root.glob(f"{folder}/.*.part"))
        _write_text(self.root / "settings.json", json.dumps(self.recipe, indent=2) + "\n")
        for name, lines in self._list_files().items():
            _write_text(self.root / "ucfTrainTestlist" / name, "".join(f"{line}\n" for line in lines))
        missing = self._missing()
        if missing:
            self._render(missing)
        self._look_again()
        super().prepare()

    def _names(self) -> Iterator[_Name]:
        """All clips, the clips of a group together."""
        for group in range(1, self.recipe["groups"] + 1):
            for motion in self.classes:
                for clip in range(1, self.recipe["clips_per_group"] + 1):
                    yield _Name(motion, group, clip)

    def _path(self, name: _Name) -> Path:
        return self.root / "UCF-101" / str(name)

    def _missing(self) -> list[_Name]:
        return [name for name in self._names() if not self._path(name).is_file()]

    def _refuse_other_settings(self) -> None:
        path = self.root / "settings.json"
        has_videos = (self.root / "UCF-101").exists()  # asked first: another process writes the settings, then videos
        if not path.is_file():
            if has_videos:
                raise ValueError(f"{self.root}: holds UCF-101/ that was not rendered here; name another `root`")
            return
        found = json.loads(path.read_text())
        differences = [
            f"{key} {found.get(key)} there, {self.recipe.get(key)} asked for"
            for key in {**found, **self.recipe}
            if found.get(key) != self.recipe.get(key)
        ]
        if differences:
            raise ValueError(
                f"{path}: rendered with other settings: {'; '.join(differences)}; name another `root`, or remove it"
            )

    def _list_files(self) -> dict[str, list[str]]:
        """The lists' lines in the official format: sorted by class, labels from 1, none in the test lists."""
        label = {motion: index for index, motion in enumerate(self.classes, 1)}
        files = {"classInd.txt": [f"{index} {motion}" for motion, index in label.items()]}
        names = sorted(self._names())
        for split in (1, 2, 3):
            last = split * self.recipe["test_groups"]
            tested = range(last - self.recipe["test_groups"] + 1, last + 1)
            files[f"trainlist{split:02d}.txt"] = [f"{n} {label[n.motion]}" for n in names if n.group not in tested]
            files[f"testlist{split:02d}.txt"] = [f"{n}" for n in names if n.group in tested]
        return files

    def _render(self, missing: list[_Name]) -> None:
        seed, frames, size = self.recipe["seed"], self.recipe["frames"], tuple(self.recipe["size"])
        contrast = self.recipe["contrast"]
        first_hue = np.random.default_rng([seed, 0]).uniform()
        shown = tqdm(missing, desc=f"rendering into {self.root}", unit="clip", mininterval=1)
        for group, names in groupby(shown, key=lambda name: name.group):
            rng = np.random.default_rng([seed, 1, group])
            appearance = draw_appearance(rng, first_hue + _GOLDEN * group, contrast)
            for name in names:
                if self._path(name).is_file():
                    continue  # another process has rendered it meanwhile
                rng = np.random.default_rng([seed, 2, crc32(name.motion.encode()), group, name.clip])
                scene = draw_scene(rng, self.recipe["speeds"])
                motion = MOTIONS[name.motion]
                pictures = draw_clip(appearance, scene, motion, frames=frames, frame_rate=FRAME_RATE, size=size)
                _write_video(self._path(name), pictures, size)


def _write_video(path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int]) -> None:
    """An AVI file like UCF-101's: MPEG-4, colour subsampled. But every frame is coded alone, and all by one quantiser:
    what is lost where a frame is predicted from the last would tell how it moved."""
    import av
    from av.codec.context import Flags

    with (
        half_written.appearing(path) as part,
        av.open(str(part), "w", format="avi", options={"fflags": "+bitexact"}) as container,
    ):
        stream = container.add_stream("mpeg4", rate=FRAME_RATE)
        stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
        codec = stream.codec_context
        codec.codec_tag = "XVID"
        codec.gop_size = 1
        codec.qmin = codec.qmax = _QUANTISER
        codec.thread_count = 1
        codec.flags |= Flags.bitexact
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _write_text(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    with half_written.appearing(path) as part:
        part.write_text(text)
