"""Beyond the paper's figures: ε × frame budget, survival, classes, confusions, and what survives being stored."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from attacks.metrics import budget_map
from attacks.records import CLEAN
from attacks.report.class_tables import by_class, confusion
from attacks.report.frame_tables import realisability
from attacks.report.lettering import drawn, drawn_attack, drawn_class
from attacks.report.results import NOISE, Results
from attacks.report.style import HATCHES, SHADES, accuracy_axes, ink_on, legend_columns, style

NAMED_CLASSES = 24
"""up to so many classes are named in a heat map"""
LONGEST_OF_MAP = 30
"""letters of a name there"""
BARS = 20
"""of more than twice as many classes, so many of the most and of the least robust are drawn"""


def budget_maps(results: Results) -> Figure | None:
    """Stack accuracy by ε and frames perturbed at most, of each attack that goes frame by frame."""
    attacks = [name for name in results.gradient_attacks if name not in results.dense]
    if not attacks:
        return None
    columns, rows = results.frames + 1, len(results.epsilons)
    figure = Figure(figsize=(1.2 + len(attacks) * (0.8 + 0.42 * columns), 1.7 + 0.36 * rows), layout="constrained")
    axes = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
    for ax, attack in zip(axes, attacks, strict=True):
        accuracy = 100 * budget_map(
            results.tallies,
            system=results.system,
            attack=attack,
            target=results.system,
            epsilons=results.epsilons,
            frames=results.frames,
        )
        image = _heat(ax, accuracy, "{:.0f}", size=7.5)
        ax.set(title=drawn_attack(attack), xlabel="frames perturbed, at most", xticks=range(columns))
        ax.set_yticks(range(rows), [f"{epsilon:g}" for epsilon in results.epsilons])
        ax.invert_yaxis()
    axes[0].set_ylabel("ε")
    figure.colorbar(image, ax=axes, label="stack accuracy, %", pad=0.01)
    figure.suptitle(f"Accuracy of {drawn(results.system)} by ε and frame budget ({results.extent})")
    return figure


def survival_curves(results: Results) -> Figure | None:
    """Share of the attacked stacks that still stand, frame after frame, at the least, a middle and the largest ε."""
    curves = {cell: curve for cell, curve in results.survivals.items() if cell.target == results.system}
    if not curves:
        return None
    epsilons = sorted({results.epsilons[0], results.epsilons[len(results.epsilons) // 2], results.epsilons[-1]})
    figure = Figure(figsize=(1.2 + 3.2 * len(epsilons), 4.2), layout="constrained")
    axes = figure.subplots(1, len(epsilons), squeeze=False, sharey=True)[0]
    frames = np.arange(results.frames + 1)
    for ax, epsilon in zip(axes, epsilons, strict=True):
        for attack in dict.fromkeys(cell.attack for cell in curves):
            curve = curves.get(results.cell(attack, results.system, epsilon))
            if curve is None:
                continue
            color, marker, dashes = style(results.attacks, attack)
            ax.fill_between(frames, 100 * curve.low, 100 * curve.high, step="post", color=color, alpha=0.13, lw=0)
            ax.step(
                frames, 100 * curve.standing, where="post", color=color, marker=marker, linestyle=dashes, markersize=5,
                fillstyle="none", markeredgewidth=1.3, label=drawn_attack(attack),
            )  # fmt: skip
        ax.axhline(50, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(
            title=f"ε = {epsilon:g}", xlabel="frames perturbed", ylim=(-3, 103), xticks=frames[:: 1 + len(frames) // 8]
        )
        ax.grid(axis="y", color="0.9")
    axes[0].set_ylabel("still right, % of attacked stacks")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, 5))
    figure.suptitle(f"Frames that {drawn(results.system)} withstands ({results.extent})")
    return figure


def class_bars(results: Results) -> Figure | None:
    """Stack accuracy of each class, clean and under the strongest attack at the least ε; the frailest class on top."""
    attack, epsilon = results.strongest, results.epsilons[0]
    cells = [results.cell(CLEAN, results.system, 0.0), results.cell(attack, results.system, epsilon)]
    clean, attacked = by_class(results, cells)
    order = sorted(clean.keys() & attacked.keys(), key=lambda label: (attacked[label].accuracy, clean[label].accuracy))
    if not order:
        return None
    some = ""
    if len(order) > 2 * BARS:
        some = f"; the {BARS} frailest and the {BARS} most robust of {len(order)} classes"
        order = order[:BARS] + order[-BARS:]
    figure = Figure(figsize=(7.5, 1.5 + 0.34 * len(order)), layout="constrained")
    ax = figure.subplots()
    color = style(results.attacks, attack)[0]
    looks = ((clean, "0.8", "clean"), (attacked, color, f"{drawn_attack(attack)}, ε = {epsilon:g}"))
    for place, (counts, look, name) in enumerate(looks):
        at = np.arange(len(order)) + (place - 0.5) * 0.4
        values = 100 * np.array([counts[label].accuracy for label in order])
        low, high = 100 * np.array([counts[label].interval for label in order]).T
        ax.barh(at, values, 0.4, color=look, hatch=HATCHES[place], edgecolor="white", label=name)
        reach = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
        ax.errorbar(values, at, xerr=reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.5)
    ax.set_yticks(range(len(order)), [drawn_class(results.classes, label) for label in order])
    ax.set(xlabel="stack accuracy, %", xlim=(0, 103), ylim=(len(order) - 0.4, -0.6))
    ax.grid(axis="x", color="0.9")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Accuracy by class, {drawn(results.system)}{some}")
    return figure


def confusion_maps(results: Results) -> Figure | None:
    """Class when clean against class when attacked, at the least ε, in percent of the class's attacked stacks."""
    epsilon, classes = results.epsilons[0], len(results.classes)
    attacks = [a for a in results.gradient_attacks if confusion(results, a, epsilon).any()]
    if not attacks:
        return None
    side = 1.2 + min(3.4, max(1.8, 0.3 * classes))
    figure = Figure(figsize=(1.6 + side * len(attacks), 1.4 + side), layout="constrained")
    axes = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
    for ax, attack in zip(axes, attacks, strict=True):
        counts = confusion(results, attack, epsilon)
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = _heat(ax, shares, "{:.0f}" if classes <= 12 else "", size=7.5, blank=True)
        ax.set(title=drawn_attack(attack), xlabel="class when attacked")
        if classes <= NAMED_CLASSES:
            labels = [drawn_class(results.classes, label, LONGEST_OF_MAP) for label in range(classes)]
            ax.set_xticks(range(classes), labels, rotation=90)
            ax.set_yticks(range(classes), labels)
            ax.tick_params(labelsize=8 if classes <= 12 else 6)
    axes[0].set_ylabel("class when clean")
    figure.colorbar(image, ax=axes, label="% of the class's stacks", pad=0.01)
    figure.suptitle(f"What {drawn(results.system)} takes the attacked stacks for, ε = {epsilon:g}")
    return figure


def media_bars(results: Results) -> Figure | None:
    """Stack accuracy by medium at the largest ε that was stored, clean frames and each attack side by side."""
    table = realisability(results)
    rows = [row for row in table.rows if row[1] == results.system]
    if not rows:
        return None
    epsilon = max((float(row[2] or 0) for row in rows if row[0] != CLEAN), default=0.0)
    media = list(dict.fromkeys(str(row[3]) for row in rows))
    names = [name for name in results.attacks if name in (*results.gradient_attacks, NOISE)]
    shown = {name: [row for row in rows if row[0] == name and row[2] in (0, epsilon)] for name in (CLEAN, *names)}
    shown = {name: of for name, of in shown.items() if of}
    figure = Figure(figsize=(max(6.5, 1.2 * len(media)), 4.0), layout="constrained")
    ax = figure.subplots()
    width = 0.84 / len(shown)
    for place, (name, of) in enumerate(shown.items()):
        at = np.array([media.index(str(row[3])) for row in of]) + (place - (len(shown) - 1) / 2) * width
        values, low, high = (np.array([row[i] for row in of], float) for i in (6, 7, 8))
        color = "0.8" if name == CLEAN else style(results.attacks, name)[0]
        hatch = HATCHES[place % len(HATCHES)]
        ax.bar(at, values, width, color=color, hatch=hatch, edgecolor="white", label=drawn_attack(name))
        reach = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
        ax.errorbar(at, values, reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.5)
    accuracy_axes(ax, len(results.classes), title="", xlabel="", ylabel="stack accuracy, %", chance_at=1.0)
    ax.set_xlim(-0.6, len(media) - 0.1)
    ax.set_xticks(range(len(media)), media, rotation=20)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, 5))
    stacks = sorted({int(row[4] or 0) for of in shown.values() for row in of})
    extent = f"{stacks[0]}" if len(stacks) == 1 else f"{stacks[0]} to {stacks[-1]}"
    figure.suptitle(f"What survives being stored, {drawn(results.system)}, ε = {epsilon:g} ({extent} stacks)")
    return figure


def _heat(ax: Axes, percent: np.ndarray, text: str, *, size: float, blank: bool = False) -> AxesImage:
    """A heat map of 0 … 100 with its numbers; `blank` leaves the noughts without."""
    image = ax.imshow(percent, cmap=SHADES, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if text:
        for (row, column), value in np.ndenumerate(percent):
            if value or not blank:
                ink = "black" if np.isnan(value) else ink_on(value / 100)
                ax.text(
                    column,
                    row,
                    "–" if np.isnan(value) else text.format(value),
                    ha="center",
                    va="center",
                    fontsize=size,
                    color=ink,
                )
    return image
