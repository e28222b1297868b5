import pytest
import torch
import torchvision
from torch import nn

from lightning_modules.classifiers.resnet import ResNet


@pytest.mark.parametrize("depth", [18, 50])
def test_it_is_torchvisions_network_on_the_scaled_stack(depth: int) -> None:
    network = ResNet(num_classes=7, depth=depth, stack_length=3, flow_scale=5.0).double().eval()
    reference = torchvision.models.get_model(f"resnet{depth}", num_classes=7)
    reference.conv1 = nn.Conv2d(6, 64, 7, stride=2, padding=3, bias=False)
    reference.load_state_dict(
        {key.removeprefix("network.").replace("fc.1.", "fc."): value for key, value in network.state_dict().items()}
    )
    flow = 20 * torch.randn(2, 6, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(flow), reference.double().eval()(flow / 5.0))


def test_mean_subtraction_hides_the_camera_motion_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = ResNet(num_classes=7, depth=18, stack_length=3, subtract_mean=True).double().eval()
    flow = 5 * torch.randn(2, 6, 64, 64, dtype=torch.float64)
    panned = flow + 3 * torch.randn(2, 6, 1, 1, dtype=torch.float64)  # its own vector for each field
    torch.testing.assert_close(network(panned), network(flow))
    network.subtract_mean = False
    centred = flow - flow.mean((-2, -1), keepdim=True)
    plain = network(centred)
    network.subtract_mean = True
    torch.testing.assert_close(network(flow), plain)


@pytest.mark.parametrize("size", [56, 112])
def test_small_inputs_work(size: int) -> None:
    assert ResNet(num_classes=5, depth=18).eval()(torch.randn(1, 20, size, size)).shape == (1, 5)


def test_paper_size() -> None:
    with torch.device("meta"):
        network = ResNet(num_classes=101)
    assert network(torch.zeros(1, 20, 224, 224, device="meta")).shape == (1, 101)
    # torchvision's documented count, 1000 -> 101 classes, 3 -> 20 planes of 64 kernels 7x7
    expected = 60_192_808 - 899 * (2048 + 1) + 17 * 64 * 7 * 7
    assert sum(p.numel() for p in network.parameters()) == expected


def test_imagenet_weights_from_a_file_answer_grey_stacks_as_imagenet_does(tmp_path) -> None:
    """A stack of equal planes is a grey picture: after averaging and replication the features scale by planes / 3."""
    torch.manual_seed(0)
    original = torchvision.models.resnet18()
    torch.save(original.state_dict(), tmp_path / "resnet18.pth")
    network = ResNet(num_classes=4, depth=18, stack_length=3, imagenet=tmp_path / "resnet18.pth", flow_scale=1.0)
    plane = torch.randn(2, 1, 40, 40)
    torch.testing.assert_close(
        network.network.conv1(plane.expand(2, 6, 40, 40)), 2 * original.conv1(plane.expand(2, 3, 40, 40))
    )
    for name, value in original.state_dict().items():
        if not name.startswith(("conv1.", "fc.")):
            assert torch.equal(network.network.state_dict()[name], value), name


def test_dropout_acts_in_training_only() -> None:
    network = ResNet(num_classes=4, depth=18, stack_length=1, dropout=0.5)
    features = torch.randn(3, 512)
    assert not torch.equal(network.network.fc(features), network.network.fc(features))
    network.eval()
    assert torch.equal(network.network.fc(features), network.network.fc(features))


def test_wrong_channel_count_names_both() -> None:
    with pytest.raises(ValueError, match=r"\(1, 18, 64, 64\).*takes 20 channels"):
        ResNet(num_classes=4, depth=18)(torch.zeros(1, 18, 64, 64))


@pytest.mark.parametrize("source", ["depth", "garbage", "missing"])
def test_wrong_imagenet_file_is_named(tmp_path, source: str) -> None:
    path = tmp_path / "weights.pth"
    if source == "depth":
        torch.save(torchvision.models.resnet18().state_dict(), path)
    elif source == "garbage":
        path.write_bytes(b"no weights")
    with pytest.raises((ValueError, FileNotFoundError), match=r"weights\.pth"):
        ResNet(num_classes=4, depth=34, imagenet=path)


def test_failed_download_names_the_address_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ConnectionError, match=r"https://\S+resnet18.*no route to host.*`imagenet`"):
        ResNet(num_classes=4, depth=18, imagenet=True)
