import pickle

import cv2
import numpy as np
import pytest
import torch

from lightning_modules.flow.farneback import Farneback
from lightning_modules.flow.opencv_flow import eight_bit
from lightning_modules.flow.tvl1 import TVL1


def moving_texture(u: int, v: int, frames: int, height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3): a smooth texture that moves by (u, v) pixels a frame."""
    margin = frames * max(abs(u), abs(v))
    noise = np.random.default_rng(seed).uniform(0, 255, (height + 2 * margin, width + 2 * margin, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 3)
    texture = (texture - texture.min()) / (texture.max() - texture.min()) * 255
    corners = [(margin - t * v, margin - t * u) for t in range(frames)]
    return np.stack([texture[y : y + height, x : x + width] for y, x in corners]).round().astype(np.uint8)


def as_frames(clips: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255


def bare_tvl1(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)


def bare_farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)


@pytest.fixture(params=[(TVL1, bare_tvl1), (Farneback, bare_farneback)], ids=["tvl1", "farneback"])
def algorithm(request):
    return request.param


def test_equals_a_bare_loop_over_opencv_exactly(algorithm):
    estimator, bare = algorithm
    clips = [moving_texture(2, 1, 3), moving_texture(-1, 3, 3, seed=1)]
    flow = estimator()(as_frames(clips))
    assert flow.shape == (2, 2, 2, 64, 80)
    assert flow.dtype == torch.float32
    for b, clip in enumerate(clips):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        for t in range(2):
            np.testing.assert_array_equal(flow[b, t].permute(1, 2, 0).numpy(), bare(grey[t], grey[t + 1]))
        np.testing.assert_array_equal(estimator().flow_of_images(clip), flow[b].numpy())


@pytest.mark.parametrize("motion", [(3, -2), (-4, 1)])
def test_the_true_translation_comes_back(algorithm, motion):
    flow = algorithm[0]()(as_frames([moving_texture(*motion, 2)]))[0, 0, :, 16:-16, 16:-16]
    error = (flow - torch.tensor(motion, dtype=torch.float32).view(2, 1, 1)).norm(dim=0)
    assert error.median() < 0.1
    assert error.mean() < 0.25


def test_flow_does_not_depend_on_the_number_of_threads(algorithm):
    frames = as_frames([moving_texture(2, 1, 4)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = algorithm[0]()(frames)
        torch.set_num_threads(3)
        assert torch.equal(algorithm[0]()(frames), alone)
    finally:
        torch.set_num_threads(before)


def test_a_pickled_estimator_gives_the_same_flow(algorithm):
    frames = as_frames([moving_texture(1, 2, 2)])
    estimator = algorithm[0]()
    copy = pickle.loads(pickle.dumps(estimator))
    assert copy.settings == estimator.settings
    assert torch.equal(copy(frames), estimator(frames))


def test_every_parameter_reaches_opencv_and_the_settings():
    frames = as_frames([moving_texture(3, -2, 2, 128, 160)])  # Farneback's pyramid ends at 32 px
    options = {
        TVL1: {"tau": 0.2, "lambda_": 0.3, "theta": 0.1, "scales": 1, "scale_step": 0.5, "warps": 1, "epsilon": 0.1}
        | {"inner_iterations": 2, "outer_iterations": 1, "median_filtering": 1, "gamma": 0.5},
        Farneback: {"pyr_scale": 0.8, "levels": 1, "winsize": 9, "iterations": 1, "poly_n": 7, "poly_sigma": 1.5}
        | {"gaussian_window": True},
    }
    for estimator, changes in options.items():
        default = estimator()
        flow = default(frames)
        assert set(changes) == set(default.settings) - {"algorithm", "opencv"}
        for name, value in changes.items():
            changed = estimator(**{name: value})
            assert changed.settings == default.settings | {name: value}
            assert not torch.equal(changed(frames), flow), name
    assert TVL1().settings["opencv"] == cv2.__version__


def test_frames_are_rounded_to_eight_bits_half_to_even():
    levels = torch.tensor([0.5, 1.5, 2.5, 254.5, 255.0, 0.0]) / 255
    frames = levels.double().view(1, 1, 1, 1, -1).expand(1, 1, 3, 1, -1)
    halves = (frames * 255 - (frames * 255).floor() == 0.5)[0, 0, 0, 0]
    expected = np.array([0, 2, 2, 254, 255, 0])
    np.testing.assert_array_equal(eight_bit(frames)[0, 0, 0, halves.numpy(), 0], expected[halves.numpy()])
    every = torch.arange(256).float() / 255
    np.testing.assert_array_equal(eight_bit(every.view(1, 1, -1).expand(3, 1, -1))[0, :, 1], np.arange(256))


def test_opencv_without_contrib_names_the_wheel(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ImportError, match="opencv-contrib-python-headless"):
        TVL1()


def test_frames_of_another_shape_are_refused(algorithm):
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 8, 8\)"):
        algorithm[0]()(torch.zeros(1, 1, 3, 8, 8))


@pytest.mark.parametrize("algorithm", [TVL1(), Farneback()], ids=lambda a: a.algorithm)
def test_frames_and_rounded_frames_give_the_same_flow(algorithm):
    """What `rounds_frames` promises; the sweep need not judge rounded frames again."""
    torch.manual_seed(0)
    frames = torch.rand(1, 2, 3, 32, 40)
    assert algorithm.rounds_frames
    assert torch.equal(algorithm(frames), algorithm((frames * 255).round() / 255))
