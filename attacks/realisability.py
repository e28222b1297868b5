"""What of an attack survives being stored: rounded to 8 bits, in a lossless video, in H.264. The paper attacks float
frames, which no video file can hold.

A stack is a file of its own, so that its rows do not depend on its neighbours. The clean stack goes through the same
media: an accuracy under H.264 means little without what H.264 alone costs.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.attack_result import AttackResult
from attacks.eight_bit import round_inside_ball, to_bytes, to_frames
from attacks.records import CLEAN
from attacks.victim import BatchedVictim, Victim, under_attack
from attacks.video_files import read_video, write_h264, write_lossless
from attacks.whole_file import file_stem, write_whole

CRF = (0, 10, 18, 23, 28)
"""Qualities of H.264, best first; x264's default is 23."""
MEDIA = ("float", "8-bit", "8-bit in ball", "ffv1", *(f"h264 crf {crf}" for crf in CRF))
"""In the order of the rows; the videos hold the frames of "8-bit"."""
FOLDER = "realisability"

Row = dict[str, Any]
"""clip, stack, attack, target, epsilon, medium, prediction, label, attacked, correct"""


def realisability(
    judge: Victim,
    frames: Tensor,
    result: AttackResult,
    *,
    epsilons: Sequence[float],
    label: int,
    clip: str,
    first_stack: int = 0,
    attack: str = CLEAN,
    target: str,
    batch_size: int = 8,
) -> list[Row]:
    """The rows of B stacks of one clip under one attack: for each ε and stack, what `judge` says of each medium.

    Args:
        judge: the system that is asked.
        frames: (B, T, 3, H, W) clean 8-bit frames in [0, 1].
        result: of the attack on `judge`, under E values of ε; its predictions are the rows of medium "float".
        epsilons: E values; (0.0,) for the control, whose adversarial frames are the clean ones.
        label: of the clip.
        clip: its name.
        first_stack: index in the clip of the first of these stacks.
        attack, target: names.
        batch_size: stacks judged at once.
    """
    rows: list[Row] = []
    for e, epsilon in enumerate(epsilons):
        for b, clean in enumerate(frames):
            said = {"float": int(result.predictions[e, b])}
            said |= _judge(judge, dict(_realised(clean, result.adversarial[e, b], epsilon)), batch_size)
            for medium in MEDIA:
                rows.append(
                    {
                        "clip": clip,
                        "stack": first_stack + b,
                        "attack": attack,
                        "target": target,
                        "epsilon": float(epsilon),
                        "medium": medium,
                        "prediction": said[medium],
                        "label": label,
                        "attacked": bool(result.attacked[b]),
                        "correct": said[medium] == label,
                    }
                )
    return rows


def _realised(clean: Tensor, adversarial: Tensor, epsilon: float) -> Iterator[tuple[str, Tensor]]:
    """What each medium but "float" makes of one stack (T, 3, H, W)."""
    images = to_bytes(adversarial)
    yield "8-bit", to_frames(images, clean)
    yield "8-bit in ball", round_inside_ball(clean, adversarial, epsilon)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.mkv"
        write_lossless(path, images)
        yield "ffv1", to_frames(read_video(path), clean)
        for crf in CRF:
            write_h264(path, images, crf=crf)
            decoded = read_video(path)[:, : images.shape[1], : images.shape[2]]
            yield f"h264 crf {crf}", to_frames(decoded, clean)


def _judge(judge: Victim, media: dict[str, Tensor], batch_size: int) -> dict[str, int]:
    """Prediction for each medium; frames that are equal are judged once."""
    distinct: list[Tensor] = []
    place: dict[str, int] = {}
    for medium, frames in media.items():
        same = [i for i, other in enumerate(distinct) if torch.equal(frames, other)]
        place[medium] = same[0] if same else len(distinct)
        distinct += [] if same else [frames]
    batched = BatchedVictim(judge, batch_size)
    with under_attack(judge):
        predicted = torch.cat([batched.forward(part)[1].argmax(1) for part in torch.stack(distinct).split(batch_size)])
    return {medium: int(predicted[index]) for medium, index in place.items()}


def save_rows(folder: Path, clip: str, rows: Sequence[Row]) -> None:
    """Make the rows of one clip durable: realisability/<clip>.json in a sweep's folder, whole or not at all.

    Stacks attacked in other portions make the same file: it is in order of attack, target, ε, stack and medium.
    """
    path = rows_path(folder, clip)
    ordered = sorted(rows, key=lambda row: (row["attack"], row["target"], row["epsilon"], row["stack"]))
    write_whole(path, json.dumps(ordered) + "\n")


def rows_path(folder: Path, clip: str) -> Path:
    """Where the rows of a clip lie in a sweep's folder."""
    return folder / FOLDER / f"{file_stem(clip)}.json"


def has_rows(folder: Path, clip: str) -> bool:
    """Whether the file of a clip is there and holds its rows; an earlier version gave some clips one file."""
    path = rows_path(folder, clip)
    try:
        return all(row["clip"] == clip for row in json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False


def merge_rows(folder: Path, clips: Iterable[str]) -> Path:
    """Write realisability.json, the rows of these clips in order of their names, into a sweep's folder.

    Raises:
        FileNotFoundError: a clip has no rows.
    """
    rows = []
    for clip in sorted(clips):
        if not has_rows(folder, clip):
            path = rows_path(folder, clip)
            what = f"damaged, or of another clip than {clip}" if path.is_file() else "no such file"
            raise FileNotFoundError(f"{path}: {what}; the sweep, started again, makes it")
        rows += json.loads(rows_path(folder, clip).read_text())
    path = folder / "realisability.json"
    write_whole(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return path
