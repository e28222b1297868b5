"""How fast stacks are read from a flow store, against bare cv2.imdecode of the same bytes: `make bench-flow-reading`.

The store is made of smooth random flow; a stack is 20 planes. One process reads random stacks and crops them; then
DataLoader workers do.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from side_by_side import median_ratio, side_by_side
from torch.utils.data import DataLoader, Dataset

from attacks.processor import processor_name
from datamodules.flow_stacks import RandomStacks
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.video_dataset import Clip

FIELDS = 10


def make_store(folder: Path, kind: str, clips: int, fields: int, size: tuple[int, int]) -> tuple[FlowStore, list[Clip]]:
    """Smooth random flow, as compressible as real one."""
    store = FlowStore(folder, store_manifest({"algorithm": "benchmark"}, {}), kind)
    store.open_for_writing()
    rng = np.random.default_rng(0)
    found = []
    for number in range(clips):
        coarse = rng.normal(0, 2, (2 * fields, size[0] // 8, size[1] // 8)).astype(np.float32)
        smooth = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC) for plane in coarse])
        noisy = smooth + rng.normal(0, 0.05, smooth.shape).astype(np.float32)
        found.append(Clip(folder / "manifest.json", f"Class/clip_{number:03d}", 0, "Class"))
        store.write(found[-1], noisy.reshape(fields, 2, *size))
    return store, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--fields", type=int, default=90, help="flow fields of a clip")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--stacks", type=int, default=100, help="read in a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in ("archive", "loose"):
            store, clips = make_store(Path(scratch) / kind, kind, options.clips, options.fields, tuple(options.size))
            rng = np.random.default_rng(1)
            starts = rng.integers(0, options.fields - FIELDS, options.stacks)
            which = [clips[i] for i in rng.integers(0, len(clips), options.stacks)]
            held = [
                [np.frombuffer(png, np.uint8) for png in store.layout.planes(clip.name, int(start), FIELDS)]
                for clip, start in zip(which, starts, strict=True)
            ]

            def decode(held=held) -> None:
                for pngs in held:
                    for png in pngs:
                        cv2.imdecode(png, cv2.IMREAD_UNCHANGED)

            def read(store=store, which=which, starts=starts) -> None:
                for clip, start in zip(which, starts, strict=True):
                    store.read_planes(clip, int(start), FIELDS)

            stacks = RandomStacks(store, which, [options.fields] * len(which), length=FIELDS, crop=224, scales=(1.0,))

            def load(stacks: Dataset = stacks) -> None:
                for index in range(options.stacks):
                    stacks[index]

            seconds = side_by_side({"imdecode": decode, "read": read, "load": load}, rounds=options.rounds)
            planes = 2 * FIELDS * options.stacks
            size = sum(png.size for pngs in held for png in pngs) / planes
            print(f"{kind}: {options.size[0]} × {options.size[1]}, {size / 1e3:.0f} kB a plane, {processor_name()}")
            for name, title in (("read", "read_planes"), ("load", "training stacks, cropped, float")):
                share = 1 / median_ratio(seconds[name], seconds["imdecode"])
                rate = options.stacks / statistics.median(seconds[name])
                print(f"  {title:34}{rate:8.1f} stacks/s {share:7.0%} of bare imdecode")
            loaders = {
                str(n): DataLoader(stacks, batch_size=10, num_workers=n, persistent_workers=True) for n in (1, 2)
            }
            times = side_by_side(
                {n: lambda loader=loader: list(loader) for n, loader in loaders.items()}, rounds=options.rounds
            )
            print(f"  {'2 DataLoader workers':34}{'':18} {median_ratio(times['1'], times['2']):6.2f}× one")


if __name__ == "__main__":
    main()
