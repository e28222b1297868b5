import json

import numpy as np
import pytest
import torch

from lightning_modules.flow.losses import MultiScale, end_point_error, flow_loss


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    rng = np.random.RandomState(11)
    target, full = (torch.from_numpy(rng.standard_normal((2, 2, 64, 128)) * 5) for _ in range(2))
    pyramid = tuple(torch.from_numpy(rng.standard_normal((2, 2, 64 >> k, 128 >> k))) for k in range(2, 7))
    return target, full, pyramid


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_losses_are_nvidias(flownet2_oracle, case, norm):
    numbers = json.loads((flownet2_oracle / "losses.json").read_text())
    target, full, pyramid = case
    plain, multi = numbers[f"{norm}Loss/full"], numbers[f"MultiScale {norm}/tuple"]
    assert flow_loss(full, target, norm=norm).item() == pytest.approx(plain["loss"], rel=1e-12)
    assert MultiScale(norm)(full, target).item() == pytest.approx(plain["loss"], rel=1e-12)
    assert MultiScale(norm)((full,), target).item() == pytest.approx(plain["loss"], rel=1e-12)
    assert end_point_error(full, target).item() == pytest.approx(plain["epe"], rel=1e-12)
    # NVIDIA's losses.json weighs with float32 constants
    assert MultiScale(norm)(pyramid, target).item() == pytest.approx(multi["loss"], rel=1e-7)
    assert MultiScale("L2")(pyramid, target).item() == pytest.approx(multi["epe"], rel=1e-7)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_the_right_pyramid_has_no_loss_at_sizes_that_are_no_multiples(norm):
    target = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 50, 70)
    pyramid = tuple(target[..., : -(-50 // cell), : -(-70 // cell)] / 20 for cell in (4, 8, 16, 32, 64))
    assert MultiScale(norm)(pyramid, target).item() == pytest.approx(0, abs=1e-6)


def test_a_cell_over_the_edge_averages_the_pixels_it_has():
    target = torch.zeros(1, 2, 4, 6)
    target[..., 4:] = 8.0
    finest = torch.zeros(1, 2, 1, 2)
    assert MultiScale("L1")((finest, finest[..., :1]), target).item() == pytest.approx(
        0.32 * 0.05 * 8 / 2 + 0.16 * 0.05 * 8 * 2 / 6
    )


def test_end_point_error_is_the_mean_length():
    flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert end_point_error(flow, torch.zeros(1, 2, 3, 3)).item() == 5.0
    assert end_point_error(flow[:, None], torch.zeros(1, 1, 2, 3, 3)).item() == 5.0


def test_loss_is_differentiable_where_flow_and_target_agree():
    flow = torch.zeros(1, 2, 4, 4, requires_grad=True)
    MultiScale("L2")(flow, torch.zeros(1, 2, 4, 4)).backward()
    assert torch.equal(flow.grad, torch.zeros_like(flow))


def test_errors_name_what_was_seen():
    with pytest.raises(ValueError, match="L3"):
        MultiScale("L3")
    with pytest.raises(ValueError, match=r"\(1, 2, 9, 9\).*\(1, 2, 64, 64\)"):
        MultiScale()((torch.zeros(1, 2, 9, 9), torch.zeros(1, 2, 8, 8)), torch.zeros(1, 2, 64, 64))
