"""A flow dataset on disk (section 4): per clip a folder of gray PNGs, `flow_x_00001.png`, `flow_y_00001.png`, …,
counted from 1.

    <store>/manifest.json                         what the flow is: estimator, frames, codec
    <store>/<Class>/<clip>/clip.json              number of flow fields, their size
    <store>/<Class>/<clip>/flow_x_00001.png …     u (x) and v (y) of the pair of frames 1 and 2

A clip's folder appears by a rename, whole or not at all, so a killed run leaves nothing that could be mistaken for
flow.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import flow_codec
from datamodules.video_dataset import Clip


class FlowStore:
    """Reads and writes one flow dataset.

    Args:
        folder: where it lies.
        manifest: what the flow in it must be, see `store_manifest`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.manifest = manifest

    def open_for_writing(self) -> None:
        """Make the store, or check that it holds the flow that is meant, and remove what a killed run left
        half-written.

        Raises:
            ValueError: it was made with other settings; names each that differs.
        """
        path = self.folder / "manifest.json"
        if path.exists():
            self.check()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(path, self.manifest)
        for left_over in self.folder.glob("*/.*.part"):
            shutil.rmtree(left_over)

    def check(self) -> None:
        """Raise unless the store exists and holds the flow that is meant.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: it was made with other settings; names each that differs.
        """
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no flow store here; `prepare_data` (make train-classifiers) fills it")
        differing = differences(json.loads(path.read_text()), self.manifest)
        if differing:
            raise ValueError(
                f"{self.folder}: this flow store was made with other settings:\n  " + "\n  ".join(differing) + "\n"
                "Ask for the settings it was made with, name another store (make … RUNS=DIR), or delete the folder"
            )

    def has(self, clip: Clip) -> bool:
        """Whether the clip's flow is there (it is whole then)."""
        return (self.folder / clip.name / "clip.json").is_file()

    def n_flow(self, clip: Clip) -> int:
        """Number of flow fields of a clip: its frames less one.

        Raises:
            FileNotFoundError: the clip is not in the store.
        """
        path = self.folder / clip.name / "clip.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder}: holds no flow of {clip.name}; `prepare_data` (make train-classifiers) fills it"
            )
        return int(json.loads(path.read_text())["n_flow"])

    def write(self, clip: Clip, flow: np.ndarray) -> None:
        """Store a clip's flow (n, 2, H, W) in pixels."""
        planes = flow_codec.encode(flow)
        final = self.folder / clip.name
        part = final.parent / f".{final.name}.{os.getpid()}.part"
        part.mkdir(parents=True)
        for number, (u, v) in enumerate(planes, start=1):
            (part / f"flow_x_{number:05d}.png").write_bytes(flow_codec.to_png(u))
            (part / f"flow_y_{number:05d}.png").write_bytes(flow_codec.to_png(v))
        _write_json(part / "clip.json", {"n_flow": len(planes), "size": list(planes.shape[2:])})
        part.rename(final)

    def read(self, clip: Clip, start: int, length: int) -> np.ndarray:
        """Flow fields start … start + length - 1 of a clip (the first is 0), float32 (length, 2, H, W) in pixels.

        Raises:
            FileNotFoundError: a plane is not there.
            ValueError: a plane is no readable PNG; names it.
        """
        folder = self.folder / clip.name
        planes = [
            flow_codec.from_png(path.read_bytes(), str(path))
            for number in range(start + 1, start + length + 1)
            for path in (folder / f"flow_x_{number:05d}.png", folder / f"flow_y_{number:05d}.png")
        ]
        return flow_codec.decode(np.stack(planes)).reshape(length, 2, *planes[0].shape)


def store_manifest(estimator_settings: dict[str, Any], frame_settings: dict[str, Any]) -> dict[str, Any]:
    """What decides every byte of a store: how frames are taken, how flow is estimated, how it is coded."""
    manifest = {"format": 1, "estimator": estimator_settings, "frames": frame_settings, "codec": flow_codec.SETTINGS}
    return json.loads(json.dumps(manifest))  # tuples become lists, as they will when read back


def differences(found: Any, asked: Any, key: str = "") -> list[str]:
    """`estimator.tau: 0.25 there, 0.3 asked for`, one line for each entry that differs."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*found, *asked])
        return [
            line
            for k in keys
            for line in differences(found.get(k, "nothing"), asked.get(k, "nothing"), f"{key}.{k}" if key else str(k))
        ]
    return [] if found == asked else [f"{key}: {found!r} there, {asked!r} asked for"]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
