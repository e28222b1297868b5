"""What stands behind the curves: every rate, attacks paired on the same stacks, frames to success, frame budgets,
classes, confusions, costs, perceptibility, realisability. One row each, for a spreadsheet as much as for a reader.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from attacks.columns import QUALITIES
from attacks.metrics import Cell, budget_map
from attacks.records import CLEAN
from attacks.report.results import Results
from attacks.report.table import Table, Value
from attacks.report.tables import control, denominators, percent, table1, table2
from attacks.statistics import Interval, clustered_mean, clustered_rate, mcnemar


def all_tables(results: Results) -> list[Table]:
    """Those that the sweep has something for, the ones that are printed first."""
    tables = [table1(results)]
    if results.targets and any(results.made_on(target) for target in results.targets):
        tables.append(table2(results))
    tables += [control(results, attack) for attack in results.controls]
    tables += [denominators(results, system) for system in results.systems if results.made_on(system)]
    tables += [rates(results), paired(results), frames_to_success(results), budgets(results)]
    tables += [per_class(results), confusions(results), costs(results), perceptibility(results), realisability(results)]
    return [table for table in tables if table.rows]


def rates(results: Results) -> Table:
    """Every cell of the sweep with both denominators and all intervals."""
    rows: list[list[Value]] = []
    for cell, counts in results.tallies.items():
        bounds = results.intervals[cell]
        rows.append(
            [
                cell.level,
                cell.attack,
                cell.target,
                cell.epsilon,
                counts.examples,
                counts.attacked,
                counts.success,
                percent(counts.accuracy),
                *_percents(bounds.accuracy),
                percent(counts.accuracy_of_attacked),
                *_percents(bounds.accuracy_of_attacked),
                percent(counts.success_rate),
                *_percents(bounds.success_rate),
                percent(counts.accuracy_8bit),
                *_percents(bounds.accuracy_8bit),
                _rounded(counts.mean_frames),
                *map(_rounded, bounds.mean_frames),
            ]
        )
    quantities = ("accuracy of all", "accuracy of right", "success", "8-bit accuracy", "frames")
    return Table(
        name="rates",
        title="Every rate (%) with its 95 % interval",
        columns=[
            *(("", name) for name in ("level", "attack", "judged", "epsilon", "units", "attacked", "fooled")),
            *((name, bound) for name in quantities for bound in ("", "low", "high")),
        ],
        rows=rows,
        notes=["attacked: right when clean. fooled: attacked, and wrong now. frames: mean of the fooled units."],
    )


def paired(results: Results) -> Table:
    """Two attacks on the same units: McNemar's test, and the difference of their success rates."""
    rows: list[list[Value]] = []
    places = [("stack", system) for system in results.systems] + [("video", results.system)]
    for level, system in places:
        for first, second in combinations(results.made_on(system), 2):
            for epsilon in results.epsilons:
                cells = [Cell(level, name, system, epsilon) for name in (first, second)]
                if not all(cell in results.columns.cells for cell in cells):
                    continue
                successes, units = _on_the_same_units(results, cells)
                if not len(units):
                    continue
                groups = results.columns.groups[units]
                both = mcnemar(successes[0], successes[1], groups, results.columns.group_labels)
                rows.append(
                    [
                        level,
                        system,
                        first,
                        second,
                        epsilon,
                        both.units,
                        both.first_only,
                        both.second_only,
                        percent(both.difference),
                        *_percents(both.interval),
                        float(f"{both.p_value:.3g}"),
                    ]
                )
    heads = ("level", "judged", "first", "second", "epsilon", "units", "first only", "second only")
    return Table(
        name="paired",
        title="Attacks compared on the same units: difference of the success rates (points), first less second",
        columns=[("", name) for name in (*heads, "difference", "low", "high", "p")],
        rows=rows,
        notes=[
            "units: right when clean. low, high: 95 % interval, groups of clips as units of the bootstrap.",
            "p: McNemar's exact test, which takes stacks for independent; not corrected for the number of comparisons.",
        ],
    )


def frames_to_success(results: Results) -> Table:
    """Median frames, failures censored at T; the share that stands at each budget; the paper's mean over successes."""
    rows: list[list[Value]] = []
    for (attack, system, epsilon), curve in results.survivals.items():
        counts = results.tallies[Cell("stack", attack, system, epsilon)]
        rows.append(
            [attack, system, epsilon, counts.attacked, curve.median, *curve.median_interval]
            + [_rounded(counts.mean_frames)]
            + [percent(float(share)) for share in curve.standing[1:]]
        )
    heads = ("attack", "judged", "epsilon", "attacked", "median", "low", "high", "mean of successes")
    return Table(
        name="survival",
        title=f"Frames to success: median, failures counted as more than {results.frames}; share (%) still right",
        columns=[
            *(("", name) for name in heads),
            *(("still right after", f"{frames}") for frames in range(1, results.frames + 1)),
        ],
        rows=rows,
        notes=[f"No median: more than half of the stacks are still right with all {results.frames} frames perturbed."],
    )


def budgets(results: Results) -> Table:
    """Stack accuracy under each ε and with at most so many frames perturbed."""
    rows: list[list[Value]] = []
    for system in results.systems:
        for attack in results.made_on(system):
            if attack in results.dense:
                continue
            accuracy = budget_map(
                results.tallies, attack=attack, target=system, epsilons=results.epsilons, frames=results.frames
            )
            for epsilon, row in zip(results.epsilons, accuracy, strict=True):
                rows.append([attack, system, epsilon, *(percent(float(share)) for share in row)])
    return Table(
        name="budgets",
        title="Stack accuracy (%) of all stacks by ε and frame budget",
        columns=[
            *(("", name) for name in ("attack", "judged", "epsilon")),
            *(("frames perturbed", f"{frames}") for frames in range(results.frames + 1)),
        ],
        rows=rows,
        notes=["Each frame is perturbed in the attack's own order until the stack is lost or the budget is."],
    )


def per_class(results: Results) -> Table:
    """Accuracy and success of each class, stack level, white box."""
    columns, classes = results.columns, len(results.classes)
    rows: list[list[Value]] = []
    for attack in (CLEAN, *results.attacks):
        for epsilon in [0.0] if attack == CLEAN else results.epsilons:
            cell = Cell("stack", attack, results.system, epsilon)
            standing = columns.per_group(cell, lambda c: c.attacked & ~c.success)
            attacked = columns.per_group(cell, lambda c: c.attacked)
            units = columns.per_group(cell, lambda c: np.ones_like(c.attacked))
            for label in range(classes):
                own = columns.group_labels == label
                if not units[own].sum():
                    continue
                all_units = clustered_rate(standing[own], units[own])
                of_right = clustered_rate(standing[own], attacked[own])
                total, right, still = (int(counts[own].sum()) for counts in (units, attacked, standing))
                rows.append(
                    [
                        results.classes[label],
                        attack,
                        epsilon,
                        int((units[own] > 0).sum()),
                        total,
                        right,
                        percent(still / total),
                        *_percents(all_units),
                        percent((right - still) / right) if right else None,
                        *_percents(Interval(1 - of_right.high, 1 - of_right.low)),
                    ]
                )
    heads = ("class", "attack", "epsilon", "groups", "stacks", "attacked")
    return Table(
        name="per-class",
        title=f"Stack accuracy and success of each class (%), {results.system}",
        columns=[
            *(("", name) for name in heads),
            *((name, bound) for name in ("accuracy", "success") for bound in ("", "low", "high")),
        ],
        rows=rows,
        notes=["A class has few groups: its intervals are wide, and with one group say nothing."],
    )


def confusion(results: Results, attack: str, epsilon: float) -> np.ndarray:
    """(C, C) stacks that were right when clean: class when clean -> class when attacked, by the white box."""
    cell = results.columns.cells[Cell("stack", attack, results.system, epsilon)]
    counts = np.zeros((len(results.classes),) * 2, int)
    np.add.at(counts, tuple(cell.predictions[cell.attacked].T), 1)
    return counts


def confusions(results: Results) -> Table:
    """What the fooled stacks are taken for: most frequent first."""
    rows: list[list[Value]] = []
    for attack in results.attacks:
        for epsilon in results.epsilons:
            counts = confusion(results, attack, epsilon)
            of_class = counts.sum(1)
            np.fill_diagonal(counts, 0)
            found: Counter[tuple[int, int]] = Counter(
                {(int(i), int(j)): int(counts[i, j]) for i, j in np.argwhere(counts)}
            )
            for (clean, adversarial), stacks in found.most_common():
                rows.append(
                    [
                        attack,
                        epsilon,
                        results.classes[clean],
                        results.classes[adversarial],
                        stacks,
                        percent(stacks / of_class[clean]),
                    ]
                )
    return Table(
        name="confusion",
        title=f"What fooled stacks are taken for, {results.system}",
        columns=[("", name) for name in ("attack", "epsilon", "clean", "adversarial", "stacks", "% of class")],
        rows=rows,
        notes=["% of class: of the stacks of that class that were right when clean."],
    )


def costs(results: Results) -> Table:
    """Wall seconds and frame pairs of each part of the sweep, as far as costs.json tells."""
    quantities = [name for name, values in results.costs.items() if all(map(_is_number, values.values()))]
    parts = dict.fromkeys(part for name in quantities for part in results.costs[name])
    rows: list[list[Value]] = [
        [*part.partition("/")[::2], *(results.costs[name].get(part) for name in quantities)] for part in parts
    ]
    return Table(
        name="costs",
        title="Costs of the sweep, summed over clips and processes",
        columns=[("", "part"), ("", "judged"), *(("", name.replace("_", " ")) for name in quantities)],
        rows=rows,
        notes=["seconds are of the wall, and of the machine that they were taken on."],
        timed=True,
    )


def perceptibility(results: Results) -> Table:
    """Means over the stacks that an attack perturbed, white box."""
    columns = results.columns
    rows: list[list[Value]] = []
    for attack in results.attacks:
        for epsilon in results.epsilons:
            cell = columns.cells[Cell("stack", attack, results.system, epsilon)]
            finite = np.isfinite(cell.qualities)
            if not finite.any():
                continue
            row: list[Value] = [attack, epsilon, int(finite.any(1).sum())]
            groups = columns.groups[cell.units]
            for quality in range(len(QUALITIES)):
                some, values = finite[:, quality], cell.qualities[:, quality]
                sums = np.bincount(groups[some], values[some].astype(float), minlength=len(columns.group_labels))
                counts = np.bincount(groups[some], minlength=len(columns.group_labels))
                mean = float(sums.sum() / counts.sum()) if counts.sum() else None
                row += [_four(mean), *map(_four, clustered_mean(sums, counts, columns.group_labels))]
            rows.append(row)
    names = ("PSNR, dB", "SSIM", "flicker", "flow end-point error, px")
    return Table(
        name="perceptibility",
        title=f"How visible the perturbation is: means over perturbed stacks, {results.system}",
        columns=[
            *(("", name) for name in ("attack", "epsilon", "stacks")),
            *((name, bound) for name in names for bound in ("mean", "low", "high")),
        ],
        rows=rows,
        notes=[
            "PSNR and SSIM: of the perturbed frames. flicker: mean change of the perturbation from frame to frame, in "
            "grey levels of 255. End-point error: between the clean and the attacked flow. A stack whose perturbation "
            "is nought has no finite PSNR and is left out of its mean.",
        ],
    )


def realisability(results: Results) -> Table:
    """What survives in which medium, beside the clean frames in the same one."""
    strata = results.columns.group_labels
    counts: dict[tuple, np.ndarray] = {}
    for row in results.realisability:
        key = tuple(row[name] for name in ("attack", "target", "epsilon", "medium"))
        of_groups = counts.setdefault(key, np.zeros((3, len(strata)), int))
        standing = row["attacked"] and row["correct"]
        of_groups[:, results.columns.group_of(row["clip"], row["stack"])] += (1, row["attacked"], standing)
    rows: list[list[Value]] = []
    for key, (units, attacked, standing) in counts.items():
        total, right, still = int(units.sum()), int(attacked.sum()), int(standing.sum())
        of_right = clustered_rate(standing, attacked, strata)
        rows.append(
            [
                *key,
                total,
                right,
                percent(still / total),
                *_percents(clustered_rate(standing, units, strata)),
                percent((right - still) / right) if right else None,
                *_percents(Interval(1 - of_right.high, 1 - of_right.low)),
            ]
        )
    return Table(
        name="realisability",
        title="What of an attack survives being stored: accuracy of all, success among the right (%)",
        columns=[
            *(("", name) for name in ("attack", "judged", "epsilon", "medium", "stacks", "attacked")),
            *((name, bound) for name in ("accuracy", "success") for bound in ("", "low", "high")),
        ],
        rows=rows,
        notes=["attack clean: the clean frames in the same medium; its success is what the medium alone breaks."],
    )


def _on_the_same_units(results: Results, cells: list[Cell]) -> tuple[list[np.ndarray], np.ndarray]:
    """Success of two attacks on the units that were right when clean and that both were made on."""
    found = []
    for cell in cells:
        columns = results.columns.cells[cell]
        found.append((columns.units[columns.attacked], columns.success[columns.attacked]))
    (first, of_first), (second, of_second) = found
    units, at_first, at_second = np.intersect1d(first, second, return_indices=True)
    return [of_first[at_first], of_second[at_second]], units


def _percents(interval: Interval) -> Iterator[Value]:
    yield from map(percent, interval)


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 2)


def _four(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
