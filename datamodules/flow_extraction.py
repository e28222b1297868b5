"""Flow extraction as a job of its own, `make flow-tvl1`, on one machine, on several, or as shards of a job array; and
the inspection of what it left, `make verify-tvl1`, `make repair-tvl1`."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
from torch import nn
from tqdm import tqdm

from datamodules.flow_precompute import ExtractionError, precompute
from datamodules.flow_store import FlowStore
from datamodules.official_lists import NAMED
from datamodules.video_dataset import Clip, VideoDataset


def present_clips(dataset: VideoDataset) -> tuple[list[Clip], list[str]]:
    """The clips that are there, and a line for each that is not: one bad clip stops nothing but itself.

    Raises:
        FileNotFoundError: there is nothing at all.
    """
    try:
        dataset.prepare()
    except FileNotFoundError:  # `available` says the same clip by clip, or raises where nothing is there
        found = dataset.available()
        print("".join(f"{line}\n" for line in dataset.account(NAMED)), end="")
        return found
    return dataset.available()


def extract(
    dataset: VideoDataset, estimator: nn.Module, store: FlowStore, *, workers: int | None, shard: tuple[int, int]
) -> list[str]:
    """Fill the store with this shard's clips; a line for each that gave no flow."""
    clips, faults = present_clips(dataset)
    try:
        precompute(dataset, clips, estimator, store, workers=workers, shard=shard)
    except ExtractionError as error:
        faults += error.faults
    return faults


def verify(dataset: VideoDataset, store: FlowStore) -> tuple[list[Clip], list[str]]:
    """Read every plane again: the clips whose flow is missing or damaged, with a line for each."""
    store.check()
    clips, faults = present_clips(dataset)
    bad = []
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoding and hashing release the lock
        results = pool.map(store.fault, clips)
        shown = tqdm(zip(clips, results, strict=True), total=len(clips), desc="verify", unit="clip", mininterval=1)
        for clip, fault in shown:
            if fault is not None:
                bad.append(clip)
                faults.append(fault)
    return bad, faults


def repair(
    dataset: VideoDataset, estimator: nn.Module, store: FlowStore, *, workers: int | None
) -> tuple[int, list[str]]:
    """Compute again what `verify` finds, and nothing else: how many clips, and a line for each that gave no flow.

    What is there of a clip stays until its new flow is computed, and for good where its video gives none.
    """
    bad, _ = verify(dataset, store)
    faults = present_clips(dataset)[1]
    try:
        return precompute(dataset, bad, estimator, store, workers=workers, anew=True), faults
    except ExtractionError as error:
        return len(bad) - len(error.faults), faults + error.faults


def shard_of(text: str | None, environment: dict[str, str] | None = None) -> tuple[int, int]:
    """`0/4` -> (0, 4). Without a text, the place of this process among those that SLURM, torchrun or the Trainer's
    variables (NODE_RANK, WORLD_SIZE) tell of; else all in one.

    Raises:
        ValueError: no such shard; names it.
    """
    found = os.environ if environment is None else environment
    if text is not None:
        index, _, count = text.partition("/")
    elif "SLURM_NTASKS" in found:
        if "SLURM_PROCID" not in found:
            raise ValueError(
                f"SLURM_NTASKS is {found['SLURM_NTASKS']}, but SLURM_PROCID is not set, which tells this task from the "
                "others: start it by srun, or say which part it computes, --shard=0/1 for all"
            )
        index, count = found["SLURM_PROCID"], found["SLURM_NTASKS"]
    elif "WORLD_SIZE" in found:
        local = int(found.get("NODE_RANK", 0)) * int(found.get("LOCAL_WORLD_SIZE", 1)) + int(found.get("LOCAL_RANK", 0))
        index, count = found.get("RANK", str(local)), found["WORLD_SIZE"]
    else:
        return 0, 1
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"shard {index}/{count}: give i/n with i from 0 to n - 1, 0/4 for the first of four")
    return int(index), int(count)


def summary(faults: Sequence[str]) -> str:
    """All faults, one a line, counted."""
    return f"{len(faults)} faults:\n  " + "\n  ".join(sorted(faults))
