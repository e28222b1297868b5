import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.settings import weights_sha256
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.flownet_layers import PredictFlow, UpsampledFlow, upsample
from lightning_modules.flow.flownet_networks import VARIANTS, identify
from lightning_modules.flow.losses import MultiScale

SINGLE = ("FlowNet2C", "FlowNet2S", "FlowNet2SD")
STACKS = ("FlowNet2CS", "FlowNet2CSS", "FlowNet2")


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in network.state_dict().items()}


def on_meta(variant: str, **options) -> nn.Module:
    with torch.device("meta"):
        return VARIANTS[variant](**options)


@pytest.fixture(scope="module")
def filled(oracle_rule):
    """The published networks with the oracle's weights in float32; the whole lends CS and CSS theirs."""
    networks: dict[str, nn.Module] = {}

    def network(variant: str) -> nn.Module:
        if variant not in networks:
            bare = on_meta(variant)
            if variant in ("FlowNet2CS", "FlowNet2CSS"):
                whole = network("FlowNet2").state_dict()
                bare.load_state_dict({key: whole[key] for key in bare.state_dict()}, assign=True)
            else:
                oracle_rule.fill(bare.to_empty(device="cpu"))
            networks[variant] = bare.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        return networks[variant]

    return network


def small(variant: str, **options) -> FlowNet2Estimator:
    """A narrow estimator in float64 whose flows are a few pixels, with biases that are not zero."""
    torch.manual_seed(0)
    estimator = FlowNet2Estimator(variant=variant, width=0.0625, **options).double().eval()
    for module in estimator.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.02, 0.02)
    return estimator.requires_grad_(False)


class Told(nn.Module):
    """A network that knows the answer: flows given as a function of the pixel centres (x, y) of the frames it sees."""

    def __init__(self, u, v, cells=(4, 8, 16, 32, 64)) -> None:
        super().__init__()
        self.u, self.v, self.cells = u, v, cells

    def field(self, pair: torch.Tensor, cell: int) -> torch.Tensor:
        height, width = pair.shape[-2:]
        y, x = torch.meshgrid(
            (torch.arange(height // cell) + 0.5) * cell, (torch.arange(width // cell) + 0.5) * cell, indexing="ij"
        )
        return torch.stack((self.u(x, y), self.v(x, y)))[None].expand(len(pair), -1, -1, -1)

    def flow(self, pair: torch.Tensor) -> torch.Tensor:
        return self.field(pair, 1)

    def training_flows(self, pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.field(pair, cell) / 20 for cell in self.cells)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_keys_and_shapes_are_the_published_ones(flownet2_oracle, variant, batch_norm):
    published = json.loads((flownet2_oracle / "keys.json").read_text())
    assert shapes(on_meta(variant, batch_norm=batch_norm)) == published[variant + "/batchNorm=True" * batch_norm]


def test_flownet2_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in on_meta("FlowNet2").parameters()) == 162_518_834


@pytest.mark.parametrize("variant", [*SINGLE, "FlowNet2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_flow_and_frame_gradient_are_nvidias(flownet2_oracle, oracle_rule, filled, variant, dtype):
    numbers = np.load(flownet2_oracle / f"{variant}.npz")
    network = copy.deepcopy(filled(variant)).to(dtype)
    pair = torch.from_numpy(numbers["pair"]).to(dtype).requires_grad_()
    flow = network(pair)
    (flow * torch.from_numpy(oracle_rule.probe(flow.shape)).to(dtype)).sum().backward()
    error = np.abs(flow.detach().double().numpy() - numbers["flow"]).max()
    gradient, expected = pair.grad.double().numpy(), numbers["grad"]
    if dtype == torch.float64:
        assert error < 1e-10
        assert np.abs(gradient - expected).max() < 1e-10 * np.abs(expected).max()
    else:
        assert error < 1e-4
        assert (gradient * expected).sum() / np.linalg.norm(gradient) / np.linalg.norm(expected) > 0.99999
        assert (np.sign(gradient) == np.sign(expected)).mean() > 0.999


@pytest.mark.parametrize("variant", SINGLE)
def test_training_flows_are_nvidias(flownet2_oracle, filled, variant):
    numbers = np.load(flownet2_oracle / f"{variant}.npz")
    network = copy.deepcopy(filled(variant)).double()
    for flow, scale in zip(network.train()(torch.from_numpy(numbers["pair"]).double()), range(2, 7), strict=True):
        np.testing.assert_allclose(flow.numpy(), numbers[f"train.flow{scale}"], atol=1e-12)


def test_cs_and_css_give_the_inner_flows_of_flownet2(flownet2_oracle, filled):
    numbers = np.load(flownet2_oracle / "FlowNet2.npz")
    pair = torch.from_numpy(numbers["pair"]).double()
    for variant, inner, mode in (("FlowNet2CS", "flownets_1", "bilinear"), ("FlowNet2CSS", "flownets_2", "nearest")):
        flow = copy.deepcopy(filled(variant)).double()(pair)
        expected = upsample(20 * torch.from_numpy(numbers[f"{inner}.flow2"]), mode=mode)
        torch.testing.assert_close(flow, expected, atol=1e-10, rtol=0)


def test_estimator_equals_its_network_on_the_oracles_frames(flownet2_oracle, oracle_rule):
    numbers = np.load(flownet2_oracle / "FlowNet2S.npz")
    estimator = FlowNet2Estimator(variant="FlowNet2S")
    oracle_rule.fill(estimator.network)
    frames = torch.from_numpy(numbers["pair"]).transpose(1, 2).double() / 255
    flow = estimator.double().requires_grad_(False)(frames)
    np.testing.assert_allclose(flow[:, 0].numpy(), numbers["flow"], atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_its_items_give_one_by_one(variant):
    estimator = small(variant)
    frames = torch.rand(3, 3, 3, 70, 64, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(3, 2, 2, 70, 64, dtype=torch.float64)
    flow = estimator(frames)
    (gradient,) = torch.autograd.grad((flow * probe).sum(), frames)
    assert flow.std() > 1e-3
    for b in range(3):
        item = frames[b : b + 1].detach().requires_grad_()
        alone = estimator(item)
        torch.testing.assert_close(alone[0], flow[b], atol=1e-10, rtol=0)
        (alone_gradient,) = torch.autograd.grad((alone * probe[b]).sum(), item)
        assert alone_gradient.abs().max() > 0
        torch.testing.assert_close(alone_gradient[0], gradient[b], atol=1e-10 * gradient.abs().max().item(), rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_agrees_with_finite_differences(variant):
    estimator = small(variant)
    frames = F.interpolate(torch.rand(2, 3, 12, 12, dtype=torch.float64), size=(64, 64), mode="bicubic")
    frames = frames.clamp(0, 1)[None].requires_grad_()
    probe = torch.randn(1, 1, 2, 64, 64, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((estimator(frames) * probe).sum(), frames)
    direction = torch.randn_like(frames)
    step = 1e-8  # small: the network has kinks, a leaky ReLU or a floor, everywhere
    with torch.no_grad():
        ahead, behind = ((estimator(frames + s * step * direction) * probe).sum() for s in (1, -1))
    slope = (gradient * direction).sum()
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-3, atol=1e-3 * slope.abs().item())


def test_pairs_are_neighbours_and_independent():
    estimator = small("FlowNet2S")
    frames = torch.rand(1, 4, 3, 64, 64, dtype=torch.float64)
    flow = estimator(frames)
    for t in range(3):
        torch.testing.assert_close(flow[:, t], estimator(frames[:, t : t + 2])[:, 0], atol=1e-12, rtol=0)
    changed = frames.clone()
    changed[:, 3] = 0.5
    torch.testing.assert_close(estimator(changed)[:, :2], flow[:, :2], atol=1e-12, rtol=0)


def test_flow_does_not_see_a_change_of_brightness_and_mode_does_not_change_it():
    estimator = small("FlowNet2SD")
    frames = 0.2 + 0.5 * torch.rand(1, 2, 3, 64, 64, dtype=torch.float64)
    flow = estimator(frames)
    torch.testing.assert_close(estimator(frames + 0.1), flow, atol=1e-10, rtol=0)
    assert torch.equal(estimator.train()(frames), flow)


@pytest.mark.parametrize("variant", VARIANTS)
def test_width_scales_every_channel_count(variant):
    narrow, published = shapes(on_meta(variant, width=0.25)), shapes(on_meta(variant))
    assert list(narrow) == list(published)
    flow_layers = (PredictFlow, UpsampledFlow)
    for name, module in on_meta(variant).named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(module, flow_layers):
            outputs = 0 if isinstance(module, nn.Conv2d) else 1
            assert narrow[f"{name}.weight"][outputs] * 4 == published[f"{name}.weight"][outputs]


@pytest.mark.parametrize("size", [(60, 100), (64, 70), (130, 128)])
def test_pad_rule_is_padding_by_replication_and_cropping(size):
    estimator = small("FlowNet2CS")
    height, width = size
    frames = torch.rand(1, 2, 3, *size, dtype=torch.float64)
    padded = F.pad(frames[0], (0, -width % 64, 0, -height % 64), mode="replicate")[None]
    flow = estimator(frames)
    assert flow.shape == (1, 1, 2, *size)
    assert torch.equal(flow, estimator(padded)[..., :height, :width])


def test_resize_rule_scales_the_vectors():
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.0625, size_rule="resize")
    # on frames that are 128 x 64, a field that grows by 1/16 px a pixel
    estimator.network = Told(lambda x, y: x / 16, lambda x, y: 3 + 0 * y)
    flow = estimator(torch.rand(1, 2, 3, 96, 50))[0, 0]
    x = torch.arange(50) + 0.5
    torch.testing.assert_close(flow[0, :, 1:-1], (x / 16)[1:-1].expand(96, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(flow[1], torch.full((96, 50), 3 * 96 / 128))


def test_a_multiple_of_64_is_left_alone_by_either_rule():
    frames = torch.rand(1, 2, 3, 64, 128, dtype=torch.float64)
    assert torch.equal(small("FlowNet2S")(frames), small("FlowNet2S", size_rule="resize")(frames))


@pytest.mark.parametrize("size_rule", ["pad", "resize"])
@pytest.mark.parametrize("size", [(96, 128), (66, 90), (20, 200)])
def test_a_right_network_has_no_training_loss_at_any_size(size_rule, size):
    height, width = size
    fitted = [-(-s // 64) * 64 for s in size] if size_rule == "resize" else size
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.0625, size_rule=size_rule)
    truth = torch.tensor([2.0, -1.0])
    u, v = (truth * torch.tensor([fitted[1] / width, fitted[0] / height])).tolist()
    estimator.network = Told(lambda x, y: u + 0 * x, lambda x, y: v + 0 * y)
    target = truth.view(1, 2, 1, 1).expand(2, 2, *size)
    flows = estimator.training_flows(torch.rand(2, 2, 3, *size))
    assert [f.shape[-2:] for f in flows] == [(math.ceil(height / s), math.ceil(width / s)) for s in (4, 8, 16, 32, 64)]
    assert MultiScale("L2")(flows, target).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size_rule", ["pad", "resize"])
def test_training_cells_lie_where_the_targets_do(size_rule):
    """A field that is linear in the position is matched at every cell but those that reach over the edge."""
    height, width = 96, 72
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.0625, size_rule=size_rule)
    # u = x/8 scales with the resize as the vectors do
    estimator.network = Told(lambda x, y: x / 8, lambda x, y: -y / 4)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    target = torch.stack((x / 8, -y / 4))[None]
    for flow, cell in zip(estimator.training_flows(torch.rand(1, 2, 3, height, width)), (4, 8), strict=False):
        torch.testing.assert_close(flow * 20, F.avg_pool2d(target, cell), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size_rule", ["pad", "resize"])
def test_training_flows_reach_every_weight(variant, size_rule):
    torch.manual_seed(0)
    estimator = FlowNet2Estimator(variant=variant, width=0.0625, size_rule=size_rule)
    flows = estimator.training_flows(torch.rand(1, 2, 3, 80, 64))
    assert len(flows) == (5 if variant in SINGLE else 1)
    MultiScale("L1")(flows, torch.randn(1, 2, 80, 64)).backward()
    assert [name for name, p in estimator.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_training_teaches_a_translation():
    torch.manual_seed(0)
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.125)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)
    loss = MultiScale("L2")

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        texture = F.interpolate(torch.rand(8, 3, 20, 20), size=(80, 80), mode="bicubic").clamp(0, 1)
        motion = torch.randint(-4, 5, (8, 2))
        crops = [texture[i, :, 8 - v : 72 - v, 8 - u : 72 - u] for i, (u, v) in enumerate(motion.tolist())]
        frames = torch.stack((texture[:, :, 8:72, 8:72], torch.stack(crops)), 1)
        return frames, motion[:, :, None, None].float().expand(-1, -1, 64, 64)

    for _ in range(120):
        frames, target = batch()
        optimizer.zero_grad()
        loss(estimator.training_flows(frames), target).backward()
        optimizer.step()
    frames, target = batch()
    with torch.no_grad():
        error = (estimator(frames)[:, 0] - target).norm(dim=1).mean()
    assert error < 0.7 * target.norm(dim=1).mean()


def test_sd_factor_scales_what_sd_contributes():
    frames = torch.rand(1, 2, 3, 64, 64, dtype=torch.float64)
    by_code, divided = small("FlowNet2SD"), small("FlowNet2SD", sd_factor=1 / 20)
    torch.testing.assert_close(by_code(frames), 400 * divided(frames))
    for flow, other in zip(by_code.training_flows(frames), divided.training_flows(frames), strict=True):
        torch.testing.assert_close(flow, 400 * other)
    whole, multiplied = small("FlowNet2"), small("FlowNet2", sd_factor=20.0)
    assert torch.equal(small("FlowNet2", sd_factor=1 / 20)(frames), whole(frames))
    assert not torch.allclose(multiplied(frames), whole(frames))


def test_align_corners_moves_the_flow():
    frames = torch.rand(1, 2, 3, 64, 64, dtype=torch.float64)
    aligned = small("FlowNet2C", align_corners=True)
    finest = aligned.training_flows(frames)[0] * 20
    expected = F.interpolate(finest, size=(64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(aligned(frames)[:, 0], expected)
    assert not torch.allclose(small("FlowNet2C")(frames)[:, 0], expected)


def test_settings_name_everything_and_follow_the_weights():
    estimator = small("FlowNet2S")
    settings = estimator.settings
    assert json.loads(json.dumps(settings)) == settings
    assert settings == small("FlowNet2S").settings
    assert settings != small("FlowNet2S", size_rule="resize").settings
    with torch.no_grad():
        estimator.network.conv1[0].weight[0, 0, 0, 0] += 1e-9
    assert estimator.settings["weights_sha256"] != settings["weights_sha256"]


def test_the_hash_of_the_weights_does_not_depend_on_their_layout():
    network = small("FlowNet2S").network
    before = weights_sha256(network)
    assert weights_sha256(network.to(memory_format=torch.contiguous_format)) == before


def test_flow_is_float32_under_autocast_and_close():
    torch.manual_seed(0)
    estimator = FlowNet2Estimator(variant="FlowNet2", width=0.0625).eval()
    dtypes = []
    for module in estimator.modules():
        if isinstance(module, PredictFlow | UpsampledFlow):
            module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    frames = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        exact = estimator(frames)
        dtypes.clear()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            flow = estimator(frames)
    assert flow.dtype == torch.float32
    assert set(dtypes) == {torch.float32}
    assert (flow - exact).norm() < 0.2 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["FlowNet2S", "FlowNet2"])
def test_compiled_it_gives_the_same(variant):
    plain, compiled = small(variant).float(), small(variant, compiled=True).float()
    frames = torch.rand(1, 3, 3, 64, 64, requires_grad=True)
    flows = [estimator(frames) for estimator in (plain, copy.deepcopy(compiled))]
    torch.testing.assert_close(flows[1], flows[0], atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(flow.square().sum(), frames)[0] for flow in flows]
    assert F.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.99999
    for one, two in zip(*(e.training_flows(frames[:, :2]) for e in (plain, compiled)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", STACKS)
def test_flow_that_is_nan_stays_nan(variant):
    estimator = small(variant)
    with torch.no_grad():
        estimator.network.flownetc.predict_flow2.bias.fill_(float("nan"))
    assert estimator(torch.rand(1, 2, 3, 64, 64, dtype=torch.float64)).isnan().any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"width": 0.3}, {"width": 0.5, "batch_norm": True}])
def test_a_state_dict_is_identified(variant, options):
    found = identify(on_meta(variant, **options).state_dict())
    assert found == f"{variant}, width {options.get('width', 1.0)}" + ", batch_norm true" * ("batch_norm" in options)


def test_another_networks_state_dict_is_not_identified():
    assert identify({"conv1.weight": torch.zeros(64, 3, 7, 7)}) is None
    assert identify({**on_meta("FlowNet2S").state_dict(), "more": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "FlowNet3"}, "FlowNet3.*FlowNet2CSS"),
        ({"size_rule": "crop"}, "crop.*pad"),
        ({"width": 0.0}, "0.0"),
        ({"variant": "FlowNet2S", "sd_factor": 20.0}, "FlowNet2S has no SD"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowNet2Estimator(**options)


@pytest.mark.parametrize("shape", [(1, 1, 3, 64, 64), (1, 2, 1, 64, 64), (2, 3, 64, 64)])
def test_frames_of_another_shape_are_refused(shape):
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.0625)
    with pytest.raises(ValueError, match=str(shape)[1:-1]):
        estimator(torch.zeros(shape))
