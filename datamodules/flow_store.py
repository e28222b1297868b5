"""A flow dataset on disk (section 4): what the flow in it is, which clips it holds, and whether they are sound.

    <store>/manifest.json        estimator, frames, codec, layout, versions of the libraries that made it
    <store>/<Class>/<clip>…      planes and clip.json, see `flow_layouts`

clip.json tells the source file's size and hash, the number of frames and of flow fields (one less), and a checksum of
the planes.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules import flow_codec
from datamodules.flow_layouts import Kind, Layout, layout_of, plane_name
from datamodules.video_dataset import Clip

DEFAULT_LAYOUT: Kind = "archive"


class FlowStore:
    """Reads and writes one flow dataset.

    Args:
        folder: where it lies.
        manifest: what the flow in it must be, see `store_manifest`.
        layout: how a new store is laid out, "archive" or "loose"; None takes what is there, and archives in a new one.

    Raises:
        ValueError: an unknown layout.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], layout: Kind | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest
        self.asked_layout = layout
        if layout is not None:
            layout_of(layout, self.folder)
        self._layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """How the clips lie on disk: the store's own where there is one."""
        if self._layout is None:
            path = self.folder / "manifest.json"
            found = json.loads(path.read_text()).get("layout", "loose") if path.is_file() else None
            layout = layout_of(found or self.asked_layout or DEFAULT_LAYOUT, self.folder)
            if found is None:
                return layout  # not yet decided
            self._layout = layout
        return self._layout

    @property
    def made(self) -> bool:
        """Whether there is a store, be it an empty one."""
        return (self.folder / "manifest.json").is_file()

    def open_for_writing(self) -> None:
        """Make the store, or check that it holds the flow that is meant, and remove what a killed run left
        half-written. A store without a clip is made anew: a call that failed at every clip binds nobody.

        Raises:
            ValueError: it was made with other settings or by other versions; names each that differs.
        """
        path = self.folder / "manifest.json"
        libraries = _libraries()
        if self.made and any(not found.name.startswith(".") for found in self.folder.glob("*/*")):
            self.check()
            found = json.loads(path.read_text()).get("libraries", libraries)
            differing = differences(found, libraries, "libraries")
            if differing:
                raise ValueError(
                    self._refusal(differing, "was made by other versions", _other_versions(found, libraries))
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            kind = self.asked_layout or DEFAULT_LAYOUT
            _write_json(path, {**self.manifest, "layout": kind, "libraries": libraries})
            self._layout = None
        self.layout.sweep()

    def check(self) -> None:
        """Raise unless the store exists and holds the flow that is meant.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: it was made with other settings; names each that differs.
        """
        path = self.folder / "manifest.json"
        if not self.made:
            raise FileNotFoundError(f"{path}: no flow store here; `prepare_data` (make train-classifiers) fills it")
        found = json.loads(path.read_text())
        layout = found.pop("layout", "loose")
        found.pop("libraries", None)  # they decide what is written; what is there can be read with any
        differing = differences(found, self.manifest)
        if self.asked_layout not in (None, layout):
            differing.append(f"layout: {layout!r} there, {self.asked_layout!r} asked for")
        if differing:
            versions = _other_versions(found.get("estimator", {}), self.manifest["estimator"])
            raise ValueError(self._refusal(differing, "was made with other settings", versions))

    def has(self, clip: Clip) -> bool:
        """Whether the clip's flow is there (it is whole then)."""
        return self.layout.has(clip.name)

    def n_flow(self, clip: Clip) -> int:
        """Number of flow fields of a clip: its frames less one.

        Raises:
            FileNotFoundError: the clip is not in the store.
            ValueError: it is damaged.
        """
        self._need(clip)
        return self.layout.fields(clip.name)

    def size(self, clip: Clip) -> tuple[int, int]:
        """(H, W) of a clip's flow; errors as `n_flow`."""
        self._need(clip)
        height, width = self.layout.record(clip.name)["size"]
        return height, width

    def checksum(self, clip: Clip) -> str:
        """Of a clip's planes as they were written; errors as `n_flow`."""
        self._need(clip)
        return self.layout.record(clip.name)["planes_sha256"]

    def write(self, clip: Clip, flow: np.ndarray) -> None:
        """Store a clip's flow (n, 2, H, W) in pixels.

        Raises:
            ValueError: a value is not finite.
            OSError: the disk is full, for one; nothing of the clip is left then.
        """
        # Field by field, whose levels stay in the processor's cache.
        pngs = [flow_codec.to_png(plane) for field in flow for plane in flow_codec.encode(field)]
        self.write_planes(clip.name, pngs, flow.shape[2:], clip.path)

    def write_planes(self, name: str, pngs: Sequence[bytes], size: Sequence[int], source: Path | None) -> None:
        """Store a clip's planes, u and v of each field in turn, as the PNG bytes that they are."""
        record = {
            "n_frames": len(pngs) // 2 + 1,
            "n_flow": len(pngs) // 2,
            "size": list(size),
            "source": None if source is None else _source(source),
            "planes_sha256": _checksum(pngs),
        }
        self.layout.write(name, pngs, record)

    def read(self, clip: Clip, start: int, length: int) -> np.ndarray:
        """Flow fields start … start + length - 1 of a clip (the first is 0), float32 (length, 2, H, W) in pixels;
        errors as `read_planes`."""
        return flow_codec.decode(self.read_planes(clip, start, length))

    def read_planes(self, clip: Clip, start: int, length: int) -> np.ndarray:
        """The same as it is stored, uint8 (length, 2, H, W).

        Raises:
            FileNotFoundError: a plane is not there.
            ValueError: a plane is no readable PNG, or the clip's file is damaged; names it.
        """
        planes: np.ndarray | None = None
        for index, png in enumerate(self.layout.planes(clip.name, start, length)):
            plane = flow_codec.from_png(png, f"{self.layout.path(clip.name)}/{plane_name(2 * start + index)}")
            if planes is None:
                planes = np.empty((2 * length, *plane.shape), np.uint8)
            planes[index] = plane
        if planes is None:
            raise ValueError(f"{clip.name}: {length} flow fields were asked for")
        return planes.reshape(length, 2, *planes.shape[1:])

    def fault(self, clip: Clip) -> str | None:
        """What is wrong with a clip, in words that name its file: every plane is read again, and the video is held
        against the one that the flow was made from. None where all is well."""
        reason = self._fault(clip.name, clip.path)
        return None if reason is None else f"{self.layout.path(clip.name)}: {reason}"

    def _need(self, clip: Clip) -> None:
        if not self.has(clip):
            raise FileNotFoundError(
                f"{self.folder}: holds no flow of {clip.name}; `prepare_data` (make train-classifiers) fills it"
            )

    def _fault(self, name: str, source: Path) -> str | None:
        if not self.layout.has(name):
            return "missing"
        try:
            record = self.layout.record(name)
            fields = self.layout.fields(name)
            if fields != record["n_flow"] or record["n_frames"] != fields + 1:
                return f"{fields} flow fields; {record['n_flow']} of {record['n_frames']} frames were written"
            pngs = self.layout.planes(name, 0, fields)
            for index, png in enumerate(pngs):
                plane = flow_codec.from_png(png, plane_name(index))
                if list(plane.shape) != record["size"]:
                    return f"{plane_name(index)} has size {list(plane.shape)}, {record['size']} was written"
            if _checksum(pngs) != record["planes_sha256"]:
                return "its planes are not those that were written (checksum)"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        changed = record["source"] is not None and source.is_file() and _source(source) != record["source"]
        return f"was made from another {source.name}: the video has changed since" if changed else None

    def _refusal(self, differing: list[str], how: str, versions: list[str]) -> str:
        ways = ["Ask for the settings it was made with"] if len(differing) > len(versions) else []
        ways += ["Install what made it (pip install " + " ".join(f'"{v}"' for v in versions) + ")"] if versions else []
        return (
            f"{self.folder}: this flow store {how}:\n  " + "\n  ".join(differing) + "\n"
            f"{' and '.join(ways)}, name another store (make … RUNS=DIR), or delete the folder"
        )


def store_manifest(estimator_settings: dict[str, Any], frame_settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the flow of a store: how frames are taken, how flow is estimated, how it is coded."""
    manifest = {"format": 2, "estimator": estimator_settings, "frames": frame_settings, "codec": flow_codec.SETTINGS}
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


_REQUIREMENTS = {
    "opencv": "opencv-contrib-python-headless=={}.*",  # a wheel's version has a fourth number
    "av": "av=={}",
    "torch": "torch=={}",
    "torchvision": "torchvision=={}",
}


def _other_versions(found: dict[str, str], asked: dict[str, str]) -> list[str]:
    """`av==14.0.1`: what pip is to install to go on with what was made by other versions."""
    return [
        requirement.format(found[name])
        for name, requirement in _REQUIREMENTS.items()
        if name in found and name in asked and found[name] != asked[name]
    ]


def _libraries() -> dict[str, str]:
    """What decodes, resizes and codes; another version may give other bytes."""
    import av

    return {"opencv": cv2.__version__, "av": av.__version__}


def _source(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checksum(pngs: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for png in pngs:
        digest.update(png)
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
