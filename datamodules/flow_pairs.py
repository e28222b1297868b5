"""Frame pairs with stored flow as their target, for fine-tuning FlowNet2 on TV-L1 (section 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import FlowPairBatch
from datamodules.flow_precompute import to_frames
from datamodules.flow_store import FlowStore
from datamodules.transforms import random_pair_crop, random_pair_flips, random_pair_zoom, random_photometry
from datamodules.video_data import FlowData, refuse_several_sizes, refuse_smaller
from datamodules.video_dataset import Clip, Subset, VideoDataset


class FlowPairs(FlowData):
    """Training: every adjacent frame pair of the train clips once an epoch. Validation and test: pairs of the test
    clips.

    A clip is decoded once for each `pairs_at_once` pairs, spread evenly over it.

    Args:
        dataset: the videos.
        estimator: the algorithm whose flow is the target: TV-L1 in the paper.
        store: folder of its flow store; filled by `prepare_data`.
        crop: (height, width) of random training crops; None trains on whole frames.
        zoom: enlarge training pairs by a random factor of 1 to this before they are cropped, vectors with them.
        shift: crop the second frame up to so many pixels beside the first, at random, which adds to the vectors: videos
            hold few large motions.
        flip: mirror training pairs at random, left to right and upside down, vectors with them.
        photometry: strength of FlowNet's photometric augmentation of training pairs; 1 is its published range, 0 none.
        pairs_at_once: pairs taken of a clip each time it is decoded.
        clips_per_batch: decoded clips in a training step, over all processes, which must divide it; the step takes
            `clips_per_batch × pairs_at_once` pairs.
        test_pairs: validate on this many pairs of each test clip, spread evenly; None: on all.
        num_workers: processes that load batches.
        extraction_workers: processes that compute missing flow; default one per core.
    """

    step_option = "clips_per_batch"

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        estimator: nn.Module,
        store: Path,
        crop: tuple[int, int] | None = None,
        zoom: float = 1.0,
        shift: int = 0,
        flip: bool = True,
        photometry: float = 1.0,
        pairs_at_once: int = 4,
        clips_per_batch: int = 2,
        test_pairs: int | None = None,
        num_workers: int = 1,
        extraction_workers: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            estimator=estimator,
            store=store,
            stack_length=2,
            num_workers=num_workers,
            extraction_workers=extraction_workers,
        )
        if pairs_at_once < 1 or clips_per_batch < 1 or (test_pairs is not None and test_pairs < 1):
            raise ValueError(
                f"pairs_at_once {pairs_at_once}, clips_per_batch {clips_per_batch}, test_pairs {test_pairs}: at "
                f"least 1 each"
            )
        if zoom < 1 or shift < 0 or (shift and crop is None):
            raise ValueError(f"zoom {zoom}, shift {shift}: at least 1 and 0, and a shift needs a `crop` to move in")
        self.crop = None if crop is None else (crop[0], crop[1])
        self.zoom, self.shift = zoom, shift
        self.flip = flip
        self.photometry = photometry
        self.pairs_at_once = pairs_at_once
        self.clips_per_batch = clips_per_batch
        self.test_pairs = test_pairs

    def refuse_sizes(self, subset: Subset, measures: Sequence[tuple[Clip, int, tuple[int, int]]]) -> None:
        """Training frames are at least as large as the crop; without one, all of a size. Test clips come one by one."""
        if subset != "train":
            return
        if self.crop is not None:
            refuse_smaller(measures, self.crop, f"crop {self.crop[0]}×{self.crop[1]}")
        elif self.clips_per_batch > 1:
            refuse_several_sizes(
                measures, "Give a `crop` that fits them all, set the dataset's `frame_size`, or `clips_per_batch: 1`"
            )

    def train_dataloader(self) -> DataLoader:
        """FlowPairBatch of augmented pairs of the train clips."""
        counts = self.flow_counts("train", at_least=1)
        data = ClipPairs(
            self.dataset, self.store, self.clips("train"), spread_blocks(counts, self.pairs_at_once), self.augment
        )
        return self.loader(data, shuffle=True, batch_size=self.per_process(), collate_fn=join_pairs)

    def val_dataloader(self) -> DataLoader:
        """FlowPairBatch of whole-frame pairs of the test clips, one clip a batch."""
        counts = self.flow_counts("test", at_least=1)
        blocks = [
            (index, sorted({pair * count // wanted for pair in range(wanted)}))
            for index, count in enumerate(counts)
            for wanted in [min(count, self.test_pairs or count)]
        ]
        data = ClipPairs(self.dataset, self.store, self.clips("test"), blocks)
        return self.loader(data, batch_size=1, collate_fn=join_pairs)

    test_dataloader = val_dataloader

    def augment(self, frames: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """One training pair (2, 3, H, W) with its flow (1, 2, H, W), enlarged, cropped, mirrored and lit at random."""
        size = self.crop or (frames.shape[-2], frames.shape[-1])
        if self.zoom > 1:
            frames, flow = random_pair_zoom(frames, flow, self.zoom)
        if frames.shape[-2:] != size:
            frames, flow = random_pair_crop(frames, flow, size, shift=self.shift)
        if self.flip:
            frames, flow = random_pair_flips(frames, flow)
        return random_photometry(frames, strength=self.photometry), flow


class ClipPairs(Dataset[FlowPairBatch]):
    """Item (clip, pair indices): the named pairs of a clip as one FlowPairBatch."""

    def __init__(
        self,
        dataset: VideoDataset,
        store: FlowStore,
        clips: list[Clip],
        blocks: list[tuple[int, list[int]]],
        augment=None,
    ) -> None:
        self.dataset, self.store, self.clips, self.blocks, self.augment = dataset, store, clips, blocks, augment

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> FlowPairBatch:
        clip_index, pairs = self.blocks[index]
        clip = self.clips[clip_index]
        wanted = sorted({frame for pair in pairs for frame in (pair, pair + 1)})
        images = dict(zip(wanted, self.dataset.decode_frames(clip, wanted), strict=True))
        items = []
        for pair in pairs:
            frames = to_frames(np.stack([images[pair], images[pair + 1]]))
            flow = torch.from_numpy(self.store.read(clip, pair, 1))
            items.append((frames, flow) if self.augment is None else self.augment(frames, flow))
        return FlowPairBatch(torch.stack([frames for frames, _ in items]), torch.stack([flow for _, flow in items]))


def spread_blocks(counts: list[int], size: int) -> list[tuple[int, list[int]]]:
    """Partition the pairs 0 … count-1 of each clip into blocks of at most `size`, each spread evenly over the clip."""
    blocks = []
    for index, count in enumerate(counts):
        number = -(-count // size)
        blocks += [(index, list(range(first, count, number))) for first in range(number)]
    return blocks


def join_pairs(items: list[FlowPairBatch]) -> FlowPairBatch:
    """Several clips' pairs as one batch."""
    return FlowPairBatch(torch.cat([item.frames for item in items]), torch.cat([item.flow for item in items]))
