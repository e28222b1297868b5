import cv2
import numpy as np
import pytest
import torch

from datamodules import flow_codec


def test_zero_is_128_and_the_bounds_are_0_and_255():
    flow = np.array([0.0, -20.0, 20.0, -1e9, 1e9, 20 / 255 * 2], np.float32)
    assert flow_codec.encode(flow).tolist() == [128, 0, 255, 0, 255, 128]


def test_every_level_survives_a_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(flow_codec.encode(flow_codec.decode(levels)), levels)


def test_error_is_at_most_half_a_level():
    flow = np.linspace(-20, 20, 100_001, dtype=np.float32)
    assert np.abs(flow_codec.decode(flow_codec.encode(flow)) - flow).max() <= 40 / 255 / 2 + 1e-6


def test_equals_the_formula_of_the_paper_in_double_precision_away_from_ties():
    flow = np.random.default_rng(0).uniform(-25, 25, 100_000)
    exact = (np.clip(flow, -20, 20) + 20) * 255 / 40
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    assert np.array_equal(flow_codec.encode(flow)[clear], np.rint(exact)[clear].astype(np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_quantised_to_the_same_bits(dtype):
    flow = np.random.default_rng(1).uniform(-25, 25, 100_000).astype(np.float32)
    stored = flow_codec.decode(flow_codec.encode(flow))
    assert np.array_equal(flow_codec.quantise(torch.from_numpy(flow).to(dtype)).float().numpy(), stored)


def test_gradient_passes_the_rounding_and_stops_at_the_bound():
    flow = torch.tensor([-21.0, -3.3, 0.0, 19.99, 20.5], requires_grad=True)
    flow_codec.quantise(flow).sum().backward()
    assert flow.grad.tolist() == [0, 1, 1, 1, 0]


def test_flow_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="2 values that are not finite"):
        flow_codec.encode(np.array([0.0, np.nan, np.inf]))


def test_png_is_gray_and_lossless_and_a_broken_one_is_named():
    plane = np.random.default_rng(2).integers(0, 256, (13, 17), dtype=np.uint8)
    data = flow_codec.to_png(plane)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), plane)
    assert np.array_equal(flow_codec.from_png(data, "a.png"), plane)
    for broken in (b"", data[:20], flow_codec.to_png(np.dstack([plane] * 3))):
        with pytest.raises(ValueError, match=r"a\.png: not a gray-scale 8-bit PNG"):
            flow_codec.from_png(broken, "a.png")
