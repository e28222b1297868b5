"""UCF-101: class index, the three official splits, a tree that is whole or deliberately partial (section 4: split
01)."""

import difflib
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from datamodules.video_dataset import Clip, Subset, VideoDataset
from datamodules.video_decode import decode_video, refuse_impossible

_NAMED = 10  # how many missing clips an error lists by name


class UCF101(VideoDataset):
    """The clips of one official split, decoded at 12 frames per second.

    Args:
        root: the folder of class folders, or the folder that holds it as `UCF-101/`.
        lists: the folder of the official lists (`classInd.txt`, `trainlist01.txt`, …); by default `ucfTrainTestlist/`
            in `root` or beside it.
        split: official split 1, 2 or 3.
        classes: use these classes only, in the official order.
        allow_missing: use what is there: classes with at least one train and one test clip, and of them the clips
            present. Without it, a listed clip that is missing is an error.
        frame_rate: frames per second, chosen by time stamps.
        frame_size: (H, W) to resize frames to; None keeps the source's size.
        max_frames: use only the first frames of each clip.

    Raises:
        FileNotFoundError: no such folder, no lists, no videos, or listed clips are missing; counts and names them.
        ValueError: unknown class or split; a frame option out of range; files that differ by capitals only.
    """

    def __init__(
        self,
        root: Path,
        *,
        lists: Path | None = None,
        split: Literal[1, 2, 3] = 1,
        classes: list[str] | None = None,
        allow_missing: bool = False,
        frame_rate: float = 12.0,
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
        """Check the tree and say what is used of it."""
        rank_zero_info(self.summary())

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
        """The listed clips that are there; those that are not (unless `allow_missing`), and files that no list
        names."""
        present, missing = self._found
        if self.allow_missing or not missing:
            clips, faults = [*self.clips("train"), *self.clips("test")], []
        else:
            label = {name.lower(): index for index, name in enumerate(self._wanted_classes())}
            clips = [
                Clip(self._files[name.lower()], name, label[name.split("/")[0].lower()], _group(name))
                for names in present.values()
                for name in names
            ]
            faults = [f"{self.video_folder}/{name}.avi: missing" for name in missing]
        listed = {name.lower() for names in self._listed.values() for name in names}
        faults += [f"{path}: no list names it" for name, path in self._files.items() if name not in listed]
        return clips, faults

    def decode(self, clip: Clip) -> np.ndarray:
        """The clip's frames, uint8 RGB (T, H, W, 3); errors as `decode_video`."""
        return decode_video(
            clip.path, frame_rate=self.frame_rate, frame_size=self.frame_size, max_frames=self.max_frames
        )

    def summary(self) -> str:
        """What is used, in one line."""
        listed = {subset: len(names) for subset, names in self._listed.items()}
        parts = [f"{len(self.clips(subset))} of {listed[subset]} {subset} clips" for subset in ("train", "test")]
        shown = ", ".join(self.classes) if len(self.classes) <= 12 else f"{self.classes[0]} … {self.classes[-1]}"
        return (
            f"{type(self).__name__} split {self.split} in {self.root}: {len(self.classes)} of "
            f"{len(self._official_classes)} "
            f"classes ({shown}), {', '.join(parts)}"
        )

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
    def _official_classes(self) -> list[str]:
        return [line.split()[1] for line in _lines(self.list_folder / "classInd.txt")]

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Per subset the listed names, `Class/v_Class_g01_c01`."""
        if self.split not in (1, 2, 3):
            raise ValueError(f"split {self.split}: UCF-101 has the official splits 1, 2 and 3")
        listed = {}
        for subset in ("train", "test"):
            lines = _lines(self.list_folder / f"{subset}list{self.split:02d}.txt")
            listed[subset] = [re.sub(r"\.avi$", "", line.split()[0], flags=re.IGNORECASE) for line in lines]
        return listed

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The files of the wanted classes by class and stem, in lower case: the lists and the files do not agree on
        capitals (HandstandPushups, HandStandPushups)."""
        folders = defaultdict(list)
        for folder in sorted(self.video_folder.iterdir()):
            if folder.is_dir():
                folders[folder.name.lower()].append(folder)
        files: dict[str, Path] = {}
        for name in (name.lower() for name in self._wanted_classes()):
            for file in (file for folder in folders[name] for file in sorted(folder.iterdir())):
                if file.suffix.lower() != ".avi":
                    continue
                known = files.setdefault(f"{name}/{file.stem.lower()}", file)
                if known != file:
                    raise ValueError(f"{known} and {file} are one clip but for capitals: remove or rename one of them")
        if not files:
            raise FileNotFoundError(
                f"{self.video_folder}: holds no class folder with .avi files; point UCF101 at the folder of "
                f"UCF-101's class folders"
            )
        return files

    @cached_property
    def _found(self) -> tuple[dict[str, list[str]], list[str]]:
        """Of the lists' clips of the wanted classes: those that are there, per subset, and those that are not."""
        wanted = {name.lower() for name in self._wanted_classes()}
        present: dict[str, list[str]] = {}
        missing: list[str] = []
        for subset, names in self._listed.items():
            of_wanted = [name for name in names if name.split("/")[0].lower() in wanted]
            present[subset] = [name for name in of_wanted if name.lower() in self._files]
            missing += [name for name in of_wanted if name.lower() not in self._files]
        return present, missing

    @cached_property
    def _index(self) -> tuple[list[str], dict[str, list[Clip]]]:
        wanted = self._wanted_classes()
        present, missing = self._found
        if missing and not self.allow_missing:
            raise FileNotFoundError(self._missing_message(missing, sum(map(len, present.values())) + len(missing)))

        covered = [{name.split("/")[0].lower() for name in names} for names in present.values()]
        classes = [name for name in wanted if all(name.lower() in subset for subset in covered)]
        labels = {name.lower(): label for label, name in enumerate(classes)}
        if len(classes) < 2:
            raise FileNotFoundError(
                f"{self.video_folder}: {len(classes)} classes have both train and test clips of split "
                f"{self.split}; two are the least"
            )
        clips = {
            subset: [
                Clip(self._files[name.lower()], name, labels[name.split("/")[0].lower()], _group(name))
                for name in names
                if name.split("/")[0].lower() in labels
            ]
            for subset, names in present.items()
        }
        return classes, clips

    def _wanted_classes(self) -> list[str]:
        if self.only_classes is None:
            return self._official_classes
        official = {name.lower(): name for name in self._official_classes}
        for name in self.only_classes:
            if name.lower() not in official:
                near = difflib.get_close_matches(name, self._official_classes, n=3)
                hint = f"; near: {', '.join(near)}" if near else ""
                raise ValueError(f"classes: {name!r} is not in {self.list_folder / 'classInd.txt'}{hint}")
        chosen = {name.lower() for name in self.only_classes}
        return [name for name in self._official_classes if name.lower() in chosen]

    def _missing_message(self, missing: list[str], total: int) -> str:
        named = "\n  ".join(missing[:_NAMED])
        more = f"\n  … and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return (
            f"{self.video_folder}: {len(missing)} of {total} clips that split {self.split} lists for its "
            f"classes are missing:\n  {named}{more}\n"
            "Complete the download; or, to use a part on purpose, name its `classes` or set `allow_missing: true`"
        )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; it is part of UCF101TrainTestSplits-RecognitionTask.zip")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _group(name: str) -> str:
    """`Archery/v_Archery_g01_c02` -> `Archery_g01`."""
    class_name, stem = name.split("/")
    match = re.search(r"_g(\d+)_c\d+$", stem)
    return f"{class_name}_g{match[1]}" if match else stem
