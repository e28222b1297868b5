"""The kept examples of a sweep as video files that anybody can play, and the verdicts on exactly these files.

Adversarial frames are rounded to 8 bits, which can change a verdict: clips.json says what each system says of the
frames in the files. `reevaluate` reads the files and asks again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attacks.eight_bit import amplified_difference, gain_of, to_frames
from attacks.examples import Example
from attacks.perceptibility import stack_quality
from attacks.records import CLEAN
from attacks.settings import victim_settings
from attacks.victim import BatchedVictim, Victim, under_attack
from attacks.video_files import read_video, write_h264, write_lossless
from attacks.whole_file import file_stem, write_whole

LOOKING_CRF = 12
LOOKING_RATE = 6
"""half the speed of 12 fps video, so that single frames can be seen"""


class Reevaluation(NamedTuple):
    """One file and one system."""

    file: str
    system: str
    exported: int
    """prediction in clips.json"""
    now: int
    same_bytes: bool
    """the file is the one that was exported"""

    @property
    def same(self) -> bool:
        return self.same_bytes and self.exported == self.now


def export_clips(
    folder: Path,
    examples: Sequence[Example],
    systems: Mapping[str, Victim],
    *,
    labels: Mapping[str, int],
    classes: Sequence[str],
    lpips: Callable[[Tensor, Tensor], float | None] | None = None,
) -> Path:
    """Write clips.json, and for each example a folder of files: original.mkv, <attack>.mkv (FFV1, the frames byte for
    byte), <attack>-difference.mkv and, for looking at, <attack>.mp4 (H.264; clean, adversarial and difference).

    Args:
        folder: where to.
        examples: the kept stacks.
        systems: name -> who judges, the white box first.
        labels: clip name -> class index.
        classes: their names.
        lpips: distance of clean and adversarial frames (`attacks.lpips.Lpips`); without it clips.json has none.

    Raises:
        ValueError: there is no example; a video was not read back as it was written.
    """
    if not examples:
        raise ValueError(f"{folder}: nothing to export; the sweep kept no example (its option `examples`)")
    rows: list[dict[str, Any]] = []
    for example in examples:
        place = file_stem(example.clip)
        clean = to_frames(example.frames, torch.zeros(()))
        versions = {CLEAN: example.frames, **example.adversarial}
        for attack, images in versions.items():
            file = f"{place}/{'original' if attack == CLEAN else attack}.mkv"
            frames = to_frames(images, clean)
            row: dict[str, Any] = {
                "clip": example.clip,
                "stack": example.stack,
                "label": labels[example.clip],
                "class": classes[labels[example.clip]],
                "attack": attack,
                "epsilon": 0.0 if attack == CLEAN else example.epsilon,
                "file": file,
                "sha256": _write_exactly(folder / file, images),
            }
            if attack != CLEAN:
                gain = gain_of(example.epsilon)
                shown = amplified_difference(example.frames, images, gain)
                write_lossless(folder / place / f"{attack}-difference.mkv", shown)
                panels = np.concatenate([example.frames, images, shown], axis=2)
                write_h264(folder / place / f"{attack}.mp4", panels, crf=LOOKING_CRF, frame_rate=LOOKING_RATE)
                row |= {"difference": f"{place}/{attack}-difference.mkv", "difference_gain": round(gain, 3)}
                row |= {"looking": f"{place}/{attack}.mp4"}
                quality = stack_quality(clean[None], frames[None, None])[0][0]._asdict()
                del quality["flow_epe"]  # of the white box, in the records
                row["quality"] = quality | ({} if lpips is None else {"lpips": lpips(clean, frames)})
            row["predictions"] = {name: _judge(system, frames, classes) for name, system in systems.items()}
            rows.append(row)
    content = {
        "systems": {name: victim_settings(system) for name, system in systems.items()},
        "lpips": "AlexNet" if lpips is not None else "not measured: it needs torchvision's AlexNet weights",
        "clips": rows,
    }
    path = folder / "clips.json"
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def reevaluate(folder: Path, systems: Mapping[str, Victim]) -> list[Reevaluation]:
    """Read every exported file and ask the systems again.

    Raises:
        FileNotFoundError: clips.json or a video is not there.
        ValueError: a system of clips.json is not given, or is another one now; a video cannot be decoded.
    """
    path = folder / "clips.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `make export-clips` writes it")
    content = json.loads(path.read_text())
    for name, settings in content["systems"].items():
        if name not in systems:
            raise ValueError(f"{path} holds verdicts of {name!r}, which is not among the systems {list(systems)}")
        if json.loads(json.dumps(victim_settings(systems[name]))) != settings:
            raise ValueError(
                f"{path} holds verdicts of another {name!r} than this one (weights or settings differ): export the "
                "clips again, or evaluate with the system that they were exported with"
            )
    found = []
    for row in content["clips"]:
        frames = to_frames(read_video(folder / row["file"]), torch.zeros(()))
        same_bytes = _sha256(folder / row["file"]) == row["sha256"]
        for name, exported in row["predictions"].items():
            now = _judge(systems[name], frames, None)["prediction"]
            found.append(Reevaluation(row["file"], name, exported["prediction"], now, same_bytes))
    return found


def _write_exactly(path: Path, images: np.ndarray) -> str:
    """Write, read back, compare; the file's SHA-256."""
    write_lossless(path, images)
    if not np.array_equal(read_video(path), images):
        raise ValueError(f"{path}: the frames read back are not those written; this PyAV's FFV1 is not lossless")
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _judge(system: Victim, frames: Tensor, classes: Sequence[str] | None) -> dict[str, Any]:
    """What a system says of one stack (T, 3, H, W), alone, so that nothing depends on its neighbours."""
    parameter = next(system.parameters(), None) if isinstance(system, torch.nn.Module) else None
    with under_attack(system):
        stack = frames[None] if parameter is None else frames[None].to(parameter.device)
        probabilities = BatchedVictim(system, 1).forward(stack)[1].float().softmax(1)[0]
    prediction = int(probabilities.argmax())
    said: dict[str, Any] = {"prediction": prediction, "confidence": round(float(probabilities[prediction]), 6)}
    return said if classes is None else said | {"class": classes[prediction]}
