import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.optical_flow import Raft_Small_Weights

from lightning_modules.checkpoints import CheckpointError
from lightning_modules.flow.raft import RAFT, SIZES


def raft(size: str = "small", **options) -> RAFT:
    torch.manual_seed(0)
    return RAFT(size=size, iterations=options.pop("iterations", 3), **options).eval().requires_grad_(False)


def smooth_frames(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Frames (B, T, 3, H, W) with a structure of some pixels, each shifted from the last."""
    torch.manual_seed(1)
    batch, steps, height, width = shape
    coarse = torch.rand(batch, 3, height // 8 + 4, width // 8 + 4, dtype=dtype)
    texture = F.interpolate(coarse, size=(height + steps, width + steps), mode="bicubic").clamp(0, 1)
    return torch.stack([texture[..., t : t + height, t : t + width] for t in range(steps)], 1)


@pytest.mark.parametrize("size", SIZES)
def test_flow_is_torchvisions(size):
    estimator, frames = raft(size), smooth_frames(2, 3, 128, 136)
    x = 2 * frames - 1
    expected = torch.stack([estimator.network(x[:, t], x[:, t + 1], num_flow_updates=3)[-1] for t in range(2)], 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(estimator(frames), expected, atol=1e-4, rtol=0)


def test_gradient_that_stops_at_the_coordinates_is_torchvisions():
    estimator = raft(whole_gradient=False).double()
    frames = smooth_frames(1, 2, 128, 128, dtype=torch.float64).requires_grad_()
    probe = torch.randn(1, 1, 2, 128, 128, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((estimator(frames) * probe).sum(), frames)
    network, x = estimator.network.float(), (2 * frames.detach().float() - 1).requires_grad_()
    flow = network(x[:, 0], x[:, 1], num_flow_updates=3)[-1]
    (expected,) = torch.autograd.grad((flow * probe[:, 0].float()).sum(), x)
    cosine = F.cosine_similarity(gradient.flatten(), 2 * expected.double().flatten(), dim=0)
    assert cosine > 0.9999


@pytest.mark.parametrize("size", SIZES)
def test_whole_gradient_agrees_with_finite_differences_and_the_stopped_one_does_not(size):
    frames = smooth_frames(1, 2, 128, 128, dtype=torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    probe, direction = (
        torch.randn(1, n, c, 128, 128, dtype=torch.float64, generator=generator) for n, c in ((1, 2), (2, 3))
    )
    slopes = {}
    for whole in (True, False):
        estimator = raft(size, whole_gradient=whole).double()
        (gradient,) = torch.autograd.grad((estimator(frames) * probe).sum(), frames)
        slopes[whole] = (gradient * direction).sum().item()
    with torch.no_grad():
        ahead, behind = ((estimator(frames + s * 1e-7 * direction) * probe).sum().item() for s in (1, -1))
    measured = (ahead - behind) / 2e-7
    assert slopes[True] == pytest.approx(measured, rel=1e-4)
    assert slopes[False] != pytest.approx(measured, rel=1e-2)


@pytest.mark.parametrize("size_rule", ["pad", "resize"])
@pytest.mark.parametrize("size", [(128, 128), (130, 141), (48, 200)])
def test_any_size(size_rule, size):
    estimator, frames = raft(size_rule=size_rule), smooth_frames(1, 2, *size)
    flow = estimator(frames)
    assert flow.shape == (1, 1, 2, *size)
    fitted = [max(128, -(-side // 8) * 8) for side in size]
    if size_rule == "pad":
        padded = F.pad(frames[0], (0, fitted[1] - size[1], 0, fitted[0] - size[0]), mode="replicate")[None]
        torch.testing.assert_close(flow, estimator(padded)[..., : size[0], : size[1]])
    else:
        resized = F.interpolate(frames[0], size=fitted, mode="bilinear", align_corners=False)[None]
        scale = torch.tensor([size[1] / fitted[1], size[0] / fitted[0]]).view(2, 1, 1)
        expected = F.interpolate(estimator(resized)[0], size=size, mode="bilinear", align_corners=False) * scale
        torch.testing.assert_close(flow[0], expected)


def test_a_batch_gives_what_its_items_give_one_by_one():
    estimator = raft().double()
    frames = smooth_frames(2, 3, 128, 128, dtype=torch.float64).requires_grad_()
    probe = torch.randn(2, 2, 2, 128, 128, dtype=torch.float64)
    flow = estimator(frames)
    (gradient,) = torch.autograd.grad((flow * probe).sum(), frames)
    for b in range(2):
        item = frames[b : b + 1].detach().requires_grad_()
        alone = estimator(item)
        torch.testing.assert_close(alone[0], flow[b], atol=1e-10, rtol=0)
        (alone_gradient,) = torch.autograd.grad((alone * probe[b]).sum(), item)
        torch.testing.assert_close(alone_gradient[0], gradient[b], atol=1e-10, rtol=1e-8)


def test_autocast_does_not_touch_it_and_the_correlation_is_not_kept():
    estimator, frames = raft(), smooth_frames(1, 2, 128, 128)
    expected = estimator(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(estimator(frames), expected)
    assert estimator.network.corr_block.corr_pyramid == []


def test_settings_name_everything():
    settings = raft().settings
    assert json.loads(json.dumps(settings)) == settings == raft(whole_gradient=False).settings
    for options in ({"iterations": 4}, {"size_rule": "resize"}, {"size": "large"}):
        assert raft(**options).settings != settings


@pytest.fixture
def published(tmp_path, monkeypatch):
    """torchvision's small weights, served on the loopback address by a name with their hash, as torchvision does."""
    state = torchvision.models.get_model("raft_small").state_dict()
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(state, folder / "file")
    name = f"raft_small-{hashlib.sha256((folder / 'file').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "file").rename(folder / name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setattr(Raft_Small_Weights.C_T_V2.value, "url", address)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    yield state, folder / name
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["C_T_V2", "DEFAULT"])
def test_published_weights_are_downloaded_once(published, name):
    state, file = published
    for _ in range(2):
        network = RAFT(size="small", weights=name).network
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        file.unlink(missing_ok=True)


def test_a_failed_download_names_the_address_and_the_way_out(published):
    published[1].unlink()
    with pytest.raises(ConnectionError, match=r"C_T_V2 of raft_small.*http://127.*404.*`checkpoint`"):
        RAFT(size="small", weights="C_T_V2")


def test_a_file_is_loaded_and_the_other_network_is_named(tmp_path):
    state = torchvision.models.get_model("raft_small").state_dict()
    torch.save(state, tmp_path / "raft.pth")
    loaded = RAFT(size="small", checkpoint=tmp_path / "raft.pth").network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    torch.save({"state_dict": {f"estimator.network.{k}": v for k, v in state.items()}}, tmp_path / "ours.ckpt")
    RAFT(size="small", checkpoint=tmp_path / "ours.ckpt")
    with pytest.raises(CheckpointError, match=r"raft\.pth does not fit RAFT: it holds the weights of .*raft_small"):
        RAFT(size="large", checkpoint=tmp_path / "raft.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "'huge'.*large or small"),
        ({"weights": "V9"}, "'V9' of raft_large.*C_T_SKHT_V2"),
        ({"weights": "DEFAULT", "checkpoint": "file.pth"}, "DEFAULT.*file.pth.*one of them"),
        ({"iterations": 0}, "iterations is 0"),
        ({"size_rule": "crop"}, "crop.*pad"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RAFT(**options)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"RAFT needs frames .* not \(1, 1, 3, 128, 128\)"):
        raft()(torch.zeros(1, 1, 3, 128, 128))
