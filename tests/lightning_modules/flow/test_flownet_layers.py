import numpy as np
import pytest
import torch

from lightning_modules.flow.correlation import correlation
from lightning_modules.flow.flownet_layers import PredictFlow, channelnorm, resample2d, upsample


@pytest.mark.parametrize(
    "case", ["correlation", "resample2d/random", "resample2d/integer", "resample2d/zero", "channelnorm"]
)
def test_operator_equals_nvidias(flownet2_oracle, oracle_rule, case):
    operator = {"correlation": correlation, "resample2d": resample2d, "channelnorm": channelnorm}[case.split("/")[0]]
    numbers = np.load(flownet2_oracle / "ops.npz")
    names = [name for name in ("in0", "in1") if f"{case}.{name}" in numbers]
    inputs = [torch.from_numpy(numbers[f"{case}.{name}"]).requires_grad_() for name in names]
    out = operator(*inputs)
    (out * torch.from_numpy(oracle_rule.probe(out.shape, case))).sum().backward()
    np.testing.assert_allclose(out.detach().numpy(), numbers[f"{case}.out"], atol=1e-12)
    for tensor, name in zip(inputs, names, strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), numbers[f"{case}.{name.replace('in', 'grad')}"], atol=1e-12)


def test_warp_by_whole_pixels_is_a_shift_and_the_edge_is_repeated():
    image = torch.arange(2 * 5 * 7, dtype=torch.float64).view(1, 2, 5, 7)
    flow = torch.zeros(1, 2, 5, 7, dtype=torch.float64)
    flow[:, 0], flow[:, 1] = 2, -1
    warped = resample2d(image, flow)
    assert torch.equal(warped[..., 1:, :5], image[..., :-1, 2:])
    assert torch.equal(warped[..., 0, :5], image[..., 0, 2:])
    assert torch.equal(warped[..., 5:], warped[..., 4:5].expand(-1, -1, -1, 2))


def test_warp_of_a_plane_is_exact_at_any_fraction():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    plane = (2 * x - 3 * y)[None, None].double()
    flow = torch.tensor([0.3, -0.6], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 9, 11)
    expected = plane + 2 * 0.3 - 3 * -0.6
    torch.testing.assert_close(resample2d(plane, flow)[..., 1:, :-1], expected[..., 1:, :-1])


def test_flow_that_is_nan_or_infinite_gives_nan_there_and_only_there():
    flow = torch.zeros(1, 2, 4, 6)
    flow[0, 0, 1, 2], flow[0, 1, 3, 3], flow[0, 0, 2, 2] = float("nan"), float("inf"), 1e30
    image = torch.rand(1, 3, 4, 6)
    warped = resample2d(image, flow)
    broken = torch.zeros(4, 6, dtype=torch.bool)
    broken[1, 2] = broken[3, 3] = True
    assert torch.equal(warped.isnan(), broken.expand(1, 3, 4, 6))
    assert torch.equal(warped[..., 2, 2], image[..., 2, 5])


def test_norm_has_gradient_zero_at_zero():
    x = torch.zeros(2, 3, 2, 2, requires_grad=True)
    channelnorm(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_flow_warp_and_norm_are_float32_under_autocast():
    features, flow = torch.rand(1, 8, 4, 4), torch.rand(1, 2, 4, 4)
    predict = PredictFlow(8)
    exact = predict(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.conv2d(features, predict.weight).dtype == torch.bfloat16
        assert torch.equal(predict(features), exact)
        assert resample2d(features[:, :3].bfloat16(), flow).dtype == torch.float32
        assert channelnorm(features.bfloat16()).dtype == torch.float32
        assert correlation(features.bfloat16(), features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_keeps_a_constant_flow(mode):
    flow = torch.full((1, 2, 3, 5), 1.5)
    assert torch.equal(upsample(flow, mode=mode), torch.full((1, 2, 12, 20), 1.5))
