"""The transforms against what they mean: flow leads from a place in the first frame to the same in the second."""

import cv2
import numpy as np
import pytest
import torch

from datamodules import transforms


def shifted_pair(u: int, v: int, size: int = 64) -> torch.Tensor:
    """Two frames (2, 3, size, size) of a texture that moves by (u, v) whole pixels."""
    noise = np.random.default_rng(0).uniform(0, 1, (size + 40, size + 40)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 1, cv2.NORM_MINMAX)
    first, second = texture[20 : 20 + size, 20 : 20 + size], texture[20 - v : 20 - v + size, 20 - u : 20 - u + size]
    return torch.from_numpy(np.stack([first, second]))[:, None].repeat(1, 3, 1, 1)


def estimated(frames: torch.Tensor) -> torch.Tensor:
    """Median Farneback flow (u, v) of a pair (2, 3, H, W)."""
    gray = (frames[:, 0].numpy() * 255).astype(np.uint8)
    flow = cv2.calcOpticalFlowFarneback(gray[0], gray[1], None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return torch.from_numpy(np.median(flow[8:-8, 8:-8], axis=(0, 1)))


def constant(u: float, v: float, size: int = 64) -> torch.Tensor:
    return torch.tensor([u, v], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, size, size).clone()


def test_the_fixture_moves_as_it_says():
    assert torch.allclose(estimated(shifted_pair(3, -2)), torch.tensor([3.0, -2.0]), atol=0.1)


def test_a_horizontal_flip_negates_u():
    flipped = transforms.flip_flow(constant(3, -2))
    assert torch.allclose(estimated(shifted_pair(3, -2).flip(-1)), flipped[0, :, 0, 0], atol=0.1)


def test_reversed_flow_is_that_of_the_video_played_backwards():
    pair = shifted_pair(3, -2)
    video = torch.stack([pair[0], pair[1], shifted_pair(5, 2)[1]])  # moves by (3, -2), then by (2, 4)
    flow = torch.cat([constant(3, -2), constant(2, 4)])
    reversed_flow = transforms.reverse_flow(flow)
    for field, backwards in zip(reversed_flow, video.flip(0).unfold(0, 2, 1).movedim(-1, 1), strict=True):
        assert torch.allclose(estimated(backwards), field[:, 0, 0], atol=0.1)


def test_erasing_puts_the_mean_into_one_square_of_all_planes():
    torch.manual_seed(0)
    flow = torch.randn(10, 2, 40, 30)
    places = set()
    for _ in range(20):
        changed = transforms.erase_flow(flow, 0.12) != flow
        assert (changed == changed[:1, :1]).all()
        rows, columns = changed[0, 0].any(1).nonzero()[:, 0], changed[0, 0].any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == 12  # the root of 0.12 x 40 x 30
        assert changed[0, 0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 10
    erased = transforms.erase_flow(flow, 0.12)
    means = flow.mean((-2, -1), keepdim=True).expand_as(flow)
    assert torch.equal(erased[erased != flow], means[erased != flow])


def test_pair_flips_keep_flow_and_frames_together():
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        frames, flow = transforms.random_pair_flips(shifted_pair(3, -2), constant(3, -2))
        assert torch.allclose(estimated(frames), flow[0, :, 0, 0], atol=0.1)
        seen.add(tuple(flow[0, :, 0, 0].tolist()))
    assert seen == {(3, -2), (-3, -2), (3, 2), (-3, 2)}


def test_a_resize_scales_the_vectors():
    resized = transforms.resize_flow(constant(4, -2), 32, 96)
    assert torch.allclose(resized, torch.tensor([6.0, -1.0]).view(1, 2, 1, 1).expand_as(resized))


def test_squares_reach_every_corner_and_stay_inside():
    torch.manual_seed(2)
    squares = [transforms.random_square(6, 9, (0.5,)) for _ in range(400)]
    assert {(rows.start, columns.start) for rows, columns in squares} == {(y, x) for y in range(4) for x in range(7)}
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in squares} == {(3, 3)}


def test_pair_crop_takes_the_same_window():
    torch.manual_seed(3)
    ramp = torch.arange(48.0).view(1, 1, 6, 8)
    frames, flow = transforms.random_pair_crop(ramp.expand(2, 3, 6, 8), ramp.expand(1, 2, 6, 8), (4, 5))
    assert frames.shape[-2:] == (4, 5)
    assert torch.equal(frames[0, 0], flow[0, 0]) and torch.equal(frames[0], frames[1])


def test_a_shifted_crop_adds_its_shift_to_the_vectors():
    torch.manual_seed(5)
    seen = set()
    for _ in range(40):
        frames, flow = transforms.random_pair_crop(shifted_pair(3, -2), constant(3, -2), (40, 44), shift=3)
        assert frames.shape[-2:] == flow.shape[-2:] == (40, 44)
        u, v = flow[0, :, 0, 0].int().tolist()
        assert torch.equal(frames[0, :, 10:30, 10:30], frames[1, :, 10 + v : 30 + v, 10 + u : 30 + u])
        seen.add(tuple((flow[0, :, 0, 0] - torch.tensor([3.0, -2.0])).tolist()))
    assert {max(abs(x) for x in columns) for columns in zip(*seen, strict=True)} == {3.0}


def test_a_zoom_enlarges_the_vectors():
    torch.manual_seed(6)
    factors = []
    for _ in range(6):
        frames, flow = transforms.random_pair_zoom(shifted_pair(3, -2), constant(3, -2), 2.0)
        assert frames.shape[-2:] == flow.shape[-2:]
        factors.append(frames.shape[-1] / 64)
        assert torch.allclose(flow[0, 0], torch.tensor(3 * factors[-1]))
        assert torch.allclose(estimated(frames), flow[0, :, 5, 5], atol=0.3)
    assert 1 <= min(factors) < 1.4 < 1.6 < max(factors) <= 2


def test_centre_crop_is_in_the_middle_and_refuses_small_frames():
    assert transforms.centre_crop(torch.arange(5.0).expand(5, 5), 1).item() == 2
    with pytest.raises(ValueError, match="crop 7: frames of 5×5 are smaller"):
        transforms.centre_crop(torch.zeros(5, 5), 7)
    with pytest.raises(ValueError, match="crop 7×5: frames of 5×5 are smaller"):
        transforms.random_pair_crop(torch.zeros(5, 5), torch.zeros(5, 5), (7, 5))


def test_photometry_keeps_the_range_and_the_motion():
    torch.manual_seed(4)
    frames = shifted_pair(3, -2)
    for _ in range(5):
        lit = transforms.random_photometry(frames, strength=1.0)
        assert lit.min() >= 0 and lit.max() <= 1 and not torch.equal(lit, frames)
    assert torch.equal(transforms.random_photometry(frames, strength=0), frames)
