"""How fast FlowNetC's correlation is, against what else computes it, in one run: `make bench-correlation`.

Alternatives: the loop over 441 shifts of the padded map and, where it is installed, the compiled extension
`spatial-correlation-sampler`. Memory is what a process needs at its peak beyond the inputs, the result and their
gradients, each measured in a process of its own.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import median_ratio, side_by_side
from torch import Tensor

from attacks.processor import processor_name
from lightning_modules.flow.correlation import DISPLACEMENTS, RADIUS, correlation

Correlation = Callable[[Tensor, Tensor], Tensor]


def shift_loop(first: Tensor, second: Tensor) -> Tensor:
    """The definition, one displacement after the other."""
    height, width = first.shape[-2:]
    padded = F.pad(second, (2 * RADIUS,) * 4)
    steps = range(0, 4 * RADIUS + 1, 2)
    return torch.stack([(first * padded[..., y : y + height, x : x + width]).mean(1) for y in steps for x in steps], 1)


def implementations() -> dict[str, Correlation]:
    """Ours, and those there are."""
    found = {"parity classes (ours)": correlation, "loop over 441 shifts": shift_loop}
    try:
        from spatial_correlation_sampler import spatial_correlation_sample
    except ImportError:
        return found

    def extension(first: Tensor, second: Tensor) -> Tensor:
        maps = first.contiguous(), second.contiguous()
        out = spatial_correlation_sample(*maps, kernel_size=1, patch_size=21, dilation_patch=2)
        return out.flatten(1, 2) / first.shape[1]

    return found | {"spatial-correlation-sampler": extension}


def maps(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Two feature maps and the gradient of the result, channels last as the network has them."""
    torch.manual_seed(0)
    shape = (options.batch, options.channels, options.height, options.width)
    first, second = (
        torch.randn(shape, device=options.device).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    probe = torch.randn(options.batch, DISPLACEMENTS, options.height, options.width, device=options.device)
    return first, second, probe


def forward(function: Correlation, first: Tensor, second: Tensor) -> Tensor:
    """The result alone."""
    with torch.no_grad():
        return function(first, second)


def with_backward(function: Correlation, first: Tensor, second: Tensor, probe: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradient of both maps."""
    return torch.autograd.grad(function(first, second), (first, second), probe)


def extra_memory(name: str, options: argparse.Namespace, results) -> None:
    """Peak of this process beyond its state before, less what the call must return, in MB."""
    function, (first, second, probe) = implementations()[name], maps(options)
    small = [x[:1, :8, :4, :4].detach().requires_grad_() for x in (first, second)]
    with_backward(function, *small, probe[:1, :, :4, :4])  # libraries are loaded, threads started
    returned = sum(x.numel() * x.element_size() for x in (first, second, probe)) / 1e6
    if first.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with_backward(function, first, second, probe)
        results.put((torch.cuda.max_memory_allocated() - before) / 1e6 - returned)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = _kilobytes("VmRSS")
    with_backward(function, first, second, probe)
    results.put((_kilobytes("VmHWM") - before) * 1024 / 1e6 - returned)


def _kilobytes(entry: str) -> int:
    """From Linux's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    first, second, probe = maps(options)
    functions = implementations()
    expected = forward(shift_loop, first.double(), second.double())
    for name, function in functions.items():
        error = (forward(function, first, second) - expected).abs().max().item()
        if error > 1e-5:
            raise SystemExit(f"{name} is {error} away from the definition: not compared")

    alone = side_by_side(
        {n: lambda f=f: forward(f, first, second) for n, f in functions.items()}, rounds=options.rounds
    )
    both = side_by_side(
        {n: lambda f=f: with_backward(f, first, second, probe) for n, f in functions.items()}, rounds=options.rounds
    )
    print(f"C = {options.channels}, {options.height} × {options.width}, batch {options.batch}, ", end="")
    print(f"{processor_name(options.device)}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {options.rounds} rounds\n")
    print(f"{'':30}{'forward':>20}{'with backward':>20}{'extra memory':>16}")
    ours = next(iter(functions))
    context = multiprocessing.get_context("spawn")
    for name in functions:
        results = context.SimpleQueue()
        process = context.Process(target=extra_memory, args=(name, options, results))
        process.start()
        process.join()
        print(f"{name:30}", end="")
        for seconds in (alone, both):
            ratio = median_ratio(seconds[name], seconds[ours])
            print(f"{1e3 * statistics.median(seconds[name]):9.1f} ms {ratio:5.1f}×", end="   ")
        print(f"{results.get():10.0f} MB")


if __name__ == "__main__":
    main()
