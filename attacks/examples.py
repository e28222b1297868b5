"""The few stacks whose frames a sweep keeps, for Fig. 3 and Fig. 7: which clips, what of them, and their files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from attacks.attack_result import AttackResult
from attacks.eight_bit import to_bytes, to_frames
from attacks.victim import PairwiseVictim, Victim, is_pairwise, under_attack
from attacks.whole_file import appearing, file_stem

EPSILON = 0.025
"""The ε of Fig. 3; of a sweep without it, the nearest."""


class Example(NamedTuple):
    """One stack and what the white-box attacks made of it, rounded to 8 bits as a screen shows it."""

    clip: str
    stack: int
    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB, clean"""
    epsilon: float
    """of `adversarial`"""
    adversarial: dict[str, np.ndarray]
    """attack -> (T, H, W, 3)"""
    epsilons: list[float]
    """of `frame_at`"""
    frame: dict[str, int]
    """attack -> the first frame that it perturbs"""
    frame_at: dict[str, np.ndarray]
    """attack -> that frame under every ε (E, H, W, 3)"""
    flow: np.ndarray | None = None
    """(T-1, 2, H, W) float16 pixels, the white box's flow of `frames`; None where it was not kept"""
    adversarial_flow: Mapping[str, np.ndarray] = MappingProxyType({})
    """attack -> the same of `adversarial`"""


def example_clips(labels: Sequence[int], count: int) -> list[int]:
    """`count` places in `labels` spread over the classes: the first of evenly spaced classes, then the second ones."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        by_class[label].append(index)
    chosen: list[int] = []
    for turn in range(max(map(len, by_class.values()), default=0)):
        layer = [by_class[label][turn] for label in sorted(by_class) if len(by_class[label]) > turn]
        wanted = min(count - len(chosen), len(layer))
        chosen += [layer[i * len(layer) // wanted] for i in range(wanted)]
    return chosen


class Shown(NamedTuple):
    """What an example shows of one attack on its stack."""

    adversarial: np.ndarray
    """(T, H, W, 3) uint8, under the ε of the example"""
    frame: int
    """the first frame that it perturbs; the middle one where it left the stack alone"""
    frame_at: np.ndarray
    """(E, H, W, 3), that frame under every ε"""


def shown_of(result: AttackResult, item: int, epsilons: Sequence[float]) -> Shown:
    """Of stack `item` of a result under these ε."""
    order = result.frame_order[-1, item]
    frame = int(order[0]) if order[0] >= 0 else len(order) // 2
    adversarial = result.adversarial
    return Shown(to_bytes(adversarial[_shown_epsilon(epsilons), item]), frame, to_bytes(adversarial[:, item, frame]))


def make_example(
    clip: str, stack: int, frames: Tensor, shown: Mapping[str, Shown], epsilons: Sequence[float]
) -> Example:
    """The example of stack `stack` with frames (T, 3, H, W), and of what the attacks made of it."""
    return Example(
        clip=clip,
        stack=stack,
        frames=to_bytes(frames),
        epsilon=epsilons[_shown_epsilon(epsilons)],
        adversarial={name: of_attack.adversarial for name, of_attack in shown.items()},
        epsilons=list(epsilons),
        frame={name: of_attack.frame for name, of_attack in shown.items()},
        frame_at={name: of_attack.frame_at for name, of_attack in shown.items()},
    )


def _shown_epsilon(epsilons: Sequence[float]) -> int:
    return min(range(len(epsilons)), key=lambda e: (abs(epsilons[e] - EPSILON), e))


def with_flow(example: Example, victim: Victim, like: Tensor) -> Example:
    """The example with the victim's flow of its frames, rounded as they are; unchanged for one that is not pairwise.

    `like` has the type and lies on the device of the victim's frames.
    """
    if not is_pairwise(victim):
        return example
    estimate = cast(PairwiseVictim, victim).estimate_flow

    def flow(frames: np.ndarray) -> np.ndarray:
        images = to_frames(frames, like)
        pairs = [estimate(images[n : n + 1], images[n + 1 : n + 2]) for n in range(len(images) - 1)]
        return torch.cat(pairs).to("cpu", torch.float16).numpy()

    with under_attack(victim):
        adversarial = {name: flow(frames) for name, frames in example.adversarial.items()}
        return example._replace(flow=flow(example.frames), adversarial_flow=adversarial)


def save_example(folder: Path, example: Example) -> Path:
    """Write <clip>.npz into `folder`; a half-written file never bears that name."""
    path = folder / f"{file_stem(example.clip)}.npz"
    arrays: dict[str, np.ndarray] = {"clip": np.array(example.clip), "stack": np.array(example.stack)}
    arrays |= {"frames": example.frames, "epsilon": np.array(example.epsilon), "epsilons": np.array(example.epsilons)}
    for name in example.adversarial:
        arrays[f"adversarial/{name}"] = example.adversarial[name]
        arrays[f"frame/{name}"] = np.array(example.frame[name])
        arrays[f"frame_at/{name}"] = example.frame_at[name]
    if example.flow is not None:
        arrays["flow"] = example.flow
        arrays |= {f"flow/{name}": flow for name, flow in example.adversarial_flow.items()}
    with appearing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def load_examples(folder: Path) -> list[Example]:
    """The examples of a sweep by clip name; none where it kept none."""
    return [_load(path) for path in sorted(folder.glob("*.npz"))]


def _load(path: Path) -> Example:
    with np.load(path) as arrays:
        names = [key.removeprefix("adversarial/") for key in arrays.files if key.startswith("adversarial/")]
        return Example(
            clip=str(arrays["clip"]),
            stack=int(arrays["stack"]),
            frames=arrays["frames"],
            epsilon=float(arrays["epsilon"]),
            adversarial={name: arrays[f"adversarial/{name}"] for name in names},
            epsilons=arrays["epsilons"].tolist(),
            frame={name: int(arrays[f"frame/{name}"]) for name in names},
            frame_at={name: arrays[f"frame_at/{name}"] for name in names},
            flow=arrays["flow"] if "flow" in arrays.files else None,
            adversarial_flow={name: arrays[f"flow/{name}"] for name in names if f"flow/{name}" in arrays.files},
        )
