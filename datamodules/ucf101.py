"""UCF-101: class index, the three official splits, a tree that is whole or deliberately partial (section 4: split
01). Other datasets in its layout are read, too.

    <root>/UCF-101/<Class>/<clip>.avi   <root>/ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt, …
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.official_lists import (
    NAMED,
    VIDEO_SUFFIXES,
    Classes,
    ListedClip,
    named,
    near,
    read_classes,
    read_clips,
    refuse_repeated,
    same,
    stem,
)
from datamodules.video_dataset import Clip, Subset, VideoDataset
from datamodules.video_decode import count_frames, decode_video, refuse_impossible


class _Tree(NamedTuple):
    """What lies in the folder of class folders."""

    videos: dict[str, dict[str, Path]]
    """by class and file stem, each as `same` has it"""
    other_folders: dict[str, int]
    """those of no class, and folders within a class, with the number of videos in each"""
    other_files: list[str]
    """what has no video's suffix"""
    stray: list[str]
    """videos in no class's folder, beside them"""


class UCF101(VideoDataset):
    """The clips of one official split, decoded at 12 frames per second.

    Args:
        root: the folder of class folders, or the folder that holds it as `UCF-101/`.
        lists: the folder of the official lists (`classInd.txt`, `trainlist01.txt`, …); by default `ucfTrainTestlist/`
            in `root` or beside it.
        split: official split 1, 2 or 3.
        classes: use these classes only, in the official order.
        allow_missing: use what is there: classes with at least one train and one test clip, and of them the clips
            present; `account` names the rest. Without it, a listed clip that is missing is an error.
        frame_rate: frames per second, chosen by time stamps; None takes every frame of each video.
        frame_size: (H, W) to resize frames to; None keeps the source's size.
        max_frames: use only the first frames of each clip.

    Raises:
        FileNotFoundError: no such folder, no lists, no videos, or listed clips are missing; counts and names them.
        ValueError: unknown class or split; a frame option out of range; a list that cannot be read, or lists a clip
            twice; files that are one clip but for capitals or suffix.
    """

    def __init__(
        self,
        root: Path,
        *,
        lists: Path | None = None,
        split: Literal[1, 2, 3] = 1,
        classes: list[str] | None = None,
        allow_missing: bool = False,
        frame_rate: float | None = 12.0,
        frame_size: tuple[int, int] | None = None,
        max_frames: int | None = None,
    ) -> None:
        refuse_impossible(frame_rate, frame_size, max_frames)
        self.root = Path(root)
        self.lists = None if lists is None else Path(lists)
        self.split = split
        self.only_classes = classes
        self.allow_missing = allow_missing
        self.frame_rate = frame_rate
        self.frame_size = None if frame_size is None else (frame_size[0], frame_size[1])
        self.max_frames = max_frames

    def prepare(self) -> None:
        """Check the tree and say what is used of it, and what is not."""
        # Takes seconds, which the processes that compute flow do without.
        from pytorch_lightning.utilities.rank_zero import rank_zero_info

        rank_zero_info("\n  ".join([self.summary(), *self.account()]))

    @property
    def classes(self) -> list[str]:
        """The classes in use, in the official order."""
        return self._index[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which clips and labels come out."""
        clips = {subset: len(self.clips(subset)) for subset in ("train", "test")}
        return {
            "dataset": type(self).__name__,
            "split": self.split,
            "classes": self.classes,
            "clips": clips,
            **self.frame_settings,
        }

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the frames of a clip of a given name."""
        size = None if self.frame_size is None else list(self.frame_size)
        return {"frame_rate": self.frame_rate, "frame_size": size, "max_frames": self.max_frames}

    def clips(self, subset: Subset) -> list[Clip]:
        """The clips of the official train or test list that are used, in the list's order."""
        return self._index[1][subset]

    def available(self) -> tuple[list[Clip], list[str]]:
        """The listed clips that are there; and a line for each that is not, unless `allow_missing`."""
        found = self._found
        if self.allow_missing or not found.missing:
            return [*self.clips("train"), *self.clips("test")], []
        labels = {same(name): index for index, name in enumerate(self._wanted_classes)}
        clips = [self._clip(clip, labels) for clips in found.present.values() for clip in clips]
        return clips, [f"{self.video_folder}/{clip.file}: missing, {clip.line} lists it" for clip in found.missing]

    def decode(self, clip: Clip) -> np.ndarray:
        """The clip's frames, uint8 RGB (T, H, W, 3); errors as `decode_video`."""
        return self._decode(clip)

    def decode_frames(self, clip: Clip, indices: Sequence[int]) -> np.ndarray:
        """The frames of increasing `indices`, uint8 RGB (len(indices), H, W, 3). The others stay as decoded."""
        if type(self).decode is not UCF101.decode:  # a subclass's frames are its own
            return super().decode_frames(clip, indices)
        return self._decode(clip, indices)

    def _decode(self, clip: Clip, only: Sequence[int] | None = None) -> np.ndarray:
        return decode_video(
            clip.path, frame_rate=self.frame_rate, frame_size=self.frame_size, max_frames=self.max_frames, only=only
        )

    def measure(self, clip: Clip) -> tuple[int, tuple[int, int]]:
        """Number and size (H, W) of the clip's frames; errors as `count_frames`."""
        count, size = count_frames(clip.path, frame_rate=self.frame_rate, max_frames=self.max_frames)
        return count, self.frame_size or size

    def summary(self) -> str:
        """What is used, in one line."""
        parts = [
            f"{len(self.clips(subset))} of {len(self._listed[subset])} {subset} clips" for subset in ("train", "test")
        ]
        shown = ", ".join(self.classes) if len(self.classes) <= 12 else f"{self.classes[0]} … {self.classes[-1]}"
        return (
            f"{type(self).__name__} split {self.split} in {self.root}: {len(self.classes)} of "
            f"{len(self._official.names)} classes ({shown}), {', '.join(parts)}"
        )

    def account(self, most: int = NAMED) -> list[str]:
        """What is not used, counted and named (`most` of each kind), a line a kind: listed clips that are not there,
        clips of classes that lack a subset, videos that no list names, other folders and files."""
        found, tree = self._found, self._tree
        absent = [name for name in self._wanted_classes if not tree.videos.get(same(name))]
        missing = [clip.name for clip in found.missing if tree.videos.get(same(clip.name.partition("/")[0]))]
        refused = bool(found.missing) and not self.allow_missing  # which is said as an error, clip by clip
        used = set() if refused else {clip.name for subset in ("train", "test") for clip in self.clips(subset)}
        unused = [clip.name for clips in found.present.values() for clip in clips if clip.name not in used]
        listed = {same(clip.name) for clips in self._listed.values() for clip in clips}
        unlisted = [
            f"{path.parent.name}/{path.name}"
            for class_name, files in tree.videos.items()
            for key, path in files.items()
            if f"{class_name}/{key}" not in listed
        ]
        folders = [f"{name} ({count} videos)" for name, count in tree.other_folders.items()]
        kinds = {
            "classes have no video here": [] if refused else absent,
            "listed clips of the other classes are not here": [] if refused else missing,
            "clips are of classes that have no train clip here, or no test clip": [] if refused else unused,
            f"videos are in no list of split {self.split}": unlisted,
            "videos lie in no class's folder": tree.stray,
            "folders are no class's": folders,
            "files are no videos by their suffix": tree.other_files,
        }
        return [f"not used: {len(names)} {kind}: {named(names, most)}" for kind, names in kinds.items() if names]

    def _look_again(self) -> None:
        """Forget what was seen of the tree: it has changed."""
        for name, value in vars(UCF101).items():
            if isinstance(value, cached_property):
                self.__dict__.pop(name, None)

    @cached_property
    def video_folder(self) -> Path:
        """The folder that holds the class folders."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"{self.root}: no such folder; it should hold UCF-101's class folders (make … UCF101=DIR)"
            )
        nested = self.root / "UCF-101"
        return nested if nested.is_dir() else self.root

    @cached_property
    def list_folder(self) -> Path:
        """The folder that holds the official lists."""
        if self.lists is not None:
            candidates = [self.lists]
        else:
            candidates = [
                folder / "ucfTrainTestlist" for folder in (self.root, self.video_folder, self.video_folder.parent)
            ]
        for folder in candidates:
            if (folder / "classInd.txt").is_file():
                return folder
        looked = ", ".join(str(folder) for folder in dict.fromkeys(candidates))
        raise FileNotFoundError(
            f"no classInd.txt in {looked}; unpack UCF-101's official lists "
            f"(UCF101TrainTestSplits-RecognitionTask.zip) there "
            "or name their folder with `lists`"
        )

    @cached_property
    def _official(self) -> Classes:
        return read_classes(self.list_folder / "classInd.txt")

    @cached_property
    def _wanted_classes(self) -> list[str]:
        if self.only_classes is None:
            return self._official.names
        official = {same(name) for name in self._official.names}
        for name in self.only_classes:
            if same(name) not in official:
                raise ValueError(f"classes: {name!r} is not in {self._official.path}{near(name, self._official.names)}")
        chosen = {same(name) for name in self.only_classes}
        return [name for name in self._official.names if same(name) in chosen]

    @cached_property
    def _listed(self) -> dict[str, list[ListedClip]]:
        if self.split not in (1, 2, 3):
            raise ValueError(f"split {self.split}: UCF-101 has the official splits 1, 2 and 3")
        listed = {
            subset: read_clips(self.list_folder / f"{subset}list{self.split:02d}.txt", self._official, self._has)
            for subset in ("train", "test")
        }
        refuse_repeated(listed, NAMED)
        return listed

    def _has(self, name: str) -> bool:
        class_name, _, rest = same(name).partition("/")
        return rest in self._tree.videos.get(class_name, {})

    @cached_property
    def _tree(self) -> _Tree:
        official = {same(name) for name in self._official.names}
        wanted = {same(name) for name in self._wanted_classes}
        beside = sorted(path.name for path in self.video_folder.iterdir() if path.is_file())
        stray = [name for name in beside if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        tree = _Tree(defaultdict(dict), {}, [name for name in beside if name not in stray], stray)
        for folder in sorted(path for path in self.video_folder.iterdir() if path.is_dir()):
            class_name = same(folder.name)
            if class_name not in official:
                if folder.resolve() != self.list_folder.resolve():
                    tree.other_folders[folder.name] = _count_videos(folder)
                continue
            if class_name not in wanted:
                continue
            for file in sorted(folder.iterdir()):
                if file.is_dir():
                    tree.other_folders[f"{folder.name}/{file.name}"] = _count_videos(file)
                elif file.suffix.lower() not in VIDEO_SUFFIXES:
                    tree.other_files.append(f"{folder.name}/{file.name}")
                else:
                    known = tree.videos[class_name].setdefault(same(stem(file.name)), file)
                    if known != file:
                        raise ValueError(
                            f"{known} and {file} are one clip but for capitals or suffix: remove or rename one of them"
                        )
        if not tree.videos:
            raise FileNotFoundError(
                f"{self.video_folder}: holds no class folder with videos; point UCF101 at the folder of UCF-101's "
                "class folders, which are called as in classInd.txt"
            )
        return tree

    @cached_property
    def _found(self) -> "_Found":
        """The lists' clips of the wanted classes."""
        wanted = {same(name) for name in self._wanted_classes}
        present: dict[str, list[ListedClip]] = {}
        missing: list[ListedClip] = []
        for subset, clips in self._listed.items():
            of_wanted = [clip for clip in clips if same(clip.name.partition("/")[0]) in wanted]
            present[subset] = [clip for clip in of_wanted if self._has(clip.name)]
            missing += [clip for clip in of_wanted if not self._has(clip.name)]
        return _Found(present, missing)

    @cached_property
    def _index(self) -> tuple[list[str], dict[str, list[Clip]]]:
        found = self._found
        if found.missing and not self.allow_missing:
            total = sum(map(len, found.present.values())) + len(found.missing)
            raise FileNotFoundError(
                f"{self.video_folder}: {len(found.missing)} of {total} clips that split {self.split} lists for its "
                f"classes are missing:\n  {named([clip.name for clip in found.missing], NAMED, chr(10) + '  ')}\n"
                "Complete the download; or, to use a part on purpose, name its `classes` or set `allow_missing: true`"
            )
        counts = [Counter(same(clip.name.partition("/")[0]) for clip in clips) for clips in found.present.values()]
        classes = [name for name in self._wanted_classes if all(same(name) in subset for subset in counts)]
        if len(classes) < len(self._wanted_classes) and not self.allow_missing:
            lacking = [name for name in self._wanted_classes if name not in classes]
            raise ValueError(
                f"{self.list_folder}: split {self.split} lists no train clip or no test clip of {len(lacking)} of its "
                f"classes: {named(lacking, NAMED)}. List some; or, to do without these, name the other `classes` or "
                "set `allow_missing: true`"
            )
        if len(classes) < 2:
            lacking = [name for name in self._wanted_classes if name not in classes]
            raise FileNotFoundError(
                f"{self.video_folder}: {len(classes)} classes have both train and test clips of split {self.split}; "
                f"two are the least. Not so: {named(lacking, NAMED)}"
            )
        labels = {same(name): label for label, name in enumerate(classes)}
        clips = {
            subset: [self._clip(clip, labels) for clip in listed if same(clip.name.partition("/")[0]) in labels]
            for subset, listed in found.present.items()
        }
        return classes, clips

    def _clip(self, listed: ListedClip, labels: dict[str, int]) -> Clip:
        class_name, _, rest = same(listed.name).partition("/")
        return Clip(self._tree.videos[class_name][rest], listed.name, labels[class_name], _group(listed.name))


class _Found(NamedTuple):
    present: dict[str, list[ListedClip]]
    """by subset"""
    missing: list[ListedClip]


def _count_videos(folder: Path) -> int:
    return sum(file.suffix.lower() in VIDEO_SUFFIXES for file in folder.rglob("*"))


def _group(name: str) -> str:
    """`Archery/v_Archery_g01_c02` -> `Archery_g01`; a clip whose name tells no group is one of its own."""
    class_name, stem_ = name.split("/")
    match = re.search(r"_g(\d+)_c\d+$", stem_)
    return f"{class_name}_g{match[1]}" if match else name
