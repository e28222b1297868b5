"""Curves and bars with their 95 % intervals: the paper's Figures 4 to 6, and the controls beside the attacks."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.columns import CellColumns
from attacks.group_bootstrap import Interval
from attacks.metrics import Tally, frames_histogram
from attacks.report.evidence_figures import budget_maps, class_bars, confusion_maps, media_bars, survival_curves
from attacks.report.example_figures import example_frames, example_stack
from attacks.report.intervals import CellIntervals
from attacks.report.lettering import drawn, drawn_attack
from attacks.report.results import NOISE, Results
from attacks.report.style import HATCHES, accuracy_axes, legend_columns, save, settings_for, style
from attacks.statistics import averaged_rates


def write_figures(folder: Path, results: Results) -> tuple[dict[str, Path], list[str]]:
    """Write the figures that the results allow, as PNG and, but for those of frames, as SVG.

    Returns:
        name -> PNG, and a sentence for each figure that could not be drawn: one must not cost the others.
    """
    (folder / "figures").mkdir(exist_ok=True)
    paths, failures = {}, []
    for name, draw in DRAWN.items():
        path = folder / "figures" / f"{name}.png"
        _remove(path)
        try:
            with matplotlib.rc_context(settings_for(results.names)):
                figure = draw(results)
                if figure is None:
                    continue
                save(figure, path, svg=draw not in (example_stack, example_frames))
        except Exception as error:
            _remove(path)
            failures.append(f"Figure {name} could not be drawn: {type(error).__name__}: {error}")
            continue
        paths[name] = path
    return paths, failures


def _remove(path: Path) -> None:
    for old in (path, path.with_suffix(".svg")):
        old.unlink(missing_ok=True)


def accuracy(results: Results) -> Figure:
    """Fig. 4: accuracy against ε of the white box, at stack and at video level."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shown = [*results.gradient_attacks, *(name for name in results.controls if name == NOISE)]
    for ax, level in zip(axes, ("stack", "video"), strict=True):
        for place, attack in enumerate(shown):
            curve(
                ax, results, attack, results.system, level, style(results.attacks, attack), drawn_attack(attack), place
            )
        _axes(ax, results, f"{level.capitalize()} level")
    _legend(figure, axes[0])
    figure.suptitle(f"Accuracy of {drawn(results.system)} under attack ({results.extent})")
    return figure


def transfer(results: Results) -> Figure | None:
    """Fig. 6: stack accuracy against ε of every system, attacked with the white box's gradient."""
    attacks = [a for a in results.attacks if any(results.curve(a, target) for target in results.targets)]
    if not attacks:
        return None
    figure = Figure(figsize=(max(6.0, 3.6 * len(attacks)), 4.2), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    for ax, attack in zip(axes, attacks, strict=True):
        for place, system in enumerate(results.systems):
            curve(ax, results, attack, system, "stack", style(results.systems, system), drawn(system), place)
        _axes(ax, results, drawn_attack(attack))
    _legend(figure, axes[0])
    figure.suptitle(
        f"Stack-level transfer: gradient of {drawn(results.system)}, judged by each system ({results.extent})"
    )
    return figure


def controls(results: Results) -> Figure | None:
    """The orders of frames beside iterative-saliency, and noise beside one-shot: the same ε, less knowledge."""
    orders = [name for name in results.controls if name != NOISE]
    shown = [name for name in ("one_shot", "iterative_saliency") if name in results.attacks]
    if not orders or not shown:
        return None
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, attack in enumerate([*shown, *results.controls]):
        look = style(results.attacks, attack)
        curve(left, results, attack, results.system, "stack", look, drawn_attack(attack), place)
        if attack not in results.dense:
            _frames(right, results, attack, look, place)
    _axes(left, results, "Stack accuracy")
    right.set(xlabel="ε", ylabel="mean frames of the successful stacks", title="Frames perturbed", ylim=(0, None))
    right.grid(axis="y", color="0.9")
    _legend(figure, left)
    figure.suptitle(f"Controls on {drawn(results.system)} ({results.extent})")
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
    width = 0.84 / len(shares)
    for i, (attack, share) in enumerate(shares.items()):
        places = np.array(list(share)) + (i - (len(shares) - 1) / 2) * width
        heights = np.array([100 * value for value in share.values()])
        color, hatch = style(results.attacks, attack)[0], HATCHES[i % len(HATCHES)]
        ax.bar(places, heights, width, color=color, hatch=hatch, edgecolor="white", label=drawn_attack(attack))
        bounds = 100 * np.array(_histogram_intervals(results, attack, list(share))).T
        ax.errorbar(places, heights, _reach(heights, bounds), fmt="none", ecolor="black", elinewidth=1, capsize=2)
    last = max(max(share) for share in shares.values())
    ax.set(xlabel="frames perturbed", ylabel="successful stacks, %", xticks=range(1, last + 1), ylim=(0, None))
    ax.set_title(f"Frames needed to fool {drawn(results.system)}, mean over all ε ({results.extent})")
    ax.grid(axis="y", color="0.9")
    ax.legend()
    return figure


def _histogram_intervals(results: Results, attack: str, frames: list[int]) -> list[Interval]:
    successes, totals = [], []
    for epsilon, counts in results.curve(attack, results.system).items():
        if not epsilon or not counts.success:
            continue
        cell, columns = results.cell(attack, results.system, epsilon), results.columns
        of_frames = [columns.per_group(cell, partial(_fooled_by, frames=n)) for n in frames]
        successes.append(np.stack(of_frames, 1))
        totals.append(columns.per_group(cell, lambda c: c.success))
    return averaged_rates(np.stack(successes, 1), np.stack(totals, 1), results.columns.group_labels)


def _fooled_by(cell: CellColumns, *, frames: int) -> np.ndarray:
    return cell.success & (cell.frames == frames)


def curve(
    ax: Axes, results: Results, attack: str, system: str, level: str, look: tuple, label: str, place: int
) -> None:
    points = results.curve(attack, system, level)
    bounds = results.bounds(attack, system, level)
    _points(ax, results, points, bounds, "accuracy", 100, look, label, place)


def _frames(ax: Axes, results: Results, attack: str, look: tuple, place: int) -> None:
    points = {e: tally for e, tally in results.curve(attack, results.system).items() if tally.success}
    _points(
        ax, results, points, results.bounds(attack, results.system), "mean_frames", 1, look, drawn_attack(attack), place
    )


def _points(
    ax: Axes,
    results: Results,
    points: Mapping[float, Tally],
    bounds: Mapping[float, CellIntervals],
    quantity: str,
    scale: float,
    look: tuple,
    label: str,
    place: int,
) -> None:
    """A line through the points, each with its interval; neighbours a little aside, so that equal ones stay visible."""
    color, marker, dashes = look
    values = np.array([scale * getattr(tally, quantity) for tally in points.values()])
    sides = scale * np.array([getattr(bounds[epsilon], quantity) for epsilon in points]).reshape(-1, 2).T
    aside = 0.008 * max(results.epsilons) * (place - 1.5)
    at = np.array([epsilon + aside * (epsilon > 0) for epsilon in points])
    ax.errorbar(at, values, _reach(values, sides), fmt="none", ecolor=color, elinewidth=1, capsize=2, alpha=0.75)
    ax.plot(
        at, values, color=color, marker=marker, linestyle=dashes, markersize=6, fillstyle="none", markeredgewidth=1.4,
        label=label,
    )  # fmt: skip


def _reach(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(2, N) below and above, none where there is no interval."""
    low, high = bounds
    return np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)


def _axes(ax: Axes, results: Results, title: str) -> None:
    spec = ax.get_subplotspec()
    first = spec is not None and spec.is_first_col()
    accuracy_axes(ax, len(results.classes), title=title, xlabel="ε", ylabel="accuracy, %" if first else "")


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, 4))


DRAWN: dict[str, Callable[[Results], Figure | None]] = {
    "fig3_stack": example_stack,
    "fig4_accuracy": accuracy,
    "fig5_frames_perturbed": frames_perturbed,
    "fig6_transfer": transfer,
    "fig7_epsilons": example_frames,
    "budgets": budget_maps,
    "survival": survival_curves,
    "controls": controls,
    "per_class": class_bars,
    "confusion": confusion_maps,
    "realisability": media_bars,
}
"""name -> what draws it, in the order of the report"""
