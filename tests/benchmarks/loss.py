"""What the loss decides: accuracy under attack with logits × 1, 4, 16, 64, which change no decision and no robustness.

`make bench-loss` takes three random systems. With a sweep's config it takes the trained white box, and prints its
clean margins and the verdicts that change between the losses:

    python tests/benchmarks/loss.py --config configs/quickstart/attack-sweep.yaml

Signs are held against the same system in float64. FLOWFOOL_STACKS=N takes N stacks, of the first test clips.
"""

import copy
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.attack_result import margin
from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency
from attacks.loss import LOSSES
from attacks.one_shot import OneShot
from attacks.processor import processor_name

SCALES = (1, 4, 16, 64)
"""Powers of two: a product with one is exact."""
STACKS = int(os.environ.get("FLOWFOOL_STACKS", "0"))
SOUGHT = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08)
"""ε, of which that is taken which leaves an accuracy nearest to one half"""
ATTACKS: dict[str, Callable[..., Attack]] = {
    "one-shot": OneShot,
    "RG": lambda **options: IterativeSaliency(refresh=True, **options),
}


TOYS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "attacks" / "conftest.py")))


def toys() -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Three random systems, and stacks, 40 unless told otherwise, that they are right on."""
    for seed in range(3):
        system = TOYS.make_system(seed, dtype=torch.float32)
        frames = TOYS.random_frames(seed, STACKS or 40).float()
        with torch.no_grad():
            yield f"toy {seed}", system, frames, system(frames).argmax(1)


def trained(arguments: list[str]) -> tuple[str, nn.Module, Tensor, Tensor, list[float]]:
    """The white box of a sweep's config, stacks of its test clips, and the sweep's ε."""
    from lightning_modules.attacked_systems import AttackedSystems

    made = AttackedSystems(arguments)
    stacks, labels = [], []
    for video in made.data.test_dataloader():
        stacks.append(video.frames)
        labels.append(video.label.expand(len(video.frames)))
        if STACKS and sum(map(len, stacks)) >= STACKS:
            break
    sweep = made.callback.sweep
    return sweep.system, made.systems[sweep.system].cpu(), torch.cat(stacks), torch.cat(labels), list(sweep.epsilons)


def epsilon_of_half(system: nn.Module, frames: Tensor, labels: Tensor, attack: str) -> float:
    """The ε that leaves the accuracy of all stacks nearest to one half."""
    result = ATTACKS[attack](loss="log-odds")(system, frames, labels, SOUGHT)
    accuracy = (result.attacked & ~result.success).float().mean(1)
    return SOUGHT[int((accuracy - 0.5).abs().argmin())]


def scales(name: str, system: nn.Module, frames: Tensor, labels: Tensor) -> None:
    """A line for each attack and scale: accuracies, verdicts that differ from those at scale 1, wrong signs."""
    exact = copy.deepcopy(system).double()
    for attack in ATTACKS:
        epsilon = epsilon_of_half(system, frames, labels, attack)
        first: dict[str, Tensor] = {}
        for k in SCALES:
            cells, changed = [], []
            for loss in (*LOSSES, "float64"):
                doubled = loss == "float64"
                of = TOYS.Scaled(exact if doubled else system, k)
                made = ATTACKS[attack](loss="log-odds" if doubled else loss)
                result = made(of, frames.double() if doubled else frames, labels, (epsilon,))
                standing = (result.attacked & ~result.success)[0]
                cells.append(f"{100 * standing.float().mean():5.1f}")
                first.setdefault(loss, standing)
                changed.append(int((standing != first[loss]).sum()))
            wrong = [wrong_signs(system, exact, frames, labels, k, loss) for loss in ("cross-entropy", "log-odds")]
            log_odds, cross_entropy, by_margin, in_float64 = cells
            print(
                f"{name:10} {attack:9} {epsilon:6g} {k:3}   {cross_entropy}  {log_odds}  {by_margin}  {in_float64}   "
                f"{changed[1]:4} {changed[0]:4} {changed[2]:4} {changed[3]:4}   {wrong[0]:9.4f} {wrong[1]:9.4f}",
                flush=True,
            )


def wrong_signs(system: nn.Module, exact: nn.Module, frames: Tensor, labels: Tensor, factor: float, loss: str) -> float:
    """Percent of the clean gradient's signs that are not those of the log-odds in float64."""
    ours = clean_pass(TOYS.Scaled(system, factor), frames, labels, loss=loss).gradient
    theirs = clean_pass(TOYS.Scaled(exact, factor), frames.double(), labels).gradient
    assert ours is not None and theirs is not None
    return 100 * float((ours.sign() != theirs.sign()).float().mean())


def margins(system: nn.Module, frames: Tensor, labels: Tensor) -> None:
    """The histogram of the clean margins."""
    logits = clean_pass(system, frames, labels, gradient=False).logits
    found = margin(logits, labels).numpy()
    saturated = int((logits.softmax(1).gather(1, labels[:, None]) == 1).sum())
    counts, edges = np.histogram(found, bins=min(12, max(4, len(found) // 6)))
    print(f"\nClean margins of {len(found)} stacks, {int((found > 0).sum())} right; {saturated} with a softmax of 1")
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        print(f"  {low:7.2f} to {high:7.2f}  {count:4}  {'#' * round(50 * count / counts.max())}")


def verdicts(system: nn.Module, frames: Tensor, labels: Tensor, epsilons: list[float]) -> None:
    """How many verdicts and frames change with the loss, at the sweep's ε."""
    print("\nVerdicts that the loss changes, of the attacked stacks under every ε")
    for attack in (*ATTACKS, "it-sal"):
        make = ATTACKS.get(attack, IterativeSaliency)
        results = {loss: make(loss=loss)(system, frames, labels, epsilons) for loss in LOSSES}
        base = results["cross-entropy"]
        total = int(base.attacked.sum()) * len(epsilons)
        for loss in ("log-odds", "margin"):
            other = results[loss]
            changed = int((base.success != other.success).sum())
            frames_differ = int((base.adversarial != other.adversarial).flatten(2).any(2).sum())
            print(
                f"  {attack:9} {loss:9} beside cross-entropy: {changed} of {total} verdicts, other frames in "
                f"{frames_differ}; fooled {int(base.success.sum())} -> {int(other.success.sum())}",
                flush=True,
            )


def main(arguments: list[str]) -> None:
    warnings.filterwarnings("ignore", message="the gradient of .* is zero everywhere")  # the table shows it
    print(processor_name())
    systems = toys()
    if arguments:
        name, system, frames, labels, epsilons = trained(arguments)
        margins(system, frames, labels)
        verdicts(system, frames, labels, epsilons)
        systems = iter([(name, system, frames, labels)])
    print(
        "\n                             accuracy, %                    verdicts other than at ×1   wrong signs, %\n"
        "system     attack         ε   ×   entropy  odds  margin float64   ent odds  mar  f64     entropy      odds",
        flush=True,
    )
    for of_system in systems:
        scales(*of_system)


if __name__ == "__main__":
    main(sys.argv[1:])
