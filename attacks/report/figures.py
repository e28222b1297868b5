"""The paper's figures 3 to 7 from a sweep's results. Curves differ by marker and line style, not by colour alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.examples import Example
from attacks.metrics import frames_histogram
from attacks.records import CLEAN, Record
from attacks.report.results import CONTROL, Results

# Okabe and Ito's colours, which stay apart for the colour-blind; with a marker and a dash pattern each.
STYLES = [
    ("#0072B2", "o", "-"),
    ("#E69F00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", (0, (3, 1, 1, 1, 1, 1))),
    ("#D55E00", "v", (0, (5, 1))),
    ("#56B4E9", "P", (0, (1, 1))),
]
CONTROL_STYLE = ("#666666", "x", ":")
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "+++"]
EXAMPLES_SHOWN = 4


def write_figures(folder: Path, results: Results) -> dict[str, Path]:
    """Write the figures that the results allow as PNG; name -> path."""
    (folder / "figures").mkdir(exist_ok=True)
    drawn: dict[str, Callable[[Results], Figure | None]] = {
        "fig3_stack": example_stack,
        "fig4_accuracy": accuracy,
        "fig5_frames_perturbed": frames_perturbed,
        "fig6_transfer": transfer,
        "fig7_epsilons": example_frames,
    }
    paths = {}
    for name, draw in drawn.items():
        figure = draw(results)
        path = folder / "figures" / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(path, dpi=150)
            paths[name] = path
    return paths


def accuracy(results: Results) -> Figure:
    """Fig. 4: accuracy against ε of the white box, at stack and at video level."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, level in zip(axes, ("stack", "video"), strict=True):
        for attack in results.attacks:
            _curve(ax, results, attack, results.system, level, _style(results.attacks, attack), _spoken(attack))
        _accuracy_axes(ax, results, f"{level.capitalize()} level")
    axes[0].legend()
    figure.suptitle(f"Accuracy of {results.system} under attack ({results.extent})")
    return figure


def transfer(results: Results) -> Figure | None:
    """Fig. 6: stack accuracy against ε of every system, attacked with the white box's gradient."""
    attacks = [a for a in results.attacks if any(results.curve(a, target) for target in results.targets)]
    if not attacks:
        return None
    figure = Figure(figsize=(4.6 * len(attacks), 4.2), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for ax, attack in zip(axes, attacks, strict=True):
        for system in results.systems:
            _curve(ax, results, attack, system, "stack", _style(results.systems, system), system)
        _accuracy_axes(ax, results, _spoken(attack))
    axes[0].legend(title="judged system")
    figure.suptitle(f"Stack-level transfer: gradient of {results.system} ({results.extent})")
    return figure


def frames_perturbed(results: Results) -> Figure | None:
    """Fig. 5: share of the successful stacks by number of frames perturbed, for the attacks that go frame by frame."""
    attacks = [attack for attack in results.gradient_attacks if attack not in results.dense]
    shares = {attack: frames_histogram(results.curve(attack, results.system)) for attack in attacks}
    shares = {attack: share for attack, share in shares.items() if share}
    if not shares:
        return None
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(shares)
    for i, (attack, share) in enumerate(shares.items()):
        places = np.array(list(share)) + (i - (len(shares) - 1) / 2) * width
        heights = [100 * value for value in share.values()]
        color, hatch = _style(results.attacks, attack)[0], HATCHES[i % len(HATCHES)]
        bars = ax.bar(places, heights, width, color=color, hatch=hatch, edgecolor="white", label=_spoken(attack))
        ax.bar_label(bars, fmt="%.0f", fontsize=7)
    last = max(max(share) for share in shares.values())
    ax.set(xlabel="frames perturbed", ylabel="successful stacks, %", xticks=range(1, last + 1))
    ax.set_title(f"Frames needed to fool {results.system}, mean over all ε")
    ax.margins(y=0.1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend()
    return figure


def example_stack(results: Results) -> Figure | None:
    """Fig. 3: one stack under each attack, classes and confidences; perturbed frames framed, numbered in order."""
    attacks = results.gradient_attacks
    example = max(results.examples, key=lambda example: _telling(results, example), default=None)
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
    gain = _gain(example.epsilon)
    for i, attack in enumerate(attacks):
        above, below = axes[1 + 2 * i], axes[2 + 2 * i]
        record = results.example_records[example.clip, attack, example.epsilon]
        _frame_row(above, example.adversarial[attack])
        _row_label(above[0], _spoken(attack), results, record)
        _frame_row(below, _amplified(example.adversarial[attack], example.frames, gain))
        below[0].set_ylabel(f"perturbation\n×{gain:.0f}", rotation=0, ha="right", va="center", fontsize=8)
        for turn, frame in enumerate(record.frame_order or [], start=1):
            _mark(above[frame], str(turn) if attack not in results.dense else "", _style(attacks, attack)[0])
    figure.suptitle(f"{example.clip}, stack {example.stack + 1}, ε = {example.epsilon:g}")
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
        gain = _gain(max(example.epsilons))
        _frame_row(axes[2 * i], frames)
        _frame_row(axes[2 * i + 1], _amplified(frames, clean[None], gain))
        name = example.clip.split("/")[-1].removeprefix("v_")
        label = f"{name}\nstack {example.stack + 1}, frame {example.frame[attack] + 1}\n{_spoken(attack)}"
        axes[2 * i, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes[2 * i + 1, 0].set_ylabel(f"perturbation\n×{gain:.0f}", rotation=0, ha="right", va="center", fontsize=8)
        records = [results.example_records[example.clip, CLEAN, 0.0]]
        records += [results.example_records[example.clip, attack, epsilon] for epsilon in example.epsilons]
        for ax, record in zip(axes[2 * i], records, strict=True):
            epsilon = f"ε = {record.epsilon:g}\n" if i == 0 else ""
            ax.set_title(f"{epsilon}{_verdict(results, record)}\n{record.confidence:.1%}", fontsize=8)
    figure.suptitle(f"A frame under every ε, and what {results.system} sees in its stack")
    return figure


def _curve(ax: Axes, results: Results, attack: str, system: str, level: str, style: tuple, label: str) -> None:
    points = results.curve(attack, system, level)
    color, marker, line = style
    values = [100 * tally.accuracy for tally in points.values()]
    size = 10 - 1.5 * len(ax.get_lines())  # hollow, and each curve's smaller than the last's: equal points stay visible
    ax.plot(
        list(points),
        values,
        color=color,
        marker=marker,
        linestyle=line,
        markersize=max(size, 4),
        fillstyle="none",
        markeredgewidth=1.5,
        label=label,
    )


def _accuracy_axes(ax: Axes, results: Results, title: str) -> None:
    chance = 100 / len(results.classes)
    ax.axhline(chance, color="0.6", linewidth=0.8)
    ax.annotate(
        "chance", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color="0.4"
    )
    ax.set(xlabel="ε", ylim=(-3, 103), title=title)
    if ax.get_subplotspec() is not None and ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.set_ylabel("accuracy, %")
    ax.grid(axis="y", color="0.9")
    ax.spines[["top", "right"]].set_visible(False)


def _frame_row(axes: Sequence[Axes], frames: np.ndarray) -> None:
    for ax, frame in zip(axes, frames, strict=True):
        ax.imshow(frame, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _row_label(ax: Axes, name: str, results: Results, record: Record) -> None:
    frames = f"\n{record.frames_perturbed} frames" if record.attack != CLEAN else ""
    label = f"{name}{frames}\n{_verdict(results, record)}\n{record.confidence:.1%}"
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)


def _verdict(results: Results, record: Record) -> str:
    return f"{'✓' if record.correct else '✗'} {results.classes[record.prediction]}"


def _mark(ax: Axes, text: str, color: str) -> None:
    ax.spines[:].set(visible=True, color=color, linewidth=3)
    if text:
        box = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
        ax.text(0.06, 0.9, text, transform=ax.transAxes, fontsize=8, color="white", weight="bold", va="top", bbox=box)


def _amplified(frames: np.ndarray, clean: np.ndarray, gain: float) -> np.ndarray:
    """The perturbation around mid-grey, times `gain`."""
    return (127.5 + gain * (frames.astype(np.float32) - clean)).clip(0, 255).round().astype(np.uint8)


def _gain(epsilon: float) -> float:
    """So that a perturbation of ε spans the grey scale."""
    return max(1.0, 0.5 / epsilon)


def _telling(results: Results, example: Example) -> tuple[int, bool]:
    """How many attacks succeed on the example at the ε that is shown, and whether it is right when clean."""
    fooled = sum(results.example_records[example.clip, a, example.epsilon].success for a in results.gradient_attacks)
    return fooled, results.example_records[example.clip, CLEAN, 0.0].correct


def _visible(results: Results, example: Example) -> str | None:
    """The last attack (RG, by default) that perturbs the example at every ε."""
    for attack in reversed(results.gradient_attacks):
        if all(results.example_records[example.clip, attack, e].frames_perturbed for e in example.epsilons):
            return attack
    return None


def _style(names: Sequence[str], name: str) -> tuple:
    return CONTROL_STYLE if name == CONTROL else STYLES[list(names).index(name) % len(STYLES)]


def _spoken(attack: str) -> str:
    """The name as the paper writes it."""
    return attack.replace("_rg", "-RG").replace("_", "-")
