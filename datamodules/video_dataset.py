"""What a dataset of labelled videos offers; implement this and every command works on your videos."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

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


class VideoDataset(Protocol):
    """Labelled videos with a train and a test subset."""

    @property
    def classes(self) -> list[str]:
        """Class names; a clip's label is an index into them."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which clips and labels come out, JSON-able, without paths."""

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the frames of a clip of a given name, JSON-able, without paths."""

    def prepare(self) -> None:
        """Make, download or check what is needed; called on one process."""

    def clips(self, subset: Subset) -> list[Clip]:
        """The subset's clips, in a fixed order."""

    def decode(self, clip: Clip) -> np.ndarray:
        """The clip's frames, uint8 RGB (T, H, W, 3)."""
