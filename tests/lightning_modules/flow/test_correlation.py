import pytest
import torch
import torch.nn.functional as F

from lightning_modules.flow import correlation as module
from lightning_modules.flow.correlation import correlation


def shift_loop(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The definition: 441 shifts of the zero-padded second map, vertical displacement outer."""
    height, width = first.shape[-2:]
    padded = F.pad(second, (20, 20, 20, 20))
    steps = range(0, 41, 2)
    return torch.stack([(first * padded[..., y : y + height, x : x + width]).mean(1) for y in steps for x in steps], 1)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (1, 3), (26, 30), (45, 23)])
@pytest.mark.parametrize("band_elements", [module.BAND_ELEMENTS, 5000])
def test_equals_the_shift_loop_forward_and_backward(size, band_elements, monkeypatch):
    monkeypatch.setattr(module, "BAND_ELEMENTS", band_elements)
    torch.manual_seed(0)
    maps = [torch.randn(3, 5, *size, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    probe = torch.randn(3, 441, *size, dtype=torch.float64)
    out, expected = correlation(*maps), shift_loop(*maps)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    gradients = torch.autograd.grad((out * probe).sum(), maps)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), maps)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)


def test_a_band_never_holds_more_than_its_share():
    for classes, rows, columns in [(4, 64, 128), (80, 16, 20), (4, 500, 500)]:
        step = module._band_rows(classes, rows, columns)
        assert step == 1 or classes * step * columns * min(rows, step + 20) * columns <= module.BAND_ELEMENTS


def test_memory_layout_of_the_inputs_does_not_matter():
    first, second = torch.randn(2, 2, 6, 10, 12).unbind(0)
    layout = [x.contiguous(memory_format=torch.channels_last) for x in (first, second)]
    torch.testing.assert_close(correlation(*layout), correlation(first, second))
