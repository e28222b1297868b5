"""Stacks of stored flow with their class, for the classifiers (section 4)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import FlowStackBatch
from datamodules.flow_codec import FLOW_BOUND, decode
from datamodules.flow_store import FlowStore
from datamodules.transforms import centre_crop, erase_flow, flip_flow, random_square, resize_flow, reverse_flow
from datamodules.video_data import FlowData, refuse_smaller
from datamodules.video_dataset import Clip, Subset, VideoDataset


class FlowStacks(FlowData):
    """Training: random stacks of random clips, randomly scaled and cropped. Validation and test: every non-overlapping
    stack of every test clip, centre crop. Nothing is selected on the test clips: the classifier of the last epoch
    counts.

    Args:
        dataset: the videos.
        estimator: the flow algorithm; its settings name the store's content.
        store: folder of the flow store; filled by `prepare_data`.
        crop: side of the classifier's input, pixels.
        scales: sides of the random training crops, as fractions of the frame's shorter side.
        flip: mirror half of the training stacks (u is negated). Not in the paper; wrong where left and right are
            classes.
        reverse: play half of the training stacks backwards (`reverse_flow`). Not in the paper; wrong where an action
            and its undoing are classes.
        erase: share of the crop's area that random erasing covers in half of the training stacks; 0: none. Not in the
            paper.
        stack_length: frames of a stack.
        stacks_per_clip: training stacks drawn from each clip in an epoch.
        batch_size: stacks in a training step, over all processes, which must divide it.
        num_workers: processes that load batches.
        extraction_workers: processes that compute missing flow; default one per core.
    """

    step_option = "batch_size"

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        estimator: nn.Module,
        store: Path,
        crop: int = 224,
        scales: tuple[float, ...] = (1.0, 0.875, 0.75),
        flip: bool = False,
        reverse: bool = False,
        erase: float = 0.0,
        stack_length: int = 11,
        stacks_per_clip: int = 1,
        batch_size: int = 32,
        num_workers: int = 1,
        extraction_workers: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            estimator=estimator,
            store=store,
            stack_length=stack_length,
            num_workers=num_workers,
            extraction_workers=extraction_workers,
        )
        if crop < 1 or batch_size < 1 or stacks_per_clip < 1:
            raise ValueError(
                f"crop {crop}, batch_size {batch_size}, stacks_per_clip {stacks_per_clip}: at least 1 each"
            )
        if not all(0 < scale <= 1 for scale in scales):
            raise ValueError(
                f"scales {scales}: each must lie above 0 and at most at 1, a fraction of the frame's shorter side"
            )
        if not 0 <= erase < 1:
            raise ValueError(f"erase {erase}: a share of the crop's area, from 0 to below 1")
        self.crop = crop
        self.scales = tuple(scales)
        self.flip, self.reverse, self.erase = flip, reverse, erase
        self.stacks_per_clip = stacks_per_clip
        self.batch_size = batch_size

    def refuse_sizes(self, subset: Subset, measures: Sequence[tuple[Clip, int, tuple[int, int]]]) -> None:
        """Test frames are at least as large as the crop; training crops are resized."""
        if subset == "test":
            refuse_smaller(measures, (self.crop, self.crop), f"crop {self.crop}")

    def train_dataloader(self) -> DataLoader:
        """FlowStackBatch of random stacks of the train clips."""
        counts = self.flow_counts("train", at_least=self.stack_length - 1)
        data = RandomStacks(
            self.store,
            self.clips("train") * self.stacks_per_clip,
            counts * self.stacks_per_clip,
            length=self.stack_length - 1,
            crop=self.crop,
            scales=self.scales,
            flip=self.flip,
            reverse=self.reverse,
            erase=self.erase,
        )
        return self.loader(data, shuffle=True, batch_size=self.per_process(), drop_last=len(data) > self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """FlowStackBatch of all non-overlapping stacks of the test clips."""
        counts = self.flow_counts("test", at_least=self.stack_length - 1)
        data = AllStacks(self.store, self.clips("test"), counts, length=self.stack_length - 1, crop=self.crop)
        return self.loader(data, batch_size=self.batch_size)

    test_dataloader = val_dataloader


class RandomStacks(Dataset[FlowStackBatch]):
    """One random stack of each clip at each access."""

    def __init__(
        self,
        store: FlowStore,
        clips: list[Clip],
        counts: list[int],
        *,
        length: int,
        crop: int,
        scales: tuple[float, ...],
        flip: bool = False,
        reverse: bool = False,
        erase: float = 0.0,
    ) -> None:
        self.store, self.clips, self.counts = store, clips, counts
        self.length, self.crop, self.scales, self.flip = length, crop, scales, flip
        self.reverse, self.erase = reverse, erase

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> FlowStackBatch:
        clip = self.clips[index]
        start = int(torch.randint(self.counts[index] - self.length + 1, ()))
        planes = self.store.read_planes(clip, start, self.length)
        rows, columns = random_square(planes.shape[-2], planes.shape[-1], self.scales)
        flow = torch.from_numpy(decode(planes[..., rows, columns]))  # only what is used becomes float
        if flow.shape[-1] != self.crop:
            # an enlarged crop has longer vectors
            flow = resize_flow(flow, self.crop, self.crop).clamp(-FLOW_BOUND, FLOW_BOUND)
        if self.flip and torch.rand(()) < 0.5:
            flow = flip_flow(flow)
        if self.reverse and torch.rand(()) < 0.5:
            flow = reverse_flow(flow)
        if self.erase and torch.rand(()) < 0.5:
            flow = erase_flow(flow, self.erase)
        return FlowStackBatch(flow.flatten(0, 1), torch.tensor(clip.label), torch.tensor(index))


class AllStacks(Dataset[FlowStackBatch]):
    """Every non-overlapping stack of every clip, centre crop."""

    def __init__(self, store: FlowStore, clips: list[Clip], counts: list[int], *, length: int, crop: int) -> None:
        self.store, self.clips, self.length, self.crop = store, clips, length, crop
        # A stack of T frames has T - 1 flow fields; the field between two stacks belongs to neither.
        self.stacks = [
            (index, start) for index, count in enumerate(counts) for start in range(0, count - length + 1, length + 1)
        ]

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, index: int) -> FlowStackBatch:
        clip_index, start = self.stacks[index]
        clip = self.clips[clip_index]
        planes = centre_crop(torch.from_numpy(self.store.read_planes(clip, start, self.length)), self.crop)
        flow = torch.from_numpy(decode(planes.numpy()))
        return FlowStackBatch(flow.flatten(0, 1), torch.tensor(clip.label), torch.tensor(clip_index))
