"""What the sweep engine saves: `make bench-sweep`, on the CPU or, where there is one, on a GPU.

The paper's sweep, three attacks × seven ε, by the adversarial-robustness-toolbox one stack a call, by the plain
algorithm batched over stacks (each attack and ε by itself, whole forwards), and by the engine; side by side in one
run, each after an untimed sweep of what it has in memory at once, with what each put through the networks and, on a
GPU, how much of its measured matrix rate that is. All stacks are attacked: each is labelled with what the system says
of it when clean.
`--limit`: the clean pass beside the bare networks. `--precisions`: how many verdicts change in float32, TF32, bfloat16.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from arithmetic import arithmetic, matrix_rate, operations
from side_by_side import median_ratio, side_by_side
from sweep_contenders import ATTACKS, LENGTH, Engine, by_toolbox, make_system, moving_textures, plainly, set_apart
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from attacks.clean_pass import clean_pass
from attacks.processor import processor_name
from attacks.retained_pairs import Replay
from attacks.sweep_callback import EPSILONS
from lightning_modules.model_under_attack import ModelUnderAttack

PRECISIONS = ("float32", "TF32", "bfloat16", "bfloat16+TF32")


class Passes(NamedTuple):
    """Forwards and backwards: of frame pairs through the flow network, of stacks through the classifier."""

    pairs: int
    pairs_back: int
    stacks: int
    stacks_back: int


class Counter:
    """Counts passes. A pair whose convolutions were retained only goes back."""

    def __init__(self, system: ModelUnderAttack) -> None:
        self._counts = dict.fromkeys(Passes._fields, 0)
        # Hooks, not a dispatch mode: one stack on a GPU would wait for that.
        self._hooks = [
            network.register_forward_hook(lambda _, __, output, what=what, dims=dims: self._seen(output, what, dims))
            for network, what, dims in ((system.estimator, "pairs", 2), (system.classifier, "stacks", 1))
        ]

    def _seen(self, output: Tensor, what: str, dims: int) -> None:
        rows = output.shape[:dims].numel()
        if not isinstance(_get_current_dispatch_mode(), Replay):
            self._add(what, rows)
        if output.requires_grad:
            output.register_hook(lambda _: self._add(f"{what}_back", rows))

    def _add(self, what: str, rows: int) -> None:
        self._counts[what] += rows

    def stop(self) -> Passes:
        for hook in self._hooks:
            hook.remove()
        return Passes(**self._counts)


def cost_of_each(system: ModelUnderAttack, frames: Tensor) -> list[int]:
    """Floating-point operations of each kind of `Passes`, from those of a stack (1, T, 3, H, W)."""
    with torch.no_grad():
        flow = system.estimator(frames[:, :2])
        stack = flow.repeat(1, LENGTH - 1, 1, 1, 1)
    costs = []
    for network, x in ((system.estimator, frames[:, :2]), (system.classify, stack)):
        inputs = x.clone().requires_grad_()
        with torch.no_grad():
            forward = operations(lambda network=network, inputs=inputs: network(inputs))
        both = operations(lambda network=network, inputs=inputs: network(inputs).sum().backward())
        costs += [forward, both - forward]
    return costs


def required(results: dict, stacks: int) -> tuple[int, int]:
    """Forwards and backwards of pairs that the sweep cannot do without.

    Once for each stack the clean pass; for each ε all pairs to judge one-shot, the pairs of the perturbed frame to
    judge a step, the first step once for both iterative attacks; backwards through the pairs of unused frames.
    """
    pairs = LENGTH - 1
    forwards = stacks * pairs + results["one_shot"].frames_perturbed.numel() * pairs
    backwards = stacks * pairs
    for method in ("iterative_saliency", "iterative_saliency_refresh"):
        for order in results[method].frame_order.flatten(0, 1).tolist():
            taken = [n for n in order if n >= 0]
            first = 0 if method == "iterative_saliency" else 1
            forwards += sum((n > 0) + (n < pairs) for n in taken[first:])
            if method == "iterative_saliency_refresh":
                for k in range(1, len(taken)):
                    backwards += sum(not {n, n + 1} <= set(taken[:k]) for n in range(pairs))
    return forwards, backwards


def whole_sweep(
    system: ModelUnderAttack, frames: Tensor, epsilons: tuple[float, ...], options: argparse.Namespace
) -> None:
    with torch.no_grad():
        labels = system(frames).argmax(1)
    engine = Engine(options.batch_size, options.pairs_at_once, options.retained_pairs)
    contenders = {"toolbox": by_toolbox, "plain": plainly, "engine": engine}
    contenders = {name: sweep for name, sweep in contenders.items() if name not in options.without}
    made, passes, processor = {}, {}, {}

    def run(name: str) -> None:
        start, counter = time.process_time(), Counter(system)
        made[name] = contenders[name](system, frames, labels, epsilons)
        processor[name] = time.process_time() - start
        passes[name] = counter.stop()

    # What a long sweep takes once: memory, of which the engine needs more for more ε, and the choice of kernels.
    warm_up = {"toolbox": (frames[:1], labels[:1], epsilons[:1]), "plain": (frames, labels, epsilons[:1])}
    for name, sweep in contenders.items():
        sweep(system, *warm_up.get(name, (frames, labels, epsilons)))
    alternatives = {name: (lambda name=name: run(name)) for name in contenders}
    seconds = side_by_side(alternatives, rounds=options.rounds, warm_up=0)
    for method, result in engine.results.items():
        lengths, lost = result.frames_perturbed.double(), result.success.double().mean().item()
        of_lost = result.frames_perturbed[result.success].double().mean().item()
        print(f"{ATTACKS[method]:10} lost {lost:6.1%}; mean frames of the lost {of_lost:5.2f}, ", end="")
        print(f"of all {lengths.mean().item():5.2f}")
    pairs = {name: of_name.pairs + of_name.pairs_back for name, of_name in passes.items()}
    costs, peak = cost_of_each(system, frames[:1]), None
    if frames.is_cuda:  # a CPU's products are no limit to its convolutions
        peak = matrix_rate(options.precision.removesuffix("+TF32"), options.device)
    print(f"{'':22} per engine's:  {'':14}  pairs  stacks")
    print(
        "             seconds  seconds  CPU s  pairs  forwards backwards  forwards backwards    TFLOP TFLOP/s", end=""
    )
    print(f"  of {peak / 1e12:.3g}" if peak else "")
    for name in contenders:
        ratio = median_ratio(seconds[name], seconds["engine"])
        work = sum(count * cost for count, cost in zip(passes[name], costs, strict=True))
        print(f"{name:10} {statistics.median(seconds[name]):9.2f} {ratio:8.2f}", end="")
        print(f" {processor[name] / processor['engine']:6.2f} {pairs[name] / pairs['engine']:6.2f}", end="")
        print(f" {passes[name].pairs:9} {passes[name].pairs_back:9} {passes[name].stacks:9}", end="")
        rate = work / statistics.median(seconds[name])
        print(f" {passes[name].stacks_back:9} {work / 1e12:8.2f} {rate / 1e12:7.3g}", end="")
        print(f" {rate / peak:7.1%}" if peak else "")
    forwards, backwards = required(engine.results, len(frames))
    print(f"required   {'':32} {forwards:9} {backwards:9}   ", end="")
    print(f"pairs of the engine / required: {pairs['engine'] / (forwards + backwards):.3f}")
    for name in contenders:
        if name != "engine":
            # Where batches differ, kernels round differently, and a gradient next to zero may change its sign.
            apart = [((made[name][m] - made["engine"][m]).abs() > 1e-6).double().flatten(2).mean(2) for m in ATTACKS]
            shares = torch.stack(apart)
            print(
                f"adversarial stacks that differ from {name}'s: {int((shares > 0).sum())} of {shares.numel()}", end=""
            )
            print(f", the most in {shares.max().item():.4%} of their values")


def precisions(
    system: ModelUnderAttack, frames: Tensor, epsilons: tuple[float, ...], options: argparse.Namespace
) -> None:
    exact = copy.deepcopy(system).double()
    with torch.no_grad():
        labels = exact(frames.double()).argmax(1)

    def verdicts(judge: ModelUnderAttack, made: dict[str, Tensor]) -> Tensor:
        rows = torch.cat([adversarial.flatten(0, 1) for adversarial in made.values()])
        with torch.no_grad():
            logits = torch.cat([judge(stack) for stack in rows.split(options.batch_size)])
        return logits.argmax(1) != labels.repeat(len(rows) // len(labels))

    def moved(made: dict[str, Tensor]) -> Tensor:
        return torch.cat([(adversarial != frames).flatten(0, 1).flatten(2).any(2) for adversarial in made.values()])

    by_plain = plainly(exact, frames.double(), labels, epsilons)
    lost, used = verdicts(exact, by_plain), moved({m: a.to(frames) for m, a in by_plain.items()})
    count = len(lost)
    print(f"beside the plain algorithm in float64: {count} stacks attacked, {int(lost.sum())} of them lost")
    print("engine in     verdicts changed   other frames perturbed   other values of adversarial stacks")
    for precision in ("float64", *PRECISIONS):
        if "TF32" in precision and not frames.is_cuda:
            continue
        judge, input_frames = (exact, frames.double()) if precision == "float64" else (system, frames)
        engine = Engine(options.batch_size, options.pairs_at_once, options.retained_pairs)
        with in_precision(judge, precision):
            made = engine(judge, input_frames, labels, epsilons)
        changed = torch.cat([(r.predictions != labels).flatten() for r in engine.results.values()])
        apart = [((made[m] - by_plain[m]).abs() > 1e-6).double().mean() for m in ATTACKS]
        others = (moved({m: made[m].to(frames) for m in ATTACKS}) != used).any(1)
        print(f"{precision:14} {1000 * (changed != lost).double().mean():12.1f} ‰", end="")
        print(f" {1000 * others.double().mean():22.1f} ‰ {torch.stack(apart).mean().item():36.4%}")


@contextmanager
def in_precision(system: ModelUnderAttack, precision: str) -> Iterator[None]:
    """The system in bfloat16 by its own option, which leaves flow and warps in float32 or, with "+TF32", in that."""
    before, system.precision = system.precision, "bfloat16" if "bfloat16" in precision else "float32"
    with arithmetic("TF32" if "TF32" in precision else "float32", next(system.parameters()).device.type):
        yield
    system.precision = before


def against_the_networks(system: ModelUnderAttack, frames: Tensor, options: argparse.Namespace) -> None:
    with torch.no_grad():
        labels = system(frames).argmax(1)

    def engine() -> None:
        clean_pass(system, frames, labels, batch_size=len(frames), pairs_at_once=options.pairs_at_once)

    def bare() -> None:
        inputs = frames.clone().requires_grad_()
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=system.precision == "bfloat16"):
            flow = system.estimator(inputs)
            top, left = ((side - system.crop) // 2 for side in flow.shape[-2:])
            logits = system.classifier(flow[..., top : top + system.crop, left : left + system.crop].flatten(1, 2))
        torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), inputs)

    seconds = side_by_side({"bare networks": bare, "clean pass": engine}, rounds=options.rounds)
    speed = median_ratio(seconds["bare networks"], seconds["clean pass"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        ", ".join(f"{name} {value:.3f} s" for name, value in medians.items()),
        f"- clean pass at {speed:.1%} of the speed",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="FlowNet2 and ResNet-152 at 256×320")
    parser.add_argument("--limit", action="store_true", help="the clean pass beside the bare networks instead")
    parser.add_argument(
        "--precisions", action="store_true", help="what the engine says in each precision instead, beside float64"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crop", type=int)
    parser.add_argument("--width", type=float, default=1.0, help="share of the flow network's published channel counts")
    parser.add_argument("--stacks", type=int, help="4, or 1 at full size; 8 on a GPU")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs-at-once", type=int)
    parser.add_argument("--retained-pairs", type=int)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of all contenders")
    parser.add_argument("--without", nargs="*", default=[], choices=("toolbox", "plain"), help="leave these out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = tuple(options.size or ((256, 320) if options.full else (128, 160)))
    crop = options.crop or (224 if options.full else 112)
    variant, depth = ("FlowNet2", 152) if options.full else ("FlowNet2S", 18)
    epsilons = tuple(options.epsilons)
    stacks = options.stacks or (8 if options.device == "cuda" else 1 if options.full else 4)
    system = make_system(variant, options.width, depth, crop).to(options.device)
    frames = moving_textures(stacks, *size).to(options.device)
    threads = "" if options.device == "cuda" else f", {torch.get_num_threads()} threads"
    name = f"{processor_name(options.device)}{threads}"
    print(
        f"{variant} + ResNet-{depth}, {stacks} stacks of {size[0]} × {size[1]}, {len(epsilons)} ε, {name}, ",
        end="",
    )
    print(f"{options.precision}, torch {torch.__version__}, {options.rounds} rounds", flush=True)
    one_stack = {"batch_size": 1, "pairs_at_once": options.pairs_at_once}
    if options.precisions:
        set_apart(system, frames[:1], one_stack, frames=LENGTH)  # some stacks are lost, others not
        precisions(system, frames, epsilons, options)
        return
    if options.full:
        set_apart(system, frames[:1], one_stack, frames=3)
    with in_precision(system, options.precision):
        if options.limit:
            against_the_networks(system, frames, options)
        else:
            whole_sweep(system, frames, epsilons, options)


if __name__ == "__main__":
    main()
