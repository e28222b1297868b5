"""`python -m lightning_modules.prediction_paths`: three ways from a clip to its class, which must agree on every stack.

The flow is read from the PNGs that the classifier was trained on; or estimated from the frames in memory and rounded to
8 bits; or estimated from the frames as they come back from a lossless video. Float flow, which the sweep attacks unless
`eight_bit` is set, stands beside them and may differ.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor
from tqdm import tqdm

from attacks.clean_pass import clean_pass
from attacks.eight_bit import to_bytes, to_frames
from attacks.report.path_table import write_paths
from attacks.settings import check_systems
from attacks.video_files import read_video, write_lossless
from datamodules.batches import VideoBatch
from datamodules.flow_codec import decode, encode
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.video_dataset import Clip
from lightning_modules.attacked_systems import AttackedSystems
from lightning_modules.cli import main
from lightning_modules.model_under_attack import ModelUnderAttack


@dataclass
class Agreement:
    """Counts over the stacks of one system."""

    stacks: int = 0
    memory: int = 0
    """the class from memory is the class from PNGs"""
    video: int = 0
    """the class from the lossless video is the class from memory"""
    equal_logits: int = 0
    """all logits of the three are equal, bit for bit"""
    levels: int = 0
    """8-bit flow values, of all pixels, that differ between PNGs and memory"""
    float_differs: int = 0
    """stacks that float flow puts in another class than 8-bit flow"""
    differing: list[str] = field(default_factory=list)
    """clip and stack of each difference among the three"""

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "differing"}


def check_clip(system: ModelUnderAttack, store: FlowStore, clip: Clip, frames: Tensor, found: Agreement) -> None:
    """Add one clip's stacks (S, T, 3, H, W), contiguous from its first frame on, to `found`.

    The stacks of a clip are classified in one batch on each path: another batch could give other last bits.
    """
    length = frames.shape[1]
    planes = np.stack([store.read_planes(clip, s * length, length - 1) for s in range(len(frames))])
    flow, flow_again = _estimate(system, frames), _estimate(system, _through_lossless_video(frames))
    stored = torch.from_numpy(decode(planes)).to(flow)
    with _eight_bit(system, False):
        from_png, from_float = _classify(system, stored), _classify(system, flow)
    with _eight_bit(system, True):
        from_memory, from_video = _classify(system, flow), _classify(system, flow_again)
    memory = from_memory.argmax(1) == from_png.argmax(1)
    video = from_video.argmax(1) == from_memory.argmax(1)
    found.stacks += len(frames)
    found.memory += int(memory.sum())
    found.video += int(video.sum())
    found.equal_logits += int(((from_memory == from_png) & (from_video == from_memory)).all(1).sum())
    found.levels += int((encode(flow.cpu().numpy()) != planes).sum())
    found.float_differs += int((from_float.argmax(1) != from_memory.argmax(1)).sum())
    found.differing += [f"{clip.name}, stack {s + 1}" for s in (~(memory & video)).nonzero().flatten().tolist()]


def check_paths(
    system: ModelUnderAttack, store: FlowStore, clips: Sequence[Clip], videos: Iterable[VideoBatch]
) -> Agreement:
    """All stacks of these videos on the three paths, and on the fourth.

    Raises:
        FileNotFoundError: the store, or a clip of it, is not there.
        ValueError: the store holds other flow than the system's.
    """
    store.check()
    found = Agreement()
    for video in videos:
        frames = video.frames.to(system.device)
        check_clip(system, store, clips[int(video.clip)], frames, found)
    return found


def report(agreements: dict[str, Agreement]) -> str:
    """A line for each system, and one for each difference."""
    quantities = ("stacks", "PNG = memory", "memory = video", "equal logits", "8-bit levels off", "float differs")
    lines = ["  ".join((f"{'system':12}", *quantities))]
    for name, a in agreements.items():
        counts = (a.stacks, a.memory, a.video, a.equal_logits, a.levels, a.float_differs)
        shown = [f"{count:>{len(quantity)}}" for quantity, count in zip(quantities, counts, strict=True)]
        lines.append("  ".join((f"{name:12}", *shown)))
        lines += [f"  differs: {where}" for where in a.differing]
    return "\n".join(lines)


class PredictionPaths(AttackedSystems):
    """The command: prints the agreements of each system, writes them as paths.json into the sweep's folder, where the
    report finds them, and exits with 1 where two paths give different classes.

    Raises:
        ValueError: the systems are not those that the sweep attacked.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(args)
        stores, dataset = Path(self.config["stores"]), self.data.dataset
        sweep = None if self.config["sweep"] is None else Path(self.config["sweep"])
        if sweep is not None:
            check_systems(sweep, self.systems)
        clips = self.data.clips("test")
        agreements = {}
        for name, system in self.systems.items():
            settings: Any = system.estimator.settings
            store = FlowStore(stores / name, store_manifest(settings, dataset.frame_settings))
            loader = self.data.test_dataloader()
            shown = tqdm(loader, desc=f"paths of {name}", unit="clip", mininterval=1)
            agreements[name] = check_paths(system, store, clips, shown)
        print(report(agreements))
        if sweep is not None:
            write_paths(sweep, {name: agreement.counts for name, agreement in agreements.items()})
        if any(agreement.differing for agreement in agreements.values()):
            sys.exit(1)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--stores", type=Path, required=True, help="Folder of the flow stores, one for each system."
        )
        parser.add_argument("--sweep", type=Path | None, default=None, help="Folder of a sweep that takes the result.")


def _estimate(system: ModelUnderAttack, frames: Tensor) -> Tensor:
    """Flow (S, T-1, 2, H, W) as an attack's clean pass has it, stack by stack."""
    labels = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
    flow = clean_pass(system, frames, labels, gradient=False, batch_size=1).flow
    assert flow is not None
    return flow


def _through_lossless_video(frames: Tensor) -> Tensor:
    """The stacks as one video file, written and read back."""
    images = to_bytes(frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        write_lossless(path, images.reshape(-1, *images.shape[2:]))
        return to_frames(read_video(path).reshape(images.shape), frames)


@torch.no_grad()
def _classify(system: ModelUnderAttack, flow: Tensor) -> Tensor:
    return system.classify(flow)


@contextmanager
def _eight_bit(system: ModelUnderAttack, on: bool) -> Iterator[None]:
    before, system.eight_bit = system.eight_bit, on
    try:
        yield
    finally:
        system.eight_bit = before


if __name__ == "__main__":
    main(command=PredictionPaths)
