"""Fills a flow store with any estimator: what is there stays, what is missing is computed, a bad clip stops only
itself."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from datamodules.flow_store import FlowStore
from datamodules.video_dataset import Clip, VideoDataset

PAIRS_AT_ONCE = 32
"""Frame pairs a network estimates in one batch."""

_NAMED = 10


def precompute(
    dataset: VideoDataset, clips: list[Clip], estimator: nn.Module, store: FlowStore, *, workers: int | None = None
) -> int:
    """Estimate and store the flow of every adjacent frame pair of the clips that the store lacks.

    OpenCV's algorithms run in `workers` processes (default: one per core), networks in this one, on a GPU if there is
    one. A clip is stored whole or not at all, so that a killed call goes on where it stopped.

    Returns:
        How many clips were computed.

    Raises:
        ValueError: the store holds other flow; or clips could not be read or estimated: the others are stored, these
            are named.
    """
    store.open_for_writing()
    todo = [clip for clip in clips if not store.has(clip)]
    if not todo:
        return 0
    failed: list[str] = []
    count = min(workers or len(os.sched_getaffinity(0)), len(todo))
    if estimator.differentiable:
        results = _in_turn(dataset, todo, estimator.to("cuda" if torch.cuda.is_available() else "cpu").eval(), store)
    elif count == 1:
        results = _in_turn(dataset, todo, estimator, store)
    else:
        results = _by_processes(dataset, todo, estimator, store, count)
    with tqdm(
        total=len(todo), desc=f"{store.manifest['estimator']['algorithm']} flow", unit="clip", mininterval=1
    ) as bar:
        for fault in results:
            failed += [fault] if fault else []
            bar.update()
    estimator.to("cpu")
    if failed:
        named = "\n  ".join(failed[:_NAMED])
        more = f"\n  … and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise ValueError(
            f"{len(failed)} of {len(todo)} clips gave no flow (the others are stored in {store.folder}):\n  "
            f"{named}{more}\n"
            "Replace these files, or take them out of the lists; the next call computes only what is missing"
        )
    return len(todo)


def estimate_clip(frames: np.ndarray, estimator: nn.Module) -> np.ndarray:
    """Flow of every adjacent pair of a clip's frames: uint8 (T, H, W, 3) -> float32 (T-1, 2, H, W) in pixels.

    Raises:
        ValueError: the clip has fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"{len(frames)} frame: flow needs two")
    parameter = next(estimator.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    stack = to_frames(frames)
    with torch.inference_mode():
        flows = [
            estimator(stack[start : start + PAIRS_AT_ONCE + 1].unsqueeze(0).to(device))[0].float().cpu()
            for start in range(0, len(stack) - 1, PAIRS_AT_ONCE)
        ]
    return torch.cat(flows).numpy()


def to_frames(frames: np.ndarray) -> torch.Tensor:
    """uint8 (…, H, W, 3) -> float32 (…, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 255


def _store_clip(dataset: VideoDataset, clip: Clip, estimator: nn.Module, store: FlowStore) -> str | None:
    """Decode, estimate, store; returns what went wrong with this clip, if anything did."""
    try:
        store.write(clip, estimate_clip(dataset.decode(clip), estimator))
    except (ValueError, OSError, cv2.error) as error:
        message = str(error)
        return message if str(clip.path) in message else f"{clip.path}: {message}"
    return None


def _in_turn(dataset: VideoDataset, clips: list[Clip], estimator: nn.Module, store: FlowStore) -> Iterator[str | None]:
    for clip in clips:
        yield _store_clip(dataset, clip, estimator, store)


def _by_processes(
    dataset: VideoDataset, clips: list[Clip], estimator: nn.Module, store: FlowStore, count: int
) -> Iterator[str | None]:
    context = multiprocessing.get_context("spawn")  # a fork would carry this process's threads' locks along
    with ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(dataset, estimator, store)
    ) as pool:
        futures: list[Future[str | None]] = [pool.submit(_work, clip) for clip in clips]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_job: tuple[VideoDataset, nn.Module, FlowStore]


def _start_worker(dataset: VideoDataset, estimator: nn.Module, store: FlowStore) -> None:
    global _job
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _job = dataset, estimator, store


def _work(clip: Clip) -> str | None:
    dataset, estimator, store = _job
    return _store_clip(dataset, clip, estimator, store)
