"""The paper's Figures 3 and 7: one stack under each attack, and frames under every ε."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.eight_bit import amplified_difference, gain_of
from attacks.examples import Example
from attacks.records import CLEAN, Record
from attacks.report.lettering import drawn, drawn_attack, drawn_class
from attacks.report.results import NO_VERDICT, Results
from attacks.report.style import style

EXAMPLES_SHOWN = 4
LONGEST_CLASS = 24
"""letters of its name beside a frame"""


def example_stack(results: Results) -> Figure | None:
    """Fig. 3: one stack under each attack, classes and confidences; perturbed frames framed, numbered in order."""
    attacks = results.gradient_attacks
    example = max(results.examples, key=lambda example: telling(results, example), default=None)
    if example is None or not attacks:
        return None
    length, height, width = example.frames.shape[:3]
    rows = 1 + 2 * len(attacks)
    frame_width = 1.0
    figure = Figure(
        figsize=(1.9 + frame_width * length, 0.7 + rows * (frame_width * height / width + 0.12)), layout="constrained"
    )
    axes = figure.subplots(rows, length, squeeze=False)
    _frame_row(axes[0], example.frames)
    _row_label(axes[0, 0], "clean", results, results.example_records[example.clip, CLEAN, 0.0])
    for n in range(length):
        axes[0, n].set_title(f"frame {n + 1}", fontsize=8)
    gain = gain_of(example.epsilon)
    for i, attack in enumerate(attacks):
        above, below = axes[1 + 2 * i], axes[2 + 2 * i]
        record = results.example_records[example.clip, attack, example.epsilon]
        _frame_row(above, example.adversarial[attack])
        _row_label(above[0], drawn_attack(attack), results, record)
        _frame_row(below, amplified_difference(example.frames, example.adversarial[attack], gain))
        below[0].set_ylabel(f"perturbation\n×{gain:.0f}", rotation=0, ha="right", va="center", fontsize=8)
        for turn, frame in enumerate(record.frame_order or [], start=1):
            _mark(above[frame], str(turn) if attack not in results.dense else "", style(attacks, attack)[0])
    figure.suptitle(f"{drawn(example.clip)}, stack {example.stack + 1}, ε = {example.epsilon:g}")
    return figure


def example_frames(results: Results) -> Figure | None:
    """Fig. 7: one frame of each example under every ε, its perturbation below."""
    # Those that are right when clean come first: the others show nothing being fooled.
    examples = sorted(results.examples, key=lambda e: not results.example_records[e.clip, CLEAN, 0.0].correct)
    shown = [(example, attack) for example in examples if (attack := _visible(results, example))][:EXAMPLES_SHOWN]
    if not shown:
        return None
    columns = 1 + len(shown[0][0].epsilons)
    height, width = shown[0][0].frames.shape[1:3]
    figure = Figure(figsize=(1.6 + 1.5 * columns, 0.8 + 3.3 * len(shown) * height / width), layout="constrained")
    axes = figure.subplots(2 * len(shown), columns, squeeze=False)
    for i, (example, attack) in enumerate(shown):
        clean = example.frames[example.frame[attack]]
        frames = np.stack([clean, *example.frame_at[attack]])
        gain = gain_of(max(example.epsilons))
        _frame_row(axes[2 * i], frames)
        _frame_row(axes[2 * i + 1], amplified_difference(clean[None], frames, gain))
        name = drawn(example.clip.split("/")[-1].removeprefix("v_"))
        label = f"{name}\nstack {example.stack + 1}, frame {example.frame[attack] + 1}\n{drawn_attack(attack)}"
        axes[2 * i, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes[2 * i + 1, 0].set_ylabel(f"perturbation\n×{gain:.0f}", rotation=0, ha="right", va="center", fontsize=8)
        records = [results.example_records[example.clip, CLEAN, 0.0]]
        records += [results.example_records[example.clip, attack, epsilon] for epsilon in example.epsilons]
        for ax, record in zip(axes[2 * i], records, strict=True):
            epsilon = f"ε = {record.epsilon:g}\n" if i == 0 else ""
            ax.set_title(f"{epsilon}{verdict(results, record)}", fontsize=8)
    figure.suptitle(f"A frame under every ε, and what {drawn(results.system)} sees in its stack")
    return figure


def _frame_row(axes: Sequence[Axes], frames: np.ndarray) -> None:
    for ax, frame in zip(axes, frames, strict=True):
        ax.imshow(frame, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _row_label(ax: Axes, name: str, results: Results, record: Record) -> None:
    frames = f"\n{record.frames_perturbed} frames" if record.attack != CLEAN else ""
    label = f"{name}{frames}\n{verdict(results, record)}"
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)


def verdict(results: Results, record: Record) -> str:
    """Class and confidence, one below the other."""
    if record.prediction < 0:
        return NO_VERDICT
    name = drawn_class(results.classes, record.prediction, LONGEST_CLASS)
    return f"{'✓' if record.correct else '✗'} {name}\n{record.confidence:.1%}"


def _mark(ax: Axes, text: str, color: str) -> None:
    ax.spines[:].set(visible=True, color=color, linewidth=3)
    if text:
        box = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
        ax.text(0.06, 0.9, text, transform=ax.transAxes, fontsize=8, color="white", weight="bold", va="top", bbox=box)


def telling(results: Results, example: Example) -> tuple[int, bool]:
    """How many attacks succeed on the example at the ε that is shown, and whether it is right when clean."""
    fooled = sum(results.example_records[example.clip, a, example.epsilon].success for a in results.gradient_attacks)
    return fooled, results.example_records[example.clip, CLEAN, 0.0].correct


def _visible(results: Results, example: Example) -> str | None:
    """The last attack (RG, by default) that perturbs the example at every ε."""
    for attack in reversed(results.gradient_attacks):
        if all(results.example_records[example.clip, attack, e].frames_perturbed for e in example.epsilons):
            return attack
    return None
