"""What the clips of a group of the embedded dataset share: textures, colours and the outline of the shape."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

TILE = 256
"""Side of a texture tile, which repeats in both directions."""
OCTAVES = 3
"""Tiles of a surface: an endless zoom shows each at its own size (see `rendering`)."""
OUTLINE_POINTS = 720


class Appearance(NamedTuple):
    """Lengths are in pixels of a 64-pixel frame."""

    surface: np.ndarray
    """(3, 256, 256) float32, mean 0 and deviation 1: the tiles of the shape's surface"""
    surface_colours: np.ndarray
    """(256, 3) RGB in [0, 255], dark to bright"""
    background: np.ndarray
    """(256, 256) float32"""
    background_colours: np.ndarray
    """(256, 3)"""
    outline: np.ndarray
    """(720,) float32: the shape's radius by direction, as a share of that of the disc of its area"""


def draw_appearance(rng: np.random.Generator, hue: float, contrast: float = 1.0) -> Appearance:
    """The appearance of one group; its colours lie about `hue` (0 to 1 is one turn), the background's opposite.

    `contrast` scales the range of brightness within surface and background.
    """
    turn = rng.choice([-1, 1]) * rng.uniform(0.12, 0.22)
    opposite = hue + 0.5
    return Appearance(
        surface=_texture(rng, OCTAVES),
        surface_colours=_colours(
            [hue - turn, hue, hue + turn], saturation=0.95, luma=_spread((0.26, 0.45, 0.66), contrast)
        ),
        background=_texture(rng, 1)[0],
        background_colours=_colours(
            [opposite - turn / 2, opposite, opposite + turn / 2],
            saturation=0.6,
            luma=_spread((0.25, 0.36, 0.51), contrast),
        ),
        outline=_outline(rng),
    )


def _spread(luma: Sequence[float], contrast: float) -> list[float]:
    middle = luma[1]
    return [middle + contrast * (value - middle) for value in luma]


def _texture(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tiles (count, 256, 256) of one random style, with features of about 5 pixels."""
    style = rng.choice(["marble", "mosaic", "lace"])
    size = rng.uniform(4.5, 6)
    tiles = []
    for _ in range(count):
        tile = _mosaic(rng, size) if style == "mosaic" else _waves(rng, 2.2 * size)
        tile = np.abs(tile) if style == "lace" else tile
        tiles.append((tile - tile.mean()) / tile.std())
    return np.stack(tiles).astype(np.float32)


def _waves(rng: np.random.Generator, wavelength: float) -> np.ndarray:
    """Noise of about one wavelength, in all directions."""
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])
    band = np.exp(-0.5 * ((frequency * wavelength - 1) / 0.3) ** 2)
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TILE, TILE))) * band, (TILE, TILE))


def _mosaic(rng: np.random.Generator, size: float) -> np.ndarray:
    """Cells of one level each, `size` wide, with softened edges."""
    count = round((TILE / size) ** 2)
    cells = rng.choice(TILE * TILE, count, replace=False)
    empty = np.ones((TILE, TILE), np.uint8)
    empty.flat[cells] = 0
    levels = np.zeros((TILE, TILE), np.float32)
    levels.flat[cells] = rng.standard_normal(count)
    margin = TILE // 4
    empty, levels = np.pad(empty, margin, mode="wrap"), np.pad(levels, margin, mode="wrap")
    _, labels = cv2.distanceTransformWithLabels(empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    # By way of the labels, a cell and its repetition beyond the tile's edge get the same level.
    level_of = np.zeros(labels.max() + 1, np.float32)
    level_of[labels[empty == 0]] = levels[empty == 0]
    smooth = cv2.GaussianBlur(level_of[labels], (0, 0), 0.8)
    return smooth[margin : margin + TILE, margin : margin + TILE]


def _colours(hues: Sequence[float], *, saturation: float, luma: Sequence[float]) -> np.ndarray:
    """A scale (256, 3) through the hues, from dark to bright: flow is estimated on grey frames, and needs contrast."""
    hsv = np.array([[hue % 1 * 360, saturation, 1] for hue in hues], np.float32)
    rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    has, wants = rgb @ np.array([0.299, 0.587, 0.114]), np.array(luma)
    darker = rgb * np.minimum(wants / has, 1)[:, None]
    stops = darker + (1 - darker) * np.maximum((wants - has) / (1 - has), 0)[:, None]
    place = np.linspace(0, len(hues) - 1, 256)
    scale = np.stack([np.interp(place, np.arange(len(hues)), channel) for channel in stops.T], 1)
    return (255 * scale).astype(np.float32)


def _outline(rng: np.random.Generator) -> np.ndarray:
    """A rounded polygon or a flower."""
    direction = np.arange(OUTLINE_POINTS) * (math.tau / OUTLINE_POINTS)
    corners = rng.integers(4, 8)
    if rng.uniform() < 0.5:
        half = math.pi / corners
        radius = (math.cos(half) / np.cos(direction % (2 * half) - half)) ** rng.uniform(0.5, 0.9)
    else:
        radius = 1 + rng.uniform(0.08, 0.2) * np.cos(corners * direction)
    return (radius / np.sqrt(np.mean(radius**2))).astype(np.float32)
