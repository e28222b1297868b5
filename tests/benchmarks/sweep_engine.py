"""What the sweep engine saves: `make bench-sweep`, on the CPU or, where there is one, on a GPU.

The paper's sweep, three attacks × seven ε, by the adversarial-robustness-toolbox one stack a call, by the plain
algorithm batched over stacks (each attack and ε by itself, whole forwards), and by the engine; side by side in one
run, each after an untimed sweep of one ε, with the frame pairs that each put through the flow network.
`--limit`: the clean pass beside the bare networks. `--precisions`: how many verdicts change in float32, TF32, bfloat16.

The networks have random weights. Their two classes are as far apart as makes the attacks about as long as the paper's
(2 to 3 frames, Table 1), by chance of the seed or, at full size, by `set_apart`; every stack is labelled with what the
system says of it when clean, so that all are attacked.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import median_ratio, side_by_side
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import Bottleneck

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency
from attacks.one_shot import OneShot
from attacks.sweep_callback import EPSILONS
from lightning_modules.classifiers.resnet import ResNet
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.model_under_attack import ModelUnderAttack

aten = torch.ops.aten
LENGTH = 11
ATTACKS = {"one_shot": "one-shot", "iterative_saliency": "it-sal", "iterative_saliency_refresh": "it-sal-RG"}
"""The toolbox's names, and short ones."""


class Counting(TorchDispatchMode):
    """Counts the frame pairs for which the flow network's last convolution is computed, and its gradient."""

    def __init__(self, estimator: nn.Module) -> None:
        super().__init__()
        self.weight = [m for m in estimator.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))][-1].weight
        self.forwards = self.backwards = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.convolution.default and args[1].data_ptr() == self.weight.data_ptr():
            self.forwards += len(args[0])
        if func is aten.convolution_backward.default and args[2].data_ptr() == self.weight.data_ptr():
            self.backwards += len(args[0])
        return func(*args, **(kwargs or {}))


def make_system(variant: str, width: float, depth: int, crop: int) -> ModelUnderAttack:
    estimator = FlowNet2Estimator(variant=variant, width=width)
    classifier = ResNet(depth=depth, num_classes=2)
    for block in classifier.modules():
        if isinstance(block, Bottleneck):  # random and undamped, 50 of them leave a gradient that leads nowhere
            nn.init.constant_(block.bn3.weight, 0.2)
    return ModelUnderAttack(estimator=estimator, classifier=classifier, crop=crop)


def set_apart(system: ModelUnderAttack, stack: Tensor, options: dict[str, int | None]) -> None:
    """Move the bias of the class of a stack (1, 11, 3, H, W), so that it is lost with the third frame at ε = 0.01."""
    with torch.no_grad():
        label = system(stack).argmax(1)
        bias = [layer for layer in system.classifier.modules() if isinstance(layer, nn.Linear)][-1].bias
        bias[label] += 5  # not lost before it is known where it would be
        steps = IterativeSaliency(refresh=True, **options)(system, stack, label, (0.01,)).step_logits[0, 0]
        margins = (steps[:, label] - steps[:, 1 - label]).flatten()
        bias[label] -= margins[1:3].mean()


def moving_textures(stacks: int, height: int, width: int) -> Tensor:
    """Frames (stacks, 11, 3, H, W) in [0, 1]: a texture that moves up to two pixels a frame, each in its own way."""
    margin = 2 * LENGTH
    videos = []
    for _ in range(stacks):
        texture = F.interpolate(
            torch.rand(1, 3, height // 6, width // 6), size=(height + 2 * margin, width + 2 * margin)
        )
        texture = F.avg_pool2d(texture, 5, 1, 2)[0]
        down, right = (4 * torch.rand(2) - 2).tolist()
        corners = [(margin + int(down * n), margin + int(right * n)) for n in range(LENGTH)]
        videos.append(torch.stack([texture[:, y : y + height, x : x + width] for y, x in corners]))
    return torch.stack(videos)


def by_toolbox(system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict[str, Tensor]:
    """One stack a call, as it works right; adversarial frames (E, B, T, 3, H, W) of each attack."""
    from art.attacks.evasion import FastGradientMethod, FrameSaliencyAttack
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        system,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(frames.shape[1:]),
        nb_classes=2,
        clip_values=(0, 1),
        device_type="gpu" if frames.is_cuda else "cpu",
    )
    x, y = frames.cpu().numpy(), labels.cpu().numpy()
    made = {}
    for method in ATTACKS:
        made[method] = np.empty((len(epsilons), *x.shape), dtype=np.float32)
        for e, epsilon in enumerate(epsilons):
            step = FastGradientMethod(classifier, eps=epsilon, eps_step=epsilon)
            attack = FrameSaliencyAttack(classifier, step, method=method, frame_index=1, verbose=False)
            for b in range(len(x)):
                made[method][e, b] = attack.generate(x[b : b + 1], y[b : b + 1])[0]
    return {method: torch.from_numpy(adversarial).to(frames.device) for method, adversarial in made.items()}


def gradient_of(system: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
    inputs = frames.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(system(inputs), labels, reduction="sum"), inputs)[0]


def plainly(system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict[str, Tensor]:
    """The paper's algorithms on a batch of stacks that shrinks as they are lost; whole forwards, nothing shared."""
    made: dict[str, list[Tensor]] = {method: [] for method in ATTACKS}
    for method in ATTACKS:
        for epsilon in epsilons:
            gradient = gradient_of(system, frames, labels)
            if method == "one_shot":
                adversarial = (frames + epsilon * gradient.sign()).clamp(0, 1)
                with torch.no_grad():
                    system(adversarial)
                made[method].append(adversarial)
                continue
            adversarial = frames.clone()
            used = torch.zeros(frames.shape[:2], dtype=torch.bool, device=frames.device)
            active = torch.arange(len(frames), device=frames.device)
            for _ in range(LENGTH):
                saliency = gradient.abs().mean((2, 3, 4)).masked_fill(used[active], -torch.inf)
                frame, row = saliency.argmax(1), torch.arange(len(active), device=frames.device)
                step = epsilon * gradient[row, frame].sign()
                adversarial[active, frame] = (frames[active, frame] + step).clamp(0, 1)
                used[active, frame] = True
                with torch.no_grad():
                    right = system(adversarial[active]).argmax(1) == labels[active]
                active, gradient = active[right], gradient[right]
                if not len(active):
                    break
                if method == "iterative_saliency_refresh":
                    gradient = gradient_of(system, adversarial[active], labels[active])
            made[method].append(adversarial)
    return {method: torch.stack(adversarial) for method, adversarial in made.items()}


class Engine:
    """The attacks as the sweep calls them: one clean pass, one first step."""

    def __init__(self, batch_size: int, pairs_at_once: int | None, retained_pairs: int | None) -> None:
        self.options = {"batch_size": batch_size, "pairs_at_once": pairs_at_once}
        self.retained_pairs = retained_pairs
        self.results = {}

    def __call__(self, system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict:
        clean = clean_pass(system, frames, labels, **self.options)
        attacks = {
            "one_shot": OneShot(**self.options),
            "iterative_saliency": IterativeSaliency(**self.options),
            "iterative_saliency_refresh": IterativeSaliency(True, retained_pairs=self.retained_pairs, **self.options),
        }
        first_step = None
        for method, attack in sorted(attacks.items(), key=lambda item: item[1].retained_pairs == 0):
            result = attack(
                system, frames, labels, epsilons, clean=clean, first_step=first_step if attack.begins else None
            )
            first_step = result.first_step or first_step
            self.results[method] = result
        self.results = {method: self.results[method] for method in ATTACKS}
        return {method: result.adversarial for method, result in self.results.items()}


def required(results: dict, stacks: int) -> tuple[int, int, int]:
    """Forwards and backwards of pairs that the sweep cannot do without, and the forwards of all live pairs' graphs.

    Once for each stack the clean pass; for each ε all pairs to judge one-shot, the pairs of the perturbed frame to
    judge a step, the first step once for both iterative attacks; backwards through the pairs of unused frames.
    """
    pairs = LENGTH - 1
    forwards = stacks * pairs + results["one_shot"].frames_perturbed.numel() * pairs
    backwards, graphs = stacks * pairs, 0
    for method in ("iterative_saliency", "iterative_saliency_refresh"):
        for order in results[method].frame_order.flatten(0, 1).tolist():
            taken = [n for n in order if n >= 0]
            first = 0 if method == "iterative_saliency" else 1
            forwards += sum((n > 0) + (n < pairs) for n in taken[first:])
            if method == "iterative_saliency_refresh":
                for k in range(1, len(taken)):
                    live = sum(not {n, n + 1} <= set(taken[:k]) for n in range(pairs))
                    backwards, graphs = backwards + live, graphs + live
    return forwards, backwards, graphs


def whole_sweep(
    system: ModelUnderAttack, frames: Tensor, epsilons: tuple[float, ...], options: argparse.Namespace
) -> None:
    with torch.no_grad():
        labels = system(frames).argmax(1)
    engine = Engine(options.batch_size, options.pairs_at_once, options.retained_pairs)
    contenders = {"toolbox": by_toolbox, "plain": plainly, "engine": engine}
    made, counts, processor = {}, {}, {}

    def run(name: str) -> None:
        start = time.process_time()
        with Counting(system.estimator) as counter:
            made[name] = contenders[name](system, frames, labels, epsilons)
        processor[name] = time.process_time() - start
        counts[name] = counter.forwards, counter.backwards

    alternatives = {name: (lambda name=name: run(name)) for name in contenders if name not in options.without}
    for name in alternatives:  # memory that a long sweep takes once
        contenders[name](system, frames, labels, epsilons[:1])
    seconds = side_by_side(alternatives, rounds=options.rounds, warm_up=0)
    for method, result in engine.results.items():
        lengths, lost = result.frames_perturbed.double(), result.success.double().mean().item()
        of_lost = result.frames_perturbed[result.success].double().mean().item()
        print(f"{ATTACKS[method]:10} lost {lost:6.1%}; mean frames of the lost {of_lost:5.2f}, ", end="")
        print(f"of all {lengths.mean().item():5.2f}")
    print("             seconds   CPU seconds   pair forwards   pair backwards", end="")
    print("   seconds / engine   CPU seconds / engine   pairs / engine")
    for name in alternatives:
        ratio = median_ratio(seconds[name], seconds["engine"])
        share = sum(counts[name]) / sum(counts["engine"])
        print(f"{name:10} {statistics.median(seconds[name]):9.1f} {processor[name]:13.1f}", end="")
        print(f" {counts[name][0]:15} {counts[name][1]:16} {ratio:18.2f}", end="")
        print(f" {processor[name] / processor['engine']:22.2f} {share:16.2f}")
    forwards, backwards, graphs = required(engine.results, len(frames))
    print(f"required   {'':9} {'':13} {forwards:15} {backwards:16}", end="")
    print(f"   and {graphs} forwards of the graphs of the live pairs")
    total = sum(counts["engine"])
    print(f"engine / required: {total / (forwards + backwards + graphs):.3f} with these, ", end="")
    print(f"{total / (forwards + backwards):.3f} without, backwards alone {counts['engine'][1] / backwards:.3f}")
    for name in alternatives:
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
    for precision in ("float64", "float32", "tf32", "bfloat16"):
        if precision == "tf32" and not frames.is_cuda:
            continue
        judge, input_frames = (exact, frames.double()) if precision == "float64" else (system, frames)
        judge.precision = "bfloat16" if precision == "bfloat16" else "float32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        engine = Engine(options.batch_size, options.pairs_at_once, options.retained_pairs)
        made = engine(judge, input_frames, labels, epsilons)
        changed = torch.cat([(r.predictions != labels).flatten() for r in engine.results.values()])
        apart = [((made[m] - by_plain[m]).abs() > 1e-6).double().mean() for m in ATTACKS]
        others = (moved({m: made[m].to(frames) for m in ATTACKS}) != used).any(1)
        print(f"{precision:12} {1000 * (changed != lost).double().mean():14.1f} ‰", end="")
        print(f" {1000 * others.double().mean():22.1f} ‰ {torch.stack(apart).mean().item():36.4%}")


def against_the_networks(system: ModelUnderAttack, frames: Tensor, options: argparse.Namespace) -> None:
    with torch.no_grad():
        labels = system(frames).argmax(1)

    def engine() -> None:
        clean_pass(system, frames, labels, batch_size=len(frames), pairs_at_once=options.pairs_at_once)

    def bare() -> None:
        inputs = frames.clone().requires_grad_()
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
    parser.add_argument("--full", action="store_true", help="FlowNet2 and ResNet-152 at 256×320, two ε")
    parser.add_argument("--limit", action="store_true", help="the clean pass beside the bare networks instead")
    parser.add_argument(
        "--precisions", action="store_true", help="what the engine says in each precision instead, beside float64"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crop", type=int)
    parser.add_argument("--width", type=float, default=1.0, help="share of the flow network's published channel counts")
    parser.add_argument("--stacks", type=int, default=8 if torch.cuda.is_available() else 4)
    parser.add_argument("--epsilons", type=float, nargs="+")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs-at-once", type=int)
    parser.add_argument("--retained-pairs", type=int)
    parser.add_argument("--without", nargs="*", default=[], choices=("toolbox", "plain"), help="leave these out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = tuple(options.size or ((256, 320) if options.full else (128, 160)))
    crop = options.crop or (224 if options.full else 112)
    variant, depth = ("FlowNet2", 152) if options.full else ("FlowNet2S", 18)
    epsilons = tuple(options.epsilons or ((0.005, 0.02) if options.full else EPSILONS))
    system = make_system(variant, options.width, depth, crop).to(options.device)
    frames = moving_textures(options.stacks, *size).to(options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{variant} + ResNet-{depth}, {options.stacks} stacks of {size[0]} × {size[1]}, {len(epsilons)} ε, {name}, ",
        end="",
    )
    print(f"torch {torch.__version__}, {options.rounds} rounds")
    if options.full:
        set_apart(system, frames[:1], {"batch_size": 1, "pairs_at_once": options.pairs_at_once})
    else:
        with torch.no_grad():
            system(frames[:1])
    if options.limit:
        against_the_networks(system, frames, options)
    elif options.precisions:
        precisions(system, frames, epsilons, options)
    else:
        whole_sweep(system, frames, epsilons, options)


if __name__ == "__main__":
    main()
