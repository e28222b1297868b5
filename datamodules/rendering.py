"""How a clip of the embedded dataset is drawn: a window of some shape onto a moving texture.

A frame is a function of appearance, scene and pose. At any moment the pose has one distribution, whatever the class:
offsets, angle and zoom live on circles and start anywhere on them, and what swings starts at any phase. The class says
only which part of the pose changes with time, so a single frame cannot tell it.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from datamodules.appearances import OCTAVES, OUTLINE_POINTS, TILE, Appearance

STEPS_PER_SECOND = 12
"""Speeds are per step of the paper's frame rate."""
FRAME = 64
"""Lengths are in 1/64 of a frame's shorter side: pixels of a 64-pixel frame."""


class Motion(NamedTuple):
    """Which part of the surface's pose changes with time, and in which direction: -1, 0 or 1."""

    right: int = 0
    clockwise: int = 0
    growing: int = 0
    swinging: int = 0
    shearing: int = 0


MOTIONS = {
    "Oscillate": Motion(swinging=1),
    "RotateClockwise": Motion(clockwise=1),
    "RotateCounterclockwise": Motion(clockwise=-1),
    "ShearHorizontal": Motion(shearing=1),
    "TranslateLeft": Motion(right=-1),
    "TranslateRight": Motion(right=1),
    "ZoomIn": Motion(growing=1),
    "ZoomOut": Motion(growing=-1),
}
"""The classes. Oscillate swings to the right and back, ShearHorizontal leans to either side, the others keep on."""


class Scene(NamedTuple):
    """What is drawn anew for each clip, from one distribution for all classes. Angles in radians."""

    centre: np.ndarray
    """(2,) right and down of the frame's"""
    radius: float
    """of the disc of the window's area"""
    tilt: float
    """of the window"""
    background_angle: float
    background_offset: np.ndarray
    """(2,) of its tile, on its torus"""
    angle: float
    """of the surface, at first"""
    zoom: float
    """octaves, on a circle of three"""
    offsets: np.ndarray
    """(3, 2) of each tile of the surface, on its torus"""
    speed: float
    """per step, of the surface at the mean distance from the window's centre; the greatest of a swing"""
    period: float
    """of a swing, in steps"""
    phase: float
    shake: np.ndarray
    """(3, 2, 2) amplitude, radians per step and phase of the camera's two waves to the right and two downwards"""


class Pose(NamedTuple):
    """Where surface and camera are at one moment."""

    angle: float
    zoom: float
    offsets: np.ndarray
    """(3, 2)"""
    lean: float
    """how far a point moves right per unit down"""
    camera: np.ndarray
    """(2,) float32: how far the picture is shifted"""


def draw_scene(rng: np.random.Generator, speeds: tuple[float, float]) -> Scene:
    """A scene at random; the logarithm of its speed is uniform between the `speeds`."""
    return Scene(
        centre=rng.uniform(-4, 4, 2).astype(np.float32),
        radius=rng.uniform(22, 27),
        tilt=rng.uniform(0, math.tau),
        background_angle=rng.uniform(0, math.tau),
        background_offset=rng.uniform(0, TILE, 2),
        angle=rng.uniform(0, math.tau),
        zoom=rng.uniform(0, OCTAVES),
        offsets=rng.uniform(0, TILE, (OCTAVES, 2)),
        speed=math.exp(rng.uniform(*np.log(speeds))),
        period=rng.uniform(7, 11),
        phase=rng.uniform(0, math.tau),
        shake=np.stack([rng.uniform(low, high, (2, 2)) for low, high in ((0.3, 0.75), (0.2, 0.7), (0, math.tau))]),
    )


def pose_at(scene: Scene, motion: Motion, step: float) -> Pose:
    """The pose after `step` steps. Each part has the same distribution for every motion and step."""
    distance = scene.radius * 2 / 3  # a disc's points are so far from its centre, on average
    travelled = scene.speed * step
    turned = travelled / distance  # radians, or e-foldings of the zoom
    rate = math.tau / scene.period
    reach = scene.speed / rate
    # All surfaces lean; where nothing shears them they stay as the phase found them.
    lean = reach / distance * math.sin(scene.phase + motion.shearing * rate * step)
    angle = scene.angle + motion.clockwise * turned
    zoom = scene.zoom + motion.growing * turned / math.log(2)
    right = motion.right * travelled + motion.swinging * reach * math.sin(scene.phase + rate * step)
    offsets = scene.offsets - _scales(zoom)[:, None] * np.array(_turned(right, 0.0, angle))
    amplitude, frequency, phase = scene.shake
    camera = (amplitude * np.sin(frequency * step + phase)).sum(1).astype(np.float32)
    return Pose(angle % math.tau, zoom % OCTAVES, offsets % TILE, lean, camera)


def draw_clip(
    appearance: Appearance, scene: Scene, motion: Motion, *, frames: int, frame_rate: float, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The clip's frames, uint8 RGB (H, W, 3).

    Args:
        appearance: the group's.
        scene: the clip's own.
        motion: the class.
        frames: how many.
        frame_rate: per second.
        size: (H, W) in pixels; the drawing scales with the shorter side.
    """
    for index in range(frames):
        yield draw_frame(appearance, scene, pose_at(scene, motion, index / frame_rate * STEPS_PER_SECOND), size)


def draw_frame(appearance: Appearance, scene: Scene, pose: Pose, size: tuple[int, int]) -> np.ndarray:
    """One frame, uint8 RGB (H, W, 3) of size (H, W)."""
    unit = min(size) / FRAME
    x, y = _grid(size)
    x, y = x - pose.camera[0], y - pose.camera[1]
    texture = _sampled(appearance.background, _turned(x, y, scene.background_angle), 1.0, scene.background_offset)
    background = _coloured(texture, appearance.background_colours)

    x, y = x - scene.centre[0], y - scene.centre[1]
    place = _turned(x - pose.lean * y, y, pose.angle)
    # An endless zoom: a tile fades in where it is fine, grows, fades out where it is coarse, and starts again. The
    # weights' squares sum to 1, so the contrast is the same at every zoom.
    weights = math.sqrt(2 / OCTAVES) * np.cos(np.pi / OCTAVES * _exponents(pose.zoom))
    texture = np.zeros_like(x)
    for weight, tile, scale, offset in zip(weights, appearance.surface, _scales(pose.zoom), pose.offsets, strict=True):
        texture += weight * _sampled(tile, place, scale, offset)
    surface = _coloured(texture, appearance.surface_colours)

    direction = (np.arctan2(y, x) - scene.tilt) * (OUTLINE_POINTS / math.tau)
    edge = np.take(appearance.outline, np.rint(direction).astype(np.int32), mode="wrap")
    inside = scene.radius * edge - np.hypot(x, y)  # along the ray from the centre; negative outside
    cover = np.clip(inside * unit + 0.5, 0, 1)[..., None]
    rim = np.clip((1.2 - np.abs(inside - 0.6)) * unit, 0, 1)[..., None]
    shadow = 1 - 0.6 * np.exp(-np.maximum(-inside, 0) / 3)[..., None]
    picture = background * (shadow * (1 - cover)) + surface * cover
    return np.rint(picture * (1 - rim) + 250 * rim).astype(np.uint8)


@cache
def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' places right and down of the frame's centre, float32 (H, W) each."""
    y, x = (np.mgrid[0 : size[0], 0 : size[1]] - (np.array(size).reshape(2, 1, 1) - 1) / 2) / (min(size) / FRAME)
    return x.astype(np.float32), y.astype(np.float32)


def _exponents(zoom: float) -> np.ndarray:
    """(3,) how many octaves each tile is enlarged, from -1.5 to 1.5."""
    return (zoom + np.arange(OCTAVES)) % OCTAVES - OCTAVES / 2


def _scales(zoom: float) -> np.ndarray:
    """(3,) of each tile: its pixels per unit."""
    return 2.0 ** -_exponents(zoom)


def _turned(x: Any, y: Any, angle: float) -> tuple[Any, Any]:
    # The texture turns clockwise when its coordinates turn the other way; y points down.
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


def _sampled(tile: np.ndarray, place: tuple[np.ndarray, np.ndarray], scale: float, offset: np.ndarray) -> np.ndarray:
    u, v = (axis * np.float32(scale) + np.float32(start) for axis, start in zip(place, offset, strict=True))
    return cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _coloured(texture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    share = 1 / (1 + np.exp(-1.7 * texture))  # nearly the normal distribution's: all colours about equally often
    return colours[(share * 255).astype(np.uint8)]
