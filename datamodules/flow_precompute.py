"""Fills a flow store with any estimator: what is there stays, what is missing is computed, a bad clip stops only
itself.

OpenCV's algorithms run in a process per core, networks in one per GPU, or in this process where there is none. Several
machines take a shard each.
"""

import errno
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

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


class ExtractionError(ValueError):
    """Clips gave no flow; `faults` has a line for each. The others are stored."""

    def __init__(self, faults: Sequence[str], total: int, store: FlowStore) -> None:
        self.faults = sorted(faults)
        named = "\n  ".join(self.faults[:_NAMED])
        more = f"\n  … and {len(self.faults) - _NAMED} more" if len(self.faults) > _NAMED else ""
        super().__init__(
            f"{len(self.faults)} of {total} clips gave no flow (the others are stored in {store.folder}):\n  "
            f"{named}{more}\n"
            "Replace these files, or take them out of the lists; the next call computes only what is missing"
        )


class NetworkError(ValueError):
    """The network gives no finite flow, whichever the clip; what was finished is stored."""


def precompute(
    dataset: VideoDataset,
    clips: Sequence[Clip],
    estimator: nn.Module,
    store: FlowStore,
    *,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    anew: bool = False,
) -> int:
    """Estimate and store the flow of every adjacent frame pair of the clips that the store lacks.

    A clip is stored whole or not at all, so that a killed call goes on where it stopped.

    Args:
        workers: processes; default one per core for OpenCV's algorithms, one per GPU for networks.
        shard: (i, n): only every n-th clip, from the i-th (the first is 0): another machine takes the others.
        anew: the clips that the store has, too; each stays as it is until its new flow is computed.

    Returns:
        How many clips were computed.

    Raises:
        ValueError: the store holds other flow, or something is to be computed and other versions made it; no such
            shard or number of workers.
        ExtractionError: clips could not be read or estimated: the others are stored, these are named.
        NetworkError: the network's weights or its flow are not finite; names the network, and its checkpoint.
        OSError: the disk is full; what was finished is stored.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers}: at least 1 process; without the option one per core, or per GPU")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: counted from 0, it lies below their number")
    todo = [clip for clip in list(clips)[index::count] if anew or not store.has(clip)]
    if todo:
        _check_weights(estimator)
    if store.made and not todo:
        store.check()
    else:
        store.open_for_writing()
    if not todo:
        return 0
    of = f", shard {index} of {count}" if count > 1 else ""
    failed: list[str] = []
    with tqdm(
        total=len(todo), desc=f"{store.manifest['estimator']['algorithm']} flow{of}", unit="clip", mininterval=1
    ) as bar:
        for fault in _results(dataset, todo, estimator, store, workers):
            failed += [fault] if fault else []
            bar.update()
    if failed:
        raise ExtractionError(failed, len(todo), store)
    return len(todo)


def estimate_clip(frames: np.ndarray, estimator: nn.Module) -> np.ndarray:
    """Flow of every adjacent pair of a clip's frames: uint8 (T, H, W, 3) -> float32 (T-1, 2, H, W) in pixels.

    An estimator that sees 8-bit images itself (`flow_of_images`, from and to arrays of these shapes) is given them as
    they are; any other gets frames in [0, 1].

    Convolutions keep to `torch.get_float32_matmul_precision()`, whichever command line the call comes from: by its
    default float32 is float32, where cuDNN's own default is TF32.

    Raises:
        ValueError: the clip has fewer than two frames.
    """
    if len(frames) < 2:
        raise ValueError(f"{len(frames)} frame: flow needs two")
    of_images: Callable[[np.ndarray], np.ndarray] | None = getattr(estimator, "flow_of_images", None)
    if of_images is not None:
        return of_images(frames)
    parameter = next(estimator.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    stack = to_frames(frames)
    with torch.inference_mode(), _convolutions_as_precise_as_products():
        flows = [
            estimator(stack[start : start + PAIRS_AT_ONCE + 1].unsqueeze(0).to(device))[0].float().cpu()
            for start in range(0, len(stack) - 1, PAIRS_AT_ONCE)
        ]
    return torch.cat(flows).numpy()


@contextmanager
def _convolutions_as_precise_as_products() -> Iterator[None]:
    """As for the attacks, in a package that this one does not know."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.get_float32_matmul_precision() != "highest"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def to_frames(frames: np.ndarray) -> torch.Tensor:
    """uint8 (…, H, W, 3) -> float32 (…, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 255


def _results(
    dataset: VideoDataset, todo: list[Clip], estimator: nn.Module, store: FlowStore, workers: int | None
) -> Iterator[str | None]:
    """For each clip what went wrong with it, if anything did."""
    if estimator.differentiable:
        gpus = torch.cuda.device_count()
        count = min(workers or max(gpus, 1), len(todo))
    else:
        gpus = 0
        count = min(workers or len(os.sched_getaffinity(0)), len(todo))
    if count > 1:
        yield from _by_processes(dataset, todo, estimator, store, count, gpus)
        return
    try:
        estimator.to("cuda" if gpus else "cpu").eval()
        for clip in todo:
            yield _store_clip(dataset, clip, estimator, store)
    finally:
        estimator.to("cpu")


def _store_clip(dataset: VideoDataset, clip: Clip, estimator: nn.Module, store: FlowStore) -> str | None:
    """Decode, estimate, store; returns what went wrong with this clip, if anything did."""
    try:
        flow = estimate_clip(dataset.decode(clip), estimator)
    except (ValueError, OSError, cv2.error) as error:
        message = str(error)
        return message if str(clip.path) in message else f"{clip.path}: {message}"
    if estimator.differentiable and not np.isfinite(flow).all():
        raise NetworkError(
            f"{_named(estimator)} gives flow that is not finite, in {np.count_nonzero(~np.isfinite(flow))} of "
            f"{flow.size} values for {clip.path}: the network is at fault, not the video. Train it again (it may have "
            f"diverged), or give another checkpoint; what was finished is stored in {store.folder}"
        )
    try:
        store.write(clip, flow)
    except ValueError as error:
        return f"{clip.path}: {error}"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(store.folder).free / 1e6
        raise OSError(
            error.errno,
            f"no space for {clip.name} in {store.folder} ({free:.0f} MB free): make room; what was finished is "
            "stored, and the next call goes on from there",
        ) from error
    return None


def _check_weights(estimator: nn.Module) -> None:
    """Weights that are not finite are the network's fault, found before the first clip."""
    for name, weights in estimator.named_parameters():
        if not weights.isfinite().all():
            raise NetworkError(
                f"{_named(estimator)} has weights that are not finite, {name} first: no video gives flow with them. "
                "Train it again (it has diverged), or give another checkpoint"
            )


def _named(estimator: nn.Module) -> str:
    checkpoint = getattr(estimator, "checkpoint", None)
    return type(estimator).__name__ + ("" if checkpoint is None else f" with the weights of {checkpoint}")


def _by_processes(
    dataset: VideoDataset, clips: list[Clip], estimator: nn.Module, store: FlowStore, count: int, gpus: int
) -> Iterator[str | None]:
    context = multiprocessing.get_context("spawn")  # a fork would carry this process's threads' locks along
    numbers = context.Queue()
    for number in range(count):
        numbers.put(number)
    precision = torch.get_float32_matmul_precision()  # a spawned process would have torch's default
    with ProcessPoolExecutor(
        count,
        mp_context=context,
        initializer=_start_worker,
        initargs=(dataset, estimator, store, numbers, gpus, precision),
    ) as pool:
        try:
            # A few at a time: a clip that fails for good stops the rest at once.
            waiting = iter(clips)
            running: set[Future[str | None]] = {
                pool.submit(_work, clip) for _, clip in zip(range(2 * count), waiting, strict=False)
            }
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_work, clip) for _, clip in zip(done, waiting, strict=False)}
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a process that computes flow was killed from outside, by the system for want of memory for one; "
                f"run it again with fewer than {count} workers: what was finished is stored"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_job: tuple[VideoDataset, nn.Module, FlowStore]


def _start_worker(
    dataset: VideoDataset,
    estimator: nn.Module,
    store: FlowStore,
    numbers: "multiprocessing.Queue[int]",
    gpus: int,
    precision: str,
) -> None:
    global _job
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(precision)
    device = f"cuda:{numbers.get() % gpus}" if gpus else "cpu"
    _job = dataset, estimator.to(device).eval(), store


def _end_with_parent() -> None:
    """A worker whose parent was killed would finish its clip and then wait for the next one forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(clip: Clip) -> str | None:
    dataset, estimator, store = _job
    return _store_clip(dataset, clip, estimator, store)
