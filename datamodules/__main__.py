"""`python -m datamodules data|extract|verify|repair|import_flow`: datasets and flow stores from the command line."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from torch import nn
from tqdm import tqdm

from datamodules import download, flow_codec, flow_extraction, flow_finding, flow_import, yaml_environment
from datamodules.errors import ended_by_one_message
from datamodules.flow_layouts import Kind
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.official_lists import NAMED
from datamodules.video_dataset import Clip, VideoDataset


def data(
    dataset: VideoDataset,
    *,
    decode: bool = True,
    fetch: Path | None = None,
    videos: str = download.VIDEOS,
    lists: str = download.LISTS,
    named: int = NAMED,
) -> None:
    """Make or check a dataset: say what is used of it, what is missing and what cannot be decoded.

    Args:
        dataset: the videos.
        decode: decode every clip; without it only the files are looked for.
        fetch: a folder into which UCF-101 and its lists are downloaded and unpacked first, as far as they are missing.
        videos: where the archive of the videos is.
        lists: where the archive of the official lists is.
        named: how many names of each kind of unused videos and files are shown.
    """
    if fetch is not None:
        download.download_ucf101(fetch, videos=videos, lists=lists)
    clips, faults = flow_extraction.present_clips(dataset)
    if named != NAMED:
        print("\n".join(dataset.account(named)))
    if decode:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = pool.map(lambda clip: _undecodable(dataset, clip), clips)
            faults += filter(None, tqdm(results, total=len(clips), desc="decode", unit="clip", mininterval=1))
    _end(faults, f"{len(clips)} clips" + (", all of them can be decoded" if decode else ""))


def extract(
    dataset: VideoDataset,
    estimator: nn.Module,
    store: Path,
    *,
    layout: Kind | None = None,
    workers: int | None = None,
    shard: str | None = None,
) -> None:
    """Compute and store the flow of every adjacent frame pair that the store lacks; goes on where a killed one stopped.

    Args:
        dataset: the videos.
        estimator: the flow algorithm.
        store: folder of the flow store.
        layout: of a new store: one archive a clip, or loose PNG files.
        workers: processes; default one per core for OpenCV's algorithms, one per GPU for networks.
        shard: i/n, this call computes every n-th clip from the i-th, counted from 0; default what SLURM, torchrun or
            the Trainer's variables say.
    """
    flow = _store(dataset, estimator, store, layout)
    part = flow_extraction.shard_of(shard)
    faults = flow_extraction.extract(dataset, estimator, flow, workers=workers, shard=part)
    _end(faults, f"{store}: complete" + (f" as far as shard {part[0]} of {part[1]} goes" if part[1] > 1 else ""))


def verify(dataset: VideoDataset, estimator: nn.Module, store: Path) -> None:
    """Read every plane of a store again, and list what is missing or damaged.

    Args:
        dataset: the videos.
        estimator: the flow algorithm.
        store: folder of the flow store.
    """
    _end(flow_extraction.verify(dataset, _store(dataset, estimator, store))[1], f"{store}: complete and sound")


def repair(dataset: VideoDataset, estimator: nn.Module, store: Path, *, workers: int | None = None) -> None:
    """Compute again what `verify` finds, and nothing else.

    Args:
        dataset: the videos.
        estimator: the flow algorithm.
        store: folder of the flow store.
        workers: processes, as for `extract`.
    """
    flow = _store(dataset, estimator, store)
    count, faults = flow_extraction.repair(dataset, estimator, flow, workers=workers)
    _end(faults, f"{store}: {count} clips computed again")


def import_flow(
    source: Path,
    dataset: VideoDataset,
    estimator: nn.Module,
    store: Path,
    *,
    bound: float = flow_codec.FLOW_BOUND,
) -> None:
    """Take over flow that is there as images: u/ and v/ folders or flow_x_, flow_y_ names, JPEG or PNG, from 0 or 1.

    Args:
        source: the folder of the images.
        dataset: the videos they were computed from.
        estimator: lightning_modules.flow.imported.ImportedFlow with the algorithm's name.
        store: folder of the flow store to make.
        bound: 0 and 255 of the images stand for -bound and bound pixels; what is not of ±20 is rounded to its levels.
    """
    converted = flow_import.conversion(bound)
    clips, faults = flow_extraction.present_clips(dataset)
    found = flow_finding.find_flow(source, clips)
    print(f"{source}: {found.description}; {converted}")
    faults += flow_import.import_flow(dataset, clips, found, _store(dataset, estimator, store), bound=bound)
    _end(faults, f"{store}: {len(clips)} clips")


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; what a user can mend ends as one message."""
    yaml_environment.install()
    with ended_by_one_message():
        auto_cli(
            [data, extract, verify, repair, import_flow],
            args=None if args is None else list(args),
            as_positional=False,
            prog="python -m datamodules",
            parser_mode=yaml_environment.MODE,
        )


def _store(dataset: VideoDataset, estimator: nn.Module, store: Path, layout: Kind | None = None) -> FlowStore:
    settings: Any = estimator.settings
    return FlowStore(store, store_manifest(settings, dataset.frame_settings), layout)


def _undecodable(dataset: VideoDataset, clip: Clip) -> str | None:
    try:
        dataset.decode(clip)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _end(faults: list[str], well: str) -> None:
    if faults:
        sys.exit(flow_extraction.summary(faults))
    print(well)


if __name__ == "__main__":
    main()
