"""Augmentation where the training uses it: stacks and pairs of the training loaders, against motions of known flow."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.batches import FlowStackBatch
from datamodules.flow_codec import FLOW_BOUND, LEVELS_PER_PIXEL, decode, encode
from datamodules.flow_pairs import FlowPairs
from datamodules.flow_stacks import FlowStacks
from datamodules.video_data import FlowData
from datamodules.video_dataset import Clip, Subset, VideoDataset

HALF_LEVEL = 0.5 / LEVELS_PER_PIXEL + 1e-4
"""Pixels; storing a vector changes it by no more."""


class Known(VideoDataset):
    """Training clips c/0, c/1 … of classes 0, 1 …, which all have the same frames, if any."""

    classes: ClassVar[list[str]] = ["a", "b", "c"]
    settings: ClassVar[dict] = {}
    frame_settings: ClassVar[dict] = {}

    def __init__(self, folder: Path, count: int, frames: np.ndarray | None = None) -> None:
        self.folder, self.count, self.frames = folder, count, frames

    def prepare(self) -> None:
        pass

    def clips(self, subset: Subset) -> list[Clip]:
        return [Clip(self.folder / f"{k}.avi", f"c/{k}", k, f"c_{k}") for k in range(self.count)]

    def decode(self, clip: Clip) -> np.ndarray:
        assert self.frames is not None
        return self.frames


@pytest.fixture
def module(tmp_path: Path, difference) -> Callable[..., FlowData]:
    """Makes a DataModule on clips with the given flow (n, 2, H, W) in its store."""

    def make(
        kind: type[FlowData], flows: Sequence[np.ndarray], *, frames: np.ndarray | None = None, **options
    ) -> FlowData:
        dataset = Known(tmp_path, len(flows), frames)
        data = kind(dataset, estimator=difference(), store=tmp_path / "store", num_workers=0, **options)
        data.store.open_for_writing()
        for clip, flow in zip(dataset.clips("train"), flows, strict=True):
            clip.path.touch()
            data.store.write(clip, flow)
        return data

    return make


@pytest.fixture
def stacks(module) -> Callable[..., Sequence[FlowStackBatch]]:
    """The training items of FlowStacks on clips with the given flow."""

    def make(*flows: np.ndarray, **options):
        return module(FlowStacks, flows, **options).train_dataloader().dataset

    return make


def drawn(items: Sequence[FlowStackBatch], count: int, index: int = 0) -> list[Tensor]:
    """One training item drawn `count` times: its fields (T-1, 2, h, w)."""
    torch.manual_seed(0)
    return [items[index].flow.unflatten(0, (-1, 2)) for _ in range(count)]


def motion(u: float, v: float, growth: float = 0.0, *, size: int = 16) -> Tensor:
    """Flow (2, size, size) of a picture that moves by (u, v) and grows by 1 + growth about its centre."""
    place = torch.arange(size) - (size - 1) / 2
    return torch.stack([u + growth * place.expand(size, size), v + growth * place[:, None].expand(size, size)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"flip": True}, {"as it is", "mirrored"}),
        ({"reverse": True}, {"as it is", "backwards"}),
        ({"flip": True, "reverse": True}, {"as it is", "mirrored", "backwards", "mirrored backwards"}),
    ],
)
def test_a_mirrored_or_reversed_stack_is_the_flow_of_that_video(stacks, options, expected):
    """A growing picture also grows in the mirror, but it moves to the other side; played backwards it shrinks."""
    speeds = [1.0, 3.0, 6.0]
    outcomes = {
        "as it is": [motion(a, -2 * a, 0.25) for a in speeds],
        "mirrored": [motion(-a, -2 * a, 0.25) for a in speeds],
        "backwards": [motion(-a, 2 * a, -0.25) for a in reversed(speeds)],
        "mirrored backwards": [motion(a, 2 * a, -0.25) for a in reversed(speeds)],
    }
    flow = torch.stack(outcomes["as it is"]).numpy()
    items = stacks(flow, crop=16, scales=(1.0,), stack_length=4, **options)
    seen = set()
    for stack in drawn(items, 40):
        error = {name: float((stack - torch.stack(fields)).abs().max()) for name, fields in outcomes.items()}
        nearest = min(error, key=lambda name: error[name])
        assert error[nearest] <= HALF_LEVEL, f"no such motion: nearest is {nearest!r}, {error[nearest]:.2f} pixels off"
        seen.add(nearest)
    assert seen == expected


@pytest.mark.parametrize(("scale", "crop"), [(1.0, 8), (1.0, 24), (0.5, 16), (0.75, 24)])
def test_a_zoomed_stack_has_scaled_vectors(stacks, scale, crop):
    zoom = crop / (scale * 16)
    flow = torch.stack([motion(3, -2), motion(-5, 9)]).numpy()
    for stack in drawn(stacks(flow, crop=crop, scales=(scale,), stack_length=3), 5):
        expected = torch.stack([motion(3 * zoom, -2 * zoom, size=crop), motion(-5 * zoom, 9 * zoom, size=crop)])
        torch.testing.assert_close(stack, expected, atol=HALF_LEVEL * zoom, rtol=0)


def test_a_zoom_keeps_the_rate_of_growth(stacks):
    """du/dx has no unit: it changes if only the picture or only the vectors are enlarged."""
    growth = 2 / LEVELS_PER_PIXEL  # whole levels, so that storing does not round
    flow = decode(encode(motion(0, 0, growth).numpy()))[None]
    for crop in (8, 24):
        (field,) = drawn(stacks(flow, crop=crop, scales=(1.0,), stack_length=2), 1)[0][..., 2:-2, 2:-2]
        torch.testing.assert_close(field[0].diff(dim=1), torch.full_like(field[0].diff(dim=1), growth))
        torch.testing.assert_close(field[1].diff(dim=0), torch.full_like(field[1].diff(dim=0), growth))


def test_zoomed_vectors_stay_within_the_bound(stacks):
    flow = motion(15, -15).numpy()[None]
    (stack,) = drawn(stacks(flow, crop=32, scales=(1.0,), stack_length=2), 1)
    assert torch.equal(stack, motion(FLOW_BOUND, -FLOW_BOUND, size=32)[None])


def test_training_crops_lie_everywhere_and_at_the_same_place_in_all_planes(stacks):
    """The stored level of u is the column and that of v the row: a crop tells where it was taken."""
    row, column = np.mgrid[:12, :18].astype(np.uint8)
    flow = decode(np.stack([column, row])[None].repeat(3, 0))
    places = set()
    for stack in drawn(stacks(flow, crop=6, scales=(0.5,), stack_length=4), 300):
        levels = encode(stack.numpy())
        left, top = levels[0, :, 0, 0]
        window = np.stack([column, row])[:, top : top + 6, left : left + 6]
        assert np.array_equal(levels, window[None].repeat(3, 0))
        places.add((int(top), int(left)))
    assert {top for top, _ in places} == set(range(7)), "rows at which crops begin"
    assert {left for _, left in places} == set(range(13)), "columns at which crops begin"


def test_training_stacks_begin_at_every_field_from_which_a_stack_fits(stacks):
    """The stored level of u is the field's number, that of v the clip's."""
    counts = [4, 5, 9]
    flows = [
        decode(np.stack([np.stack([np.full((4, 4), k), np.full((4, 4), clip)]) for k in range(count)]).astype(np.uint8))
        for clip, count in enumerate(counts)
    ]
    items = stacks(*flows, crop=4, scales=(1.0,), stack_length=5, stacks_per_clip=2)
    assert len(items) == 6
    for index in range(6):
        clip = index % 3
        starts = set()
        for stack in drawn(items, 80, index):
            fields, clips = encode(stack.numpy()).astype(int).transpose(1, 0, 2, 3)
            start = int(fields[0, 0, 0])
            assert fields[:, 0, 0].tolist() == list(range(start, start + 4)) and (clips == clip).all()
            starts.add(start)
        assert starts == set(range(counts[clip] - 3)), f"first fields of stacks of a clip of {counts[clip]} fields"
        assert items[index].label == clip


SLOPE = 0.6 / 18


def scene(u: float, v: float, growth: float = 0.0) -> tuple[Tensor, Tensor]:
    """Frames (2, 3, 12, 18) and their flow (1, 2, 12, 18). Red is a ramp along x, green one along y.

    The picture moves by (u, v) and grows by 1 + growth about its centre: the second frame's ramps are flatter.
    """
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(18.0), indexing="ij")
    flow = torch.stack([u + growth * (x - 8.5), v + growth * (y - 5.5)])
    from_x, from_y = (x - u + growth * 8.5) / (1 + growth), (y - v + growth * 5.5) / (1 + growth)
    blue = torch.full_like(x, 0.5)
    first = torch.stack([0.2 + SLOPE * x, 0.2 + SLOPE * y, blue])
    second = torch.stack([0.2 + SLOPE * from_x, 0.2 + SLOPE * from_y, blue])
    return torch.stack([first, second]), flow[None]


def slopes(frame: Tensor) -> tuple[float, float]:
    """Slope of red along x and of green along y, per pixel. The median skips the borders, which a zoom repeats."""
    return float(frame[0].diff(dim=1).median()), float(frame[1].diff(dim=0).median())


def miss(frames: Tensor, flow: Tensor) -> float:
    """Error of the worst vector, pixels: the second frame at its end must have the first frame's colour at its start.

    On ramps the brightness constancy equation is exact, and zooms, crops and flips keep ramps.
    """
    channels = zip(frames[0, :2], frames[1, :2], slopes(frames[1]), flow[0], strict=True)
    error = torch.stack([(second + slope * vector - first) / slope for first, second, slope, vector in channels])
    return float(error[:, 2:-2, 2:-2].abs().max())


def augmented(data: FlowData, frames: Tensor, flow: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    assert isinstance(data, FlowPairs)
    torch.manual_seed(0)
    return [data.augment(frames, flow) for _ in range(count)]


GEOMETRY = [
    {"flip": True},
    {"zoom": 2.0},
    {"crop": (8, 11)},
    {"crop": (8, 11), "shift": 3},
    {"flip": True, "zoom": 2.0, "crop": (8, 11), "shift": 3},
]


@pytest.mark.parametrize("options", GEOMETRY, ids=str)
def test_augmented_flow_still_leads_from_the_first_frame_to_the_second(module, options):
    data = module(FlowPairs, [], **{"flip": False, "photometry": 0.0, **options})
    pair = scene(2, -1, growth=0.2)
    assert miss(*pair) < 1e-3
    for frames, flow in augmented(data, *pair, 60):
        assert frames.shape[-2:] == flow.shape[-2:] == options.get("crop", (12, 18))
        assert (off := miss(frames, flow)) < 1e-3, f"a vector misses its place by {off:.2f} pixels"


def test_pairs_are_mirrored_both_ways(module):
    data = module(FlowPairs, [], photometry=0.0)
    signs = {tuple(np.sign(slopes(frames[0]))) for frames, _ in augmented(data, *scene(2, -1), 60)}
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_pairs_are_zoomed_over_the_whole_range(module):
    """The frames' slope tells the zoom, and so does the length of the vectors of a translation."""
    data = module(FlowPairs, [], flip=False, photometry=0.0, zoom=2.0)
    zooms = []
    for frames, flow in augmented(data, *scene(2, -1), 60):
        zooms.append(SLOPE / slopes(frames[0])[0])
        assert flow[0, 0].min() == flow[0, 0].max() == pytest.approx(2 * zooms[-1], rel=1e-3)
    assert 1 <= min(zooms) < 1.1 and 1.9 < max(zooms) <= 2.001


def test_crops_of_pairs_lie_everywhere(module):
    data = module(FlowPairs, [], flip=False, photometry=0.0, crop=(8, 11))
    corners = torch.stack([frames[0, :2, 0, 0] for frames, _ in augmented(data, *scene(2, -1), 200)])
    lefts, tops = ((corners - 0.2) / SLOPE).round().int().T.tolist()
    assert set(tops) == set(range(5)) and set(lefts) == set(range(8))


def test_a_shift_gives_a_still_pair_every_motion_up_to_it(module):
    data = module(FlowPairs, [], flip=False, photometry=0.0, crop=(6, 9), shift=3)
    vectors = torch.stack([flow[0, :, 0, 0] for _, flow in augmented(data, *scene(0, 0), 400)])
    for component in vectors.T:
        assert set(component.tolist()) == set(range(-3, 4))


def test_photometry_changes_the_frames_alike_and_leaves_the_flow(module):
    """In a still pair both frames stay the same but for noise, σ at most 0.04 in each."""
    frames, flow = scene(0, 0)
    mean_change = {}
    for strength in (0.0, 0.2, 1.0):
        data = module(FlowPairs, [], flip=False, photometry=strength)
        changes = []
        for lit, target in augmented(data, frames, flow, 40):
            assert torch.equal(target, flow)
            assert (lit[0] - lit[1]).std() < 1.1 * 0.04 * 2**0.5 * strength + 1e-7
            changes.append(float((lit - frames).mean((0, 2, 3)).abs().mean()))
        mean_change[strength] = np.mean(changes)
    assert mean_change[0.0] == 0
    assert mean_change[1.0] > 0.05, "the frames are hardly lit otherwise"
    assert 0.1 < mean_change[0.2] / mean_change[1.0] < 0.3, "strength 0.2 is about a fifth of strength 1"


def test_training_pairs_are_augmented_with_their_own_flow(module):
    """From the store and the video to the batch: each pair of the clip moves in its own way."""
    steps = [(2, -1), (-1, 2), (3, 1), (-3, -3)]
    places = np.cumsum([(0, 0), *steps], axis=0)
    y, x = np.mgrid[:12, :18]
    frames = np.stack([np.stack([60 + 8 * (x - u), 60 + 8 * (y - v), 0 * x], -1) for u, v in places]).astype(np.uint8)
    flow = np.stack([np.full((12, 18, 2), step).transpose(2, 0, 1) for step in steps]).astype(np.float32)
    data = module(FlowPairs, [flow], frames=frames, photometry=0.0, crop=(8, 11), pairs_at_once=2)
    torch.manual_seed(0)
    signs, motions = set(), []
    for _ in range(10):
        for batch in data.train_dataloader():
            for pair, target in zip(*batch, strict=True):
                assert miss(pair, target) <= HALF_LEVEL
                signs.add(tuple(np.sign(slopes(pair[0]))))
                motions.append(tuple(target[0, :, 0, 0].abs().round().int().tolist()))
    assert len(signs) == 4
    assert sorted(motions) == sorted(10 * [(abs(u), abs(v)) for u, v in steps])
