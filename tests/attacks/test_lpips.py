"""LPIPS against its definition, with AlexNet weights as they fall out; without a file it says which one it needs."""

from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchvision.models import alexnet

from attacks.lpips import Lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(alexnet(weights=None).state_dict(), path)
    return path


def by_hand(weights: Path, image: Tensor, other: Tensor) -> Tensor:
    """Zhang et al. 2018, eq. 1: unit-length features of five layers, weighted squares, mean over pixels, summed."""
    network = alexnet(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    linear = torch.load(file, map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((2 * x - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (image, other))
    total, layer = torch.zeros(len(image)), 0
    for index, module in enumerate(network.features):
        a, b = module(a), module(b)
        if index in (1, 4, 7, 9, 11):  # after each ReLU
            unit_a, unit_b = (x / (x.norm(dim=1, keepdim=True) + 1e-8) for x in (a, b))
            weight = linear[f"lin{layer}.model.1.weight"]
            total += (weight * (unit_a - unit_b).square()).sum(1).mean((1, 2))
            layer += 1
    return total


@torch.no_grad()
def test_lpips_is_zhangs_over_the_perturbed_frames(weights: Path) -> None:
    before = torch.hub.get_dir()
    clean = torch.rand(4, 3, 64, 72, generator=torch.Generator().manual_seed(1))
    adversarial = clean.clone()
    adversarial[1:3] = (clean[1:3] + 0.1 * torch.randn(2, 3, 64, 72)).clamp(0, 1)
    measured = Lpips(weights)(clean, adversarial)
    assert measured == pytest.approx(float(by_hand(weights, clean[1:3], adversarial[1:3]).mean()), rel=1e-3)
    assert measured > 0
    assert torch.hub.get_dir() == before


def test_no_perturbed_frame_has_none(weights: Path) -> None:
    assert Lpips(weights)(torch.full((2, 3, 64, 64), 0.5), torch.full((2, 3, 64, 64), 0.5)) is None


def test_a_missing_file_is_named_and_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"none\.pth: no such file; LPIPS needs .*download\.pytorch\.org.*alexnet"
    ):
        Lpips(tmp_path / "none.pth")
