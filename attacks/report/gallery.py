"""The kept examples as small moving pictures: frames, amplified perturbation and flow, clean and under each attack.

For looking at only: large frames are shrunk and coded with loss; the examples' .npz hold the frames themselves.
"""

import base64
import io
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.utils import flow_to_image

from attacks.eight_bit import amplified_difference, gain_of
from attacks.examples import Example
from attacks.records import CLEAN, Record
from attacks.report.results import Results
from attacks.report.table import spoken

MILLISECONDS = 220
"""a frame: slow enough to see single ones"""
MOST_BYTES = 5_000_000
"""of all moving pictures together: coarser ones are tried beyond that, and then the page shows one frame of each"""
LOSSLESS_SIDE = 100
"""frames no larger than this are kept without loss: they cost little and are shown enlarged"""
SIDES_AND_QUALITIES = ((240, 72), (200, 50), (160, 30))
"""the longest side of what is shown, pixels, and WebP's quality of larger frames; tried in turn"""


class Moving(NamedTuple):
    """Data URIs."""

    moving: str
    still: str
    """for print, and for those who want no motion"""


class Panel(NamedTuple):
    """One column of an example: what the system was shown."""

    name: str
    verdict: str
    right: bool
    confidence: float | None
    """None without a verdict"""
    frames_perturbed: int
    frames: Moving
    perturbation: Moving | None
    flow: Moving | None


class Shown(NamedTuple):
    title: str
    label: str
    epsilon: float
    gain: float
    longest: float | None
    """pixels, the flow vector that is drawn in full colour; None without flow"""
    panels: list[Panel]


class Gallery(NamedTuple):
    examples: list[Shown]
    moves: bool
    """False: one frame of each is shown, because all would take more than MOST_BYTES"""


def gallery(results: Results) -> Gallery:
    """All kept examples, those that the clean system gets right first."""
    examples = sorted(results.examples, key=lambda e: not results.example_records[e.clip, CLEAN, 0.0].correct)
    for side, quality in SIDES_AND_QUALITIES:
        made = [_shown(results, example, side, quality) for example in examples]
        size = sum(len(picture.moving) for shown in made for panel in shown.panels for picture in panel[5:] if picture)
        if size < MOST_BYTES:
            return Gallery(made, True)
    return Gallery([_stilled(shown) for shown in made], False)


def _shown(results: Results, example: Example, side: int, quality: int) -> Shown:
    attacks = [name for name in results.attacks if name in example.adversarial]
    flows, longest = _flow_pictures(example, attacks)
    records = {name: results.example_records[example.clip, name, example.epsilon] for name in attacks}
    clean = results.example_records[example.clip, CLEAN, 0.0]
    gain = gain_of(example.epsilon)
    panel = partial(_panel, results, partial(_moving, side=side, quality=quality))
    panels = [panel("clean", clean, example.frames, None, flows.get(CLEAN))]
    for name in attacks:
        noise = amplified_difference(example.frames, example.adversarial[name], gain)
        panels.append(panel(spoken(name), records[name], example.adversarial[name], noise, flows.get(name)))
    title = f"{example.clip.split('/')[-1]}, stack {example.stack + 1}"
    return Shown(title, results.classes[clean.label], example.epsilon, gain, longest, panels)


def _panel(
    results: Results,
    moving: Callable[[np.ndarray, int], Moving],
    name: str,
    record: Record,
    frames: np.ndarray,
    noise: np.ndarray | None,
    flow: np.ndarray | None,
) -> Panel:
    at = record.frame_order[0] if record.frame_order else len(frames) // 2
    return Panel(
        name=name,
        verdict=results.class_name(record.prediction),
        right=record.correct,
        confidence=record.confidence if record.prediction >= 0 else None,
        frames_perturbed=record.frames_perturbed,
        frames=moving(frames, at),
        perturbation=None if noise is None else moving(noise, at),
        flow=None if flow is None else moving(flow, min(at, len(flow) - 1)),
    )


def _flow_pictures(example: Example, attacks: list[str]) -> tuple[dict[str, np.ndarray], float | None]:
    """Clean flow and that of each attack, coloured in one call: the same colour is the same vector."""
    if example.flow is None:
        return {}, None
    fields = {CLEAN: example.flow} | {
        name: example.adversarial_flow[name] for name in attacks if name in example.adversarial_flow
    }
    flow = torch.from_numpy(np.concatenate(list(fields.values()))).float()
    pictures = flow_to_image(flow).movedim(1, -1).numpy()
    length = len(example.flow)
    drawn = {name: pictures[i * length : (i + 1) * length] for i, name in enumerate(fields)}
    return drawn, float(flow.square().sum(1).sqrt().max())


def _moving(frames: np.ndarray, at: int, *, side: int, quality: int) -> Moving:
    """(T, H, W, 3) uint8 as an animation and as frame `at`."""
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((side, side), Image.Resampling.NEAREST)  # a mean over pixels would take the perturbation away
    small = max(frames.shape[1:3]) <= LOSSLESS_SIDE
    options = {"format": "WEBP", "lossless": small, "quality": 60 if small else quality, "method": 4}
    moving, still = io.BytesIO(), io.BytesIO()
    images[0].save(moving, save_all=True, append_images=images[1:], duration=MILLISECONDS, loop=0, **options)
    images[at].save(still, **options)
    return Moving(_uri(moving.getvalue()), _uri(still.getvalue()))


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _stilled(shown: Shown) -> Shown:
    def still(picture: Moving | None) -> Moving | None:
        return None if picture is None else Moving(picture.still, picture.still)

    return shown._replace(
        panels=[
            panel._replace(
                frames=Moving(panel.frames.still, panel.frames.still),
                perturbation=still(panel.perturbation),
                flow=still(panel.flow),
            )
            for panel in shown.panels
        ]
    )
