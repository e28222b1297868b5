"""The kinds of arithmetic, how fast a device is in each, and how much of it a computation needs."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from side_by_side import side_by_side
from torch.utils.flop_counter import FlopCounterMode

MODES = ("float32", "TF32", "bfloat16")


@contextmanager
def arithmetic(mode: str, device: str) -> Iterator[None]:
    """float32 as it is, as TF32, or bfloat16 autocast."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if mode == "TF32" else "highest")
    torch.backends.cudnn.allow_tf32 = mode == "TF32"
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mode == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def matrix_rate(mode: str, device: str) -> float:
    """Floating-point operations per second of a large matrix product."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    if mode == "bfloat16":
        a, b = a.bfloat16(), b.bfloat16()
    with arithmetic(mode if mode != "bfloat16" else "float32", device):
        seconds = side_by_side({"product": lambda: a @ b}, rounds=11, warm_up=3)["product"]
    return 2 * side**3 / statistics.median(seconds)


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and products in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
