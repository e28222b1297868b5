"""`python -m lightning_modules.prediction_paths`: three ways from a clip to its class, which must agree on every stack.

The flow is read from the PNGs that the classifier was trained on; or estimated from the frames in memory and rounded to
8 bits; or estimated from the frames as they come back from a lossless video. Float flow, which the sweep attacks unless
`eight_bit` is set, stands beside them and may differ.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from attacks.settings import check_settings, check_systems, victim_settings, write_settings
from attacks.video_files import read_video, write_lossless
from datamodules.flow_codec import decode, encode
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.frame_stacks import FrameStacks
from datamodules.video_dataset import Clip
from lightning_modules.agreements import Agreement, Agreements
from lightning_modules.attacked_systems import AttackedSystems
from lightning_modules.cli import main
from lightning_modules.model_under_attack import ModelUnderAttack

KEPT = "paths"
"""Folder in a sweep's of what is kept of each clip, and of the settings that decided it."""


def check_clip(system: ModelUnderAttack, store: FlowStore, clip: Clip, frames: Tensor) -> Agreement:
    """One clip's stacks (S, T, 3, H, W), contiguous from its first frame on, on the three paths and on the fourth.

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
    return Agreement(
        stacks=len(frames),
        memory=int(memory.sum()),
        video=int(video.sum()),
        equal_logits=int(((from_memory == from_png) & (from_video == from_memory)).all(1).sum()),
        levels=int((encode(flow.cpu().numpy()) != planes).sum()),
        float_differs=int((from_float.argmax(1) != from_memory.argmax(1)).sum()),
        differing=[f"{clip.name}, stack {s + 1}" for s in (~(memory & video)).nonzero().flatten().tolist()],
    )


def check_paths(
    name: str, system: ModelUnderAttack, store: FlowStore, data: FrameStacks, kept: Path | None = None
) -> Agreement:
    """All stacks of the test clips, with a progress bar; clips whose agreement is kept already are not read.

    Args:
        name: of the system.
        system: that is asked.
        store: of its flow, checked.
        data: the test clips.
        kept: file that takes each clip's agreement at once.

    Raises:
        FileNotFoundError: the store lacks a clip.
        ValueError: a line of `kept` is damaged.
    """
    clips, loader = data.clips("test"), data.test_dataloader()
    videos: Any = loader.dataset
    asked = [clips[index] for index in videos.chosen]
    found = Agreements(kept, store, asked)
    videos.chosen = [index for index in videos.chosen if clips[index].name not in found.of]
    with tqdm(total=len(asked), initial=len(found.of), desc=f"paths of {name}", unit="clip", mininterval=1) as bar:
        bar.set_postfix(differences=found.differences)
        for video in loader:
            clip = clips[int(video.clip)]
            found.add(clip, check_clip(system, store, clip, video.frames.to(system.device)))
            bar.set_postfix(differences=found.differences, refresh=False)
            bar.update()
    return sum((found.of[clip.name] for clip in asked), Agreement())


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
    report finds them, and exits with 1 where two paths give different classes. What it finds for a clip is kept in
    paths/<system>.jsonl there, so that a killed check goes on.

    Raises:
        FileNotFoundError: a store, or a clip of it, is not there.
        ValueError: the systems are not those that the sweep attacked; a store holds other flow than its system's; what
            is kept was found with other settings, or is damaged.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(args)
        sweep = None if self.config["sweep"] is None else Path(self.config["sweep"])
        if sweep is not None:
            check_systems(sweep, self.systems)
        stores = {name: self._store(name, system) for name, system in self.systems.items()}
        for store in stores.values():
            store.check()  # the last one, too, before hours of work
        if sweep is not None:
            self._check_kept(sweep / KEPT)
        agreements = {}
        for name, system in self.systems.items():
            kept = None if sweep is None else sweep / KEPT / f"{name}.jsonl"
            agreements[name] = check_paths(name, system, stores[name], self.data, kept)
        print(report(agreements))
        if sweep is not None:
            write_paths(sweep, {name: agreement.counts for name, agreement in agreements.items()})
        if any(agreement.differing for agreement in agreements.values()):
            if sweep is not None:
                print(f"These are kept: to ask a clip again, remove its line in {sweep / KEPT}", file=sys.stderr)
            sys.exit(1)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--stores", type=Path, required=True, help="Folder of the flow stores, one for each system."
        )
        parser.add_argument("--sweep", type=Path | None, default=None, help=(
            "Folder of a sweep that takes the result, and on the way what is found for each clip: a killed check goes "
            "on. Without it, a check begins anew each time."
        ))  # fmt: skip

    def _store(self, name: str, system: ModelUnderAttack) -> FlowStore:
        settings: Any = system.estimator.settings
        return FlowStore(Path(self.config["stores"]) / name, store_manifest(settings, self.data.dataset.frame_settings))

    def _check_kept(self, folder: Path) -> None:
        """Whether these settings are those that decided what is kept; how many clips are asked does not."""
        settings = {
            "systems": {name: victim_settings(system) for name, system in self.systems.items()},
            "dataset": {key: value for key, value in self.data.settings.items() if key != "max_clips"},
        }
        write_settings(folder, settings)
        check_settings(
            folder,
            settings,
            holds="a check of paths",
            way_out="Give the same options (with make: SWEEP_ARGS, PATHS_ARGS), or remove that folder and check anew",
        )


def _estimate(system: ModelUnderAttack, frames: Tensor) -> Tensor:
    """Flow (S, T-1, 2, H, W) as an attack's clean pass has it, stack by stack.

    Raises:
        ValueError: the system is attacked through `forward`, which shows no flow.
    """
    labels = torch.zeros(len(frames), dtype=torch.int64, device=frames.device)
    flow = clean_pass(system, frames, labels, gradient=False, batch_size=1, check=False).flow
    if flow is None:
        name = type(system).__name__
        raise ValueError(
            f"{name} is attacked through its own forward, so its paths from flow to class say nothing of it. Set "
            f"`pairwise = True` in {name} where classify(estimate_flow(first, second)) is all that forward does; else "
            "check the paths of a system without a forward of its own"
        )
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
