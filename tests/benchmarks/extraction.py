"""How fast flow is extracted, against a single-threaded loop over cv2 alone: `make bench-extraction UCF101=DIR`.

The loop decodes with cv2, takes the same frames, estimates, rounds and writes PNGs, one pair after the other. Both do
the same clips, in turns; the extraction's time includes the start of its processes. The last line reckons what the
whole of UCF-101 takes at this rate.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from attacks.processor import processor_name
from datamodules.flow_precompute import precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip
from datamodules.video_decode import nearest_in_time
from lightning_modules.flow.farneback import Farneback
from lightning_modules.flow.opencv_flow import OpenCVFlow
from lightning_modules.flow.tvl1 import TVL1

CLIPS, PAIRS = 13_320, 1_150_000
"""UCF-101 at 12 frames per second."""


def loop(clips: list[Clip], algorithm: str, folder: Path, max_frames: int | None) -> int:
    """One thread, cv2 alone; the number of pairs."""
    cv2.setNumThreads(1)
    farneback = {name: value for name, value in Farneback().options.items() if name != "gaussian_window"}
    pairs = 0
    for clip in clips:
        target = folder / clip.name
        target.mkdir(parents=True)
        capture = cv2.VideoCapture(str(clip.path))
        rate, frames = capture.get(cv2.CAP_PROP_FPS), []
        while (read := capture.read())[0]:
            frames.append((len(frames) / rate, cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY)))
        frames = list(nearest_in_time(frames, 12.0))[:max_frames]
        tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
        for number, (first, second) in enumerate(pairwise(frames), 1):
            if algorithm == "tvl1":
                flow = tvl1.calc(first, second, None)
            else:
                flow = cv2.calcOpticalFlowFarneback(first, second, None, flags=0, **farneback)
            planes = np.rint((np.clip(flow, -20, 20) + 20) * np.float32(6.375)).astype(np.uint8)
            cv2.imwrite(str(target / f"flow_x_{number:05d}.png"), planes[..., 0])
            cv2.imwrite(str(target / f"flow_y_{number:05d}.png"), planes[..., 1])
        pairs += len(frames) - 1
    return pairs


def extract(dataset: UCF101, clips: list[Clip], estimator: OpenCVFlow, folder: Path, workers: int) -> None:
    """What `make flow-…` does."""
    store = FlowStore(folder, store_manifest(estimator.settings, dataset.frame_settings))
    precompute(dataset, clips, estimator, store, workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ucf101", type=Path)
    parser.add_argument("--algorithm", choices=("tvl1", "farneback"), default="tvl1")
    parser.add_argument("--clips", type=int, help="default 8; 240 for Farneback, or the start counts")
    parser.add_argument("--max-frames", type=int, help="of a clip; default all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    options = parser.parse_args()
    dataset = UCF101(options.ucf101, allow_missing=True, max_frames=options.max_frames)
    clips = [*dataset.clips("train"), *dataset.clips("test")]
    count = options.clips or (8 if options.algorithm == "tvl1" else 240)
    clips = clips[:: max(1, len(clips) // count)][:count]
    estimator = TVL1() if options.algorithm == "tvl1" else Farneback()
    seconds: dict[str, list[float]] = {"loop over cv2": [], **{f"{n} processes": [] for n in options.workers}}
    for _ in range(options.rounds):
        scratch = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        pairs = loop(clips, options.algorithm, scratch / "loop", options.max_frames)
        seconds["loop over cv2"].append(time.perf_counter() - start)
        for workers in options.workers:
            start = time.perf_counter()
            extract(dataset, clips, estimator, scratch / str(workers), workers)
            seconds[f"{workers} processes"].append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in (scratch / str(options.workers[0])).rglob("*.zip"))
        shutil.rmtree(scratch)
    print(f"{options.algorithm}, {len(clips)} clips, {pairs} pairs, OpenCV {cv2.__version__}, {processor_name()}")
    base = seconds["loop over cv2"]
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(base, times, strict=True))
        print(
            f"{name:16} {statistics.median(times):8.1f} s {pairs / statistics.median(times):8.2f} pairs/s {ratio:6.2f}×"
        )
    fastest = min(map(statistics.median, seconds.values()))
    hours = fastest / pairs * PAIRS / 3600
    print(
        f"UCF-101 at this rate: {hours:.0f} hours on this machine, {size / pairs * PAIRS / 1e9:.0f} GB in {CLIPS} files"
    )


if __name__ == "__main__":
    main()
