"""FlowNetC's correlation layer (Dosovitskiy et al. 2015, section 3; NVIDIA's parameters) without a compiled extension.

Displacements are even, so a pixel only ever meets pixels of its own parity: both maps are split into four parity
classes, each class takes one all-pairs product in bands of rows, and the wanted displacements are gathered from it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.flow.flownet_layers import full_precision

RADIUS = 10  # in steps of two pixels: displacements -20, -18 ... 20
SIDE = 2 * RADIUS + 1
DISPLACEMENTS = SIDE**2
BAND_ELEMENTS = 16 * 2**20  # products held at a time (64 MB of float32)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the channels of first(y, x) * second(y + dy, x + dx), 441 displacements, zero outside the frame.

    first, second (B, C, H, W) -> (B, 441, H, W), channels last in memory; the vertical displacement is the outer one,
    -20, -18 ... 20. Computed in float32 (or wider) whatever autocast is active.
    """
    batch, channels, height, width = first.shape
    with torch.autocast(first.device.type, enabled=False):
        pixels, others = _parity_classes(full_precision(first) / channels), _parity_classes(full_precision(second))
        _, rows, columns, _ = pixels.shape
        bands = []
        step = _band_rows(len(pixels), rows, columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            above, below = max(start - RADIUS, 0), min(stop + RADIUS, rows)
            queries = pixels[:, start:stop].flatten(1, 2)
            # one zero row more: what lies outside the frame is read from there
            keys = F.pad(others[:, above:below].flatten(1, 2), (0, 0, 0, 1))
            products = queries @ keys.transpose(1, 2)
            index = _displaced(start, stop, above, below, columns, first.device)
            bands.append(products.gather(2, index.expand(len(products), -1, -1)))
    result = torch.cat(bands, 1).view(batch, 2, 2, rows, columns, DISPLACEMENTS)
    result = result.permute(0, 3, 1, 4, 2, 5).reshape(batch, 2 * rows, 2 * columns, DISPLACEMENTS)
    return result[:, :height, :width].permute(0, 3, 1, 2)


def _parity_classes(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (4B, H/2, W/2, C): equal parity together; odd sizes get a zero row or column."""
    batch, channels, height, width = x.shape
    x = F.pad(x, (0, width % 2, 0, height % 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 3, 5, 2, 4, 1).reshape(4 * batch, x.shape[2], x.shape[4], channels)


def _band_rows(classes: int, rows: int, columns: int) -> int:
    """Rows a band may have so that its products stay below BAND_ELEMENTS; at least one."""
    step = rows
    while step > 1 and classes * step * columns * min(rows, step + 2 * RADIUS) * columns > BAND_ELEMENTS:
        step = (step + 1) // 2
    return step


def _displaced(start: int, stop: int, above: int, below: int, columns: int, device: torch.device) -> Tensor:
    """Index of the pixel at each displacement, (pixels of rows start..stop, 441), among those of rows above..below."""
    steps = torch.arange(-RADIUS, RADIUS + 1, device=device)
    row = torch.arange(start, stop, device=device)[:, None] + steps
    column = torch.arange(columns, device=device)[:, None] + steps
    row_inside = (row >= above) & (row < below)
    column_inside = (column >= 0) & (column < columns)
    index = (row - above)[:, None, :, None] * columns + column[None, :, None, :]
    inside = row_inside[:, None, :, None] & column_inside[None, :, None, :]
    return index.masked_fill(~inside, (below - above) * columns).view(-1, DISPLACEMENTS)
