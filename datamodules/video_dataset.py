"""What a dataset of labelled videos offers; subclass this and every command works on your videos."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Subset = Literal["train", "test"]


class Clip(NamedTuple):
    """One labelled video."""

    path: Path
    name: str
    """Class folder and file stem, `Archery/v_Archery_g01_c01`; names the clip in stores, records and reports."""
    label: int
    """Index in the dataset's `classes`."""
    group: str
    """Clips of a group show the same scene: `Archery_g01`."""


class VideoDataset(ABC):
    """Labelled videos with a train and a test subset."""

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Class names; a clip's label is an index into them."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides which clips and labels come out, JSON-able, without paths."""

    @property
    @abstractmethod
    def frame_settings(self) -> dict[str, Any]:
        """What decides the frames of a clip of a given name, JSON-able, without paths."""

    @abstractmethod
    def prepare(self) -> None:
        """Make, download or check what is needed; called on one process."""

    @abstractmethod
    def clips(self, subset: Subset) -> list[Clip]:
        """The subset's clips, in a fixed order."""

    def available(self) -> tuple[list[Clip], list[str]]:
        """All clips that are there, and what is wrong with the others, a line each: for work that goes on without
        them."""
        return [*self.clips("train"), *self.clips("test")], []

    def account(self, most: int) -> list[str]:
        """What lies with the videos and is not used, counted and named (`most` of each kind), a line a kind."""
        del most
        return []

    def measure(self, clip: Clip) -> tuple[int, tuple[int, int]]:
        """Number and size (H, W) of the clip's frames. Decodes them all: override it where the file tells."""
        frames = self.decode(clip)
        return len(frames), (frames.shape[1], frames.shape[2])

    @abstractmethod
    def decode(self, clip: Clip) -> np.ndarray:
        """The clip's frames, uint8 RGB (T, H, W, 3)."""

    def decode_frames(self, clip: Clip, indices: Sequence[int]) -> np.ndarray:
        """The clip's frames of increasing `indices`, uint8 RGB (len(indices), H, W, 3), equal to those of `decode`.

        Decodes the whole clip: override it where leaving frames out saves work.
        """
        return self.decode(clip)[list(indices)]
