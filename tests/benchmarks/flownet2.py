"""How fast a FlowNet2 network is: `make bench-flownet2`, on the CPU or, where there is one, on a GPU.

First part: the whole network against the sum of its convolutions, which are run alone on inputs of the same size and
layout. Second part: pairs per second in float32, TF32 and bfloat16, the share of the device's measured matrix rate, and
how many signs of the frames' gradient agree with float64.
"""

import argparse
import statistics
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from arithmetic import MODES, arithmetic, matrix_rate, operations
from side_by_side import median_ratio, side_by_side
from torch import Tensor, nn

from attacks.processor import processor_name
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.flownet_networks import VARIANTS


class Pass:
    """Forward, and forward with the gradient of the input, of a module with frozen weights."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.no_grad():
            self.probe = torch.randn_like(module(x))

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.module(self.x)

    def gradient(self) -> Tensor:
        return torch.autograd.grad(self.module(self.x), self.x, self.probe)[0]


def convolutions(estimator: nn.Module, frames: Tensor) -> list[Pass]:
    """All convolutions of one pass, in its order; one that runs twice is there twice."""
    calls: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in estimator.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                hook = module.register_forward_pre_hook(lambda module, inputs: calls.append((module, inputs[0])))
                hooks.callback(hook.remove)
        estimator(frames)
    return [Pass(module, x) for module, x in calls]


def moving_texture(pairs: int, height: int, width: int) -> Tensor:
    """Frames (pairs, 2, 3, H, W) in [0, 1], each second one shifted by two pixels."""
    texture = F.interpolate(torch.rand(pairs, 3, height // 6, width // 6), size=(height, width + 2), mode="bicubic")
    return torch.stack((texture[..., 2:], texture[..., :-2]), 1).clamp(0, 1)


def against_convolutions(estimator: nn.Module, frames: Tensor, rounds: int) -> None:
    whole, parts = Pass(estimator, frames), convolutions(estimator, frames)
    print(f"{len(parts)} convolutions;       whole      convolutions   ratio")
    for name, title in (("forward", "forward"), ("gradient", "forward and input gradient")):
        seconds = side_by_side(
            {
                "whole": getattr(whole, name),
                "convolutions": lambda name=name: [getattr(part, name)() for part in parts],
            },
            rounds=rounds,
        )
        ratio = median_ratio(seconds["whole"], seconds["convolutions"])
        times = [1e3 * statistics.median(seconds[key]) for key in ("whole", "convolutions")]
        print(f"{title:28} {times[0]:8.1f} ms {times[1]:8.1f} ms {ratio:9.3f}")


def precisions(estimator: nn.Module, frames: Tensor, rounds: int, device: str) -> None:
    run = Pass(estimator, frames)
    exact = FlowNet2Estimator(variant=estimator.variant, width=estimator.width).to(device).requires_grad_(False)
    exact.load_state_dict(estimator.state_dict())
    wide = Pass(exact.double(), frames[:1].double())
    wide.probe = run.probe[:1].double()
    signs = wide.gradient().sign()
    # the counter does not follow torch.autograd.grad
    forward_cost, gradient_cost = operations(run.forward), operations(lambda: run.module(run.x).backward(run.probe))
    print(f"\nper pair: {forward_cost / len(frames) / 1e9:.1f} GFLOP forward, ", end="")
    print(f"{gradient_cost / len(frames) / 1e9:.1f} with the input gradient")
    print("pairs per second       forward   with gradient   share of the matrix rate        signs as in float64")
    for mode in MODES if device == "cuda" else ("float32", "bfloat16"):
        rate = matrix_rate(mode, device)
        with arithmetic(mode, device):
            seconds = side_by_side({"forward": run.forward, "gradient": run.gradient}, rounds=rounds, warm_up=3)
            agreement = (run.gradient()[:1].sign() == signs).double().mean().item()
        forward, gradient = (statistics.median(seconds[key]) for key in ("forward", "gradient"))
        shares = forward_cost / forward / rate, gradient_cost / gradient / rate
        print(f"{mode:18}{len(frames) / forward:12.1f}{len(frames) / gradient:16.1f}   ", end="")
        print(f"{shares[0]:8.0%} {shares[1]:8.0%} of {rate / 1e12:6.1f} TFLOP/s {agreement:14.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="FlowNet2", choices=VARIANTS)
    parser.add_argument("--width", type=float, default=1.0, help="share of the published channel counts")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--pairs", type=int, default=64 if torch.cuda.is_available() else 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint", type=Path, help="trained weights instead of random ones")
    parser.add_argument("--compiled", action="store_true", help="through torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    estimator = FlowNet2Estimator(
        variant=options.variant, width=options.width, checkpoint=options.checkpoint, compiled=options.compiled
    )
    estimator.to(options.device).requires_grad_(False)
    frames = moving_texture(options.pairs, *options.size).to(options.device)
    threads = "" if options.device == "cuda" else f", {torch.get_num_threads()} threads"
    name = f"{processor_name(options.device)}{threads}"
    print(
        f"{options.variant}, width {options.width}, {options.pairs} pairs of {options.size[0]} × {options.size[1]}, ",
        end="",
    )
    print(f"{name}, torch {torch.__version__}; medians of {options.rounds} rounds")
    with arithmetic("float32", options.device):
        against_convolutions(estimator, frames, options.rounds)
    precisions(estimator, frames, options.rounds, options.device)


if __name__ == "__main__":
    main()
