"""What the three LightningDataModules share: a dataset, its classes, and for flow a store that `prepare_data` fills.

Clips that are too short, or of a size that does not fit, are told before any work that takes long.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import cv2
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.flow_precompute import precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.official_lists import NAMED, named
from datamodules.video_dataset import Clip, Subset, VideoDataset


class VideoData(pl.LightningDataModule):
    """A dataset of labelled videos behind Lightning's interface.

    Raises:
        ValueError: stacks too short for flow, or a negative number of workers.
    """

    def __init__(self, dataset: VideoDataset, *, stack_length: int, num_workers: int) -> None:
        super().__init__()
        if stack_length < 2:
            raise ValueError(f"stack_length {stack_length}: at least 2 frames, between which there is flow")
        if num_workers < 0:
            raise ValueError(f"num_workers {num_workers}: at least 0, which loads in the process itself")
        self.prepare_data_per_node = False
        self.dataset = dataset
        self.stack_length = stack_length
        self.num_workers = num_workers

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self.dataset.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which clips, frames and labels come out."""
        return {**self.dataset.settings, "stack_length": self.stack_length}

    def clips(self, subset: Subset) -> list[Clip]:
        """The clips of a subset; batches name them by their index in this list."""
        return self.dataset.clips(subset)

    def prepare_data(self) -> None:
        """Make, download or check the videos."""
        self.dataset.prepare()

    def refuse_unfit(self, measures: Sequence[tuple[Clip, int, tuple[int, int]]], needed: int) -> None:
        """Check clips, each with its number of frames and their size (H, W).

        Raises:
            ValueError: some have fewer frames than are needed; names them.
        """
        short = [f"{clip.path}: {frames} frames" for clip, frames, _ in measures if frames < needed]
        if short:
            raise ValueError(
                f"{len(short)} of {len(measures)} clips are shorter, at the dataset's frame rate, than the {needed} "
                f"frames that a stack needs:\n  {named(short, NAMED, separator=chr(10) + '  ')}\n"
                "Take them out of the lists, raise `frame_rate` or lower `stack_length`"
            )

    def measured(
        self, clips: Sequence[Clip], measure: Callable[[Clip], tuple[int, tuple[int, int]]]
    ) -> list[tuple[Clip, int, tuple[int, int]]]:
        """Each clip with its number of frames and their size (H, W).

        Raises:
            ValueError: clips that cannot be read; names them.
        """
        faults = []

        def one(clip: Clip) -> tuple[Clip, int, tuple[int, int]] | None:
            try:
                return clip, *measure(clip)
            except (OSError, ValueError) as error:
                faults.append(str(error))
                return None

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            bar = tqdm(pool.map(one, clips), total=len(clips), desc="check", unit="clip", mininterval=1, delay=2)
            found = [measure for measure in bar if measure is not None]
        if faults:
            raise ValueError(
                f"{len(faults)} of {len(clips)} clips cannot be read:\n  "
                f"{named(sorted(faults), NAMED, separator=chr(10) + '  ')}\n"
                "Replace these files, or take them out of the lists"
            )
        return found

    def loader(self, data: Dataset, *, shuffle: bool = False, **options: Any) -> DataLoader:
        """A DataLoader with this module's workers."""
        # Workers that live on hold random state that no resume restores: training gets new ones each epoch.
        return DataLoader(
            data,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and not shuffle,
            worker_init_fn=_one_thread,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


class FlowData(VideoData):
    """Videos with the flow of every adjacent frame pair in a store.

    Raises:
        ValueError: as `VideoData`; less than one process to compute flow.
    """

    step_option: ClassVar[str]
    """The option that says how large a training step is, over all processes."""

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        estimator: nn.Module,
        store: Path,
        stack_length: int,
        num_workers: int,
        extraction_workers: int | None,
    ) -> None:
        super().__init__(dataset, stack_length=stack_length, num_workers=num_workers)
        if extraction_workers is not None and extraction_workers < 1:
            raise ValueError(
                f"extraction_workers {extraction_workers}: at least 1 process, or null for one per core, or per GPU"
            )
        self.estimator = estimator
        settings: Any = estimator.settings
        self.store = FlowStore(Path(store), store_manifest(settings, dataset.frame_settings))
        self.extraction_workers = extraction_workers

    def prepare_data(self) -> None:
        """Make, download or check the videos, and compute the flow that the store lacks.

        Raises:
            ValueError: the processes of a training cannot share its steps, see `per_process`; a clip is too short, or
                of a size that does not fit.
        """
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.per_process()  # flow may take days
        super().prepare_data()
        clips = self.clips("train") + self.clips("test")
        self._refuse_unfit_flow()
        precompute(self.dataset, clips, self.estimator, self.store, workers=self.extraction_workers)

    def _refuse_unfit_flow(self) -> None:
        """By what the store tells of the clips that it has, and by the other clips' files."""

        def measure(clip: Clip) -> tuple[int, tuple[int, int]]:
            if self.store.made and self.store.has(clip):
                return self.store.n_flow(clip) + 1, self.store.size(clip)
            return self.dataset.measure(clip)

        for subset in ("train", "test"):
            measures = self.measured(self.clips(subset), measure)
            self.refuse_unfit(measures, self.stack_length)
            self.refuse_sizes(subset, measures)

    def refuse_sizes(self, subset: Subset, measures: Sequence[tuple[Clip, int, tuple[int, int]]]) -> None:
        """Check the sizes of a subset's frames.

        Raises:
            ValueError: they do not fit; names the clips.
        """
        del subset, measures

    def setup(self, stage: str) -> None:
        """Check that the store holds the flow that is meant."""
        self.store.check()

    def per_process(self) -> int:
        """One process's share of a training step: all have the same, for their gradients count alike.

        Raises:
            ValueError: the processes do not divide the step; names the option and the nearest values that they do.
        """
        step: int = getattr(self, self.step_option)
        processes = 1 if self.trainer is None else self.trainer.world_size
        if step % processes:
            below = step - step % processes
            fitting = " or ".join(str(size) for size in (below, below + processes) if size)
            raise ValueError(
                f"{self.step_option} {step} counts over all processes, and {processes} processes have no equal share "
                f"in it: give --data.init_args.{self.step_option}={fitting}, or a number of processes that divides "
                f"{step} (DEVICES=, NODES= of make)"
            )
        return step // processes

    def flow_counts(self, subset: Subset, *, at_least: int) -> list[int]:
        """Number of stored flow fields of each clip.

        Raises:
            ValueError: a clip has fewer than `at_least`; names it.
        """
        counts = []
        for clip in self.clips(subset):
            counts.append(self.store.n_flow(clip))
            if counts[-1] < at_least:
                raise ValueError(short_clip(clip, counts[-1] + 1, at_least + 1))
        return counts


def refuse_smaller(measures: Sequence[tuple[Clip, int, tuple[int, int]]], size: tuple[int, int], option: str) -> None:
    """Raise for frames that are smaller than the (height, width) cut out of them.

    Raises:
        ValueError: names the clips.
    """
    small = [
        f"{clip.path}: {height}×{width}" for clip, _, (height, width) in measures if height < size[0] or width < size[1]
    ]
    if small:
        raise ValueError(
            f"{option}: the frames of {len(small)} clips are smaller:\n  "
            f"{named(small, NAMED, separator=chr(10) + '  ')}\n"
            "Lower `crop`, set the dataset's `frame_size`, or take them out of the lists"
        )


def refuse_several_sizes(measures: Sequence[tuple[Clip, int, tuple[int, int]]], way_out: str) -> None:
    """Raise where frames that come into one batch differ in size.

    Raises:
        ValueError: names the sizes, with their clips.
    """
    clips = defaultdict(list)
    for clip, _, size in measures:
        clips[size].append(str(clip.path))
    if len(clips) > 1:
        sizes = sorted(clips.items(), key=lambda item: len(item[1]))
        told = [f"{height}×{width}: {len(paths)} clips, {named(paths, 3)}" for (height, width), paths in sizes]
        raise ValueError(
            f"the frames are of {len(sizes)} sizes, and a batch needs one:\n  "
            f"{named(told, NAMED, separator=chr(10) + '  ')}\n{way_out}"
        )


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)  # the workers are the parallel work


def short_clip(clip: Clip, frames: int, needed: int) -> str:
    """What to say of a clip that is shorter than a stack."""
    return (
        f"{clip.path}: {frames} frames at the dataset's frame rate, a stack needs {needed}; take the clip out "
        f"of the lists, "
        "raise `frame_rate` or lower `stack_length`"
    )
