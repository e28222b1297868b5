"""Sweeps side by side: another dataset, classifier, flow estimator or defence. One table, one figure, one page.

What stacks two sweeps have in common is compared pairwise. Without any, or where the same name may be another stack
(other classes, another cut into stacks, other videos), they are independent samples.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from attacks.records import CLEAN
from attacks.report.cells import between, encodable, percent, percents
from attacks.report.figures import curve
from attacks.report.lettering import drawn, drawn_attack
from attacks.report.page import facts, picture, render
from attacks.report.results import Results, load_results
from attacks.report.style import STYLES, accuracy_axes, legend_columns, save, settings_for
from attacks.report.table import BETWEEN, Table, Value
from attacks.report.tables import write_tables
from attacks.statistics import difference, mcnemar
from attacks.whole_file import write_whole

_WHICH_AND_HOW_LARGE = {"clips", "max_clips", "max_stacks", "frame_size"}


class Comparison(NamedTuple):
    page: Path
    tables: list[Table]


def compare(folders: list[Path], output: Path) -> Comparison:
    """Write index.html, tables and figure of two sweeps or more into `output`.

    Raises:
        FileNotFoundError: a folder holds no finished sweep.
        ValueError: fewer than two sweeps, or none that share an attack; `output` is a sweep's own folder.
    """
    if (output / "settings.json").exists():
        raise ValueError(
            f"{output} is the folder of a sweep, whose report this would write over: choose another (COMPARISON=DIR)"
        )
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} sweep to compare: give the folders of at least two")
    sweeps = dict(zip(sweep_names(folders), map(load_results, folders), strict=True))
    first = next(iter(sweeps.values()))
    attacks = [name for name in first.attacks if all(name in results.attacks for results in sweeps.values())]
    if not attacks:
        made = "; ".join(f"{name}: {', '.join(results.attacks)}" for name, results in sweeps.items())
        raise ValueError(f"these sweeps have no attack in common: {made}")
    output.mkdir(parents=True, exist_ok=True)
    tables = [side_by_side(sweeps, attacks), differences(sweeps, attacks)]
    write_tables(output, tables)
    with matplotlib.rc_context(settings_for([*sweeps, *attacks])):
        figure = curves(sweeps, attacks)
        path = output / "comparison.png"
        save(figure, path, svg=True)
    text = render(
        "compare.html.jinja",
        title=f"FlowFool: {', '.join(sweeps)}",
        names=list(sweeps),
        tables=tables,
        figures={"comparison": picture(path)},
        captions={"comparison": "Stack accuracy of each sweep's white box against ε, with 95 % intervals."},
        facts={name: facts(results) for name, results in sweeps.items()},
    )
    write_whole(output / "index.html", encodable(text))
    return Comparison(output / "index.html", tables)


def sweep_names(folders: list[Path]) -> list[str]:
    """The shortest ends of their paths that tell the folders apart, without the name that all sweeps have."""
    parts = [list(folder.resolve().parts) for folder in folders]
    while all(len(names) > 1 and names[-1] == parts[0][-1] for names in parts):
        parts = [names[:-1] for names in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(name[-length:]) for name in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(folder for k, folder in enumerate(folders) if folder.resolve() in {f.resolve() for f in folders[:k]})
    raise ValueError(f"{twice} is given twice: different sweeps are needed")


def side_by_side(sweeps: Mapping[str, Results], attacks: list[str]) -> Table:
    """Accuracy of each sweep's white box under each common attack, stacks and videos."""
    rows: list[list[Value]] = []
    for epsilon in sorted({0.0, *(e for results in sweeps.values() for e in results.epsilons)}):
        for name, results in sweeps.items():
            if epsilon and epsilon not in results.epsilons:
                continue
            row: list[Value] = [epsilon, name]
            sure: list[Value] = [epsilon, BETWEEN]
            for attack in attacks:
                for level in ("stack", "video"):
                    row.append(percent(results.curve(attack, results.system, level)[epsilon].accuracy))
                    sure.append(between(results.bounds(attack, results.system, level)[epsilon].accuracy))
            rows += [row, sure]
    extents = [f"{name}: {results.system}, {results.extent}." for name, results in sweeps.items()]
    return Table(
        name="side-by-side",
        title="White-box accuracy (%) of each sweep",
        columns=[("", "epsilon"), ("", "source"), *((a, q) for a in attacks for q in ("Stk-A", "Vid-A"))],
        rows=rows,
        notes=[*extents, "Stk-A, Vid-A: accuracy of all stacks and of all videos, those wrong when clean included."],
        printed=True,
    )


def differences(sweeps: Mapping[str, Results], attacks: list[str]) -> Table:
    """Stack accuracy of each further sweep less that of the first, at each ε that both have."""
    (base, first), *others = sweeps.items()
    rows: list[list[Value]] = []
    for name, other in others:
        for attack in (CLEAN, *attacks):
            epsilons = [0.0] if attack == CLEAN else [e for e in first.epsilons if e in other.epsilons]
            for epsilon in epsilons:
                rows.append([name, base, attack, epsilon, *_difference(other, first, attack, epsilon)])
    return Table(
        name="differences",
        title="Difference of stack accuracy (points)",
        columns=[
            *(
                ("", head)
                for head in ("sweep", "less", "attack", "epsilon", "common stacks", "difference", "low", "high")
            )
        ],
        rows=rows,
        notes=[
            "Over the stacks that both sweeps saw, pairwise; without any, or where classes or dataset differ in more "
            "than the frames' size, (–) over all stacks of each, as independent samples. low, high: 95 % interval.",
        ],
        printed=True,
    )


def curves(sweeps: Mapping[str, Results], attacks: list[str]) -> Figure:
    """A panel for each attack, a curve for each sweep."""
    columns = 2 if len(attacks) in (2, 4) else min(len(attacks), 3)
    lines = -(-len(attacks) // columns)
    classes = {len(results.classes) for results in sweeps.values()}
    chance = classes.pop() if len(classes) == 1 else None
    figure = Figure(figsize=(max(6.0, 3.6 * columns), 0.9 + 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for ax, attack in zip(axes, attacks, strict=False):
        for place, (name, results) in enumerate(sweeps.items()):
            look = STYLES[place % len(STYLES)]
            curve(ax, results, attack, results.system, "stack", look, drawn(name), place)
        first = ax in axes[::columns]
        accuracy_axes(ax, chance, title=drawn_attack(attack), xlabel="ε", ylabel="accuracy, %" if first else "")
    for ax in axes[len(attacks) :]:
        ax.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels, 4))
    figure.suptitle("Stack accuracy of the white box")
    return figure


def _difference(other: Results, first: Results, attack: str, epsilon: float) -> list[Value]:
    """Common stacks, difference and its interval."""
    names = first.columns.unit_names
    mine, theirs = (_standing(results, attack, epsilon) for results in (other, first))
    common = [key for key in mine if key in theirs] if _same_stacks(other, first) else []
    if common:
        groups = first.columns.groups[[names[key] for key in common]]
        both = [np.array([standing[key] for key in common]) for standing in (mine, theirs)]
        paired = mcnemar(both[0], both[1], groups, first.columns.group_labels)
        return [len(common), percent(paired.difference), *percents(paired.interval)]
    cells = [results.cell(attack, results.system, epsilon) for results in (other, first)]
    p, q = other.tallies[cells[0]].accuracy, first.tallies[cells[1]].accuracy
    interval = difference(p, q, other.intervals[cells[0]].accuracy, first.intervals[cells[1]].accuracy)
    return [None, percent(p - q), *percents(interval)]


def _same_stacks(one: Results, other: Results) -> bool:
    """A clip and a number name the same stack in both; which stacks were taken, and how large they are, may differ."""
    kept = [
        {key: value for key, value in results.settings.get("dataset", {}).items() if key not in _WHICH_AND_HOW_LARGE}
        for results in (one, other)
    ]
    return kept[0] == kept[1] and one.classes == other.classes


def _standing(results: Results, attack: str, epsilon: float) -> dict[tuple[str, int | None], bool]:
    """Each stack with a verdict -> right when clean, and still right."""
    cell = results.columns.cells[results.cell(attack, results.system, epsilon)]
    verdicts = zip(cell.units.tolist(), cell.judged.tolist(), (cell.attacked & ~cell.success).tolist(), strict=True)
    standing = {unit: stands for unit, judged, stands in verdicts if judged}
    return {name: standing[unit] for name, unit in results.columns.unit_names.items() if unit in standing}
