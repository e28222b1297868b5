"""Whole videos as their non-overlapping frame stacks, for the attacks (sections 4 and 5.2)."""

from collections.abc import Container
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import VideoBatch
from datamodules.flow_precompute import to_frames
from datamodules.video_data import VideoData, short_clip
from datamodules.video_dataset import Clip, VideoDataset


class FrameStacks(VideoData):
    """The test clips, each with its non-overlapping stacks: the stack level counts stacks, the video level clips.

    Args:
        dataset: the videos.
        stack_length: frames of a stack.
        max_stacks: take only the first stacks of a clip, at most so many; None takes all, as the paper does. The video
            level is the mean over those taken.
        max_clips: attack only this many test clips, spread evenly over the list (and so over the classes); None takes
            all.
        num_workers: processes that decode videos.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        stack_length: int = 11,
        max_stacks: int | None = None,
        max_clips: int | None = None,
        num_workers: int = 1,
    ) -> None:
        super().__init__(dataset, stack_length=stack_length, num_workers=num_workers)
        for name, value in (("max_stacks", max_stacks), ("max_clips", max_clips)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: at least 1, or null for all")
        self.max_stacks = max_stacks
        self.max_clips = max_clips

    @property
    def settings(self) -> dict:
        """What decides which stacks come out."""
        return {**super().settings, "max_stacks": self.max_stacks, "max_clips": self.max_clips}

    def prepare_data(self) -> None:
        """Make, download or check the videos; every clip that is attacked has a stack.

        Raises:
            ValueError: a clip has none, or cannot be read; names it.
        """
        super().prepare_data()
        clips = self.clips("test")
        chosen = [clips[index] for index in spread(len(clips), self.max_clips)]
        self.refuse_unfit(self.measured(chosen, self.dataset.measure), self.stack_length)

    def test_dataloader(self) -> DataLoader:
        """VideoBatch of each test clip.

        Clips that a callback lists in `clips_not_needed` have no stacks and are not decoded; the list must be there
        before the loader is made.
        """
        callbacks: list[Any] = [] if self.trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        not_needed = {name for callback in callbacks for name in getattr(callback, "clips_not_needed", ())}
        count = len(self.clips("test"))
        chosen = spread(count, self.max_clips)
        data = Videos(self.dataset, self.clips("test"), chosen, self.stack_length, self.max_stacks, not_needed)
        return self.loader(data, batch_size=None)


class Videos(Dataset[VideoBatch]):
    """Each clip as its non-overlapping stacks; the clips named in `not_needed` have none and are not decoded."""

    def __init__(
        self,
        dataset: VideoDataset,
        clips: list[Clip],
        chosen: list[int],
        stack_length: int,
        max_stacks: int | None,
        not_needed: Container[str] = (),
    ) -> None:
        self.dataset, self.clips, self.chosen = dataset, clips, chosen
        self.stack_length, self.max_stacks, self.not_needed = stack_length, max_stacks, not_needed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> VideoBatch:
        clip = self.clips[self.chosen[index]]
        if clip.name in self.not_needed:
            none = torch.empty(0, self.stack_length, 3, 0, 0)
            return VideoBatch(none, torch.tensor(clip.label), torch.tensor(self.chosen[index]))
        return self.video(self.chosen[index])

    def video(self, index: int) -> VideoBatch:
        """All stacks of a clip, by its index in the subset."""
        clip = self.clips[index]
        images = self.dataset.decode(clip)
        whole = len(images) // self.stack_length
        if whole == 0:
            raise ValueError(short_clip(clip, len(images), self.stack_length))
        taken = min(whole, self.max_stacks or whole)
        stacks = to_frames(images[: taken * self.stack_length]).unflatten(0, (taken, self.stack_length))
        return VideoBatch(stacks, torch.tensor(clip.label), torch.tensor(index))


def spread(count: int, wanted: int | None) -> list[int]:
    """`wanted` of the indices 0 … count-1, evenly spread; all of them if there are no more than that."""
    wanted = min(count, wanted or count)
    return [index * count // wanted for index in range(wanted)]
