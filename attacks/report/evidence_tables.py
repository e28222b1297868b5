"""What stands behind the curves: every rate, attacks paired on the same stacks, frames to success, budgets, costs.

One row each, for a spreadsheet as much as for a reader.
"""

from itertools import combinations

import numpy as np

from attacks.metrics import Cell, budget_map
from attacks.report.cells import percent, percents, rounded
from attacks.report.class_tables import confusions, per_class
from attacks.report.faults import fault_pointer, fault_table
from attacks.report.frame_tables import perceptibility, realisability
from attacks.report.path_table import prediction_paths
from attacks.report.results import NOISE, Results
from attacks.report.table import Table, Value
from attacks.report.tables import control, denominators, frame_orders, table1, table2
from attacks.statistics import mcnemar


def all_tables(results: Results) -> list[Table]:
    """Those that the sweep has something for, the ones that are printed first."""
    tables = [table1(results)]
    if results.targets and any(results.made_on(target) for target in results.targets):
        tables.append(table2(results))
    if NOISE in results.controls:
        tables.append(control(results))
    if len(results.controls) > (NOISE in results.controls):
        tables.append(frame_orders(results))
    tables += [denominators(results, system) for system in results.systems if results.made_on(system)]
    tables.append(fault_table(results))
    tables += [rates(results), paired(results), frames_to_success(results), budgets(results)]
    tables += [per_class(results), confusions(results), costs(results), perceptibility(results), realisability(results)]
    tables.append(prediction_paths(results.paths))
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
                *percents(bounds.accuracy),
                percent(counts.accuracy_of_attacked),
                *percents(bounds.accuracy_of_attacked),
                percent(counts.success_rate),
                *percents(bounds.success_rate),
                percent(counts.accuracy_8bit),
                *percents(bounds.accuracy_8bit),
                rounded(counts.mean_frames),
                *map(rounded, bounds.mean_frames),
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
        notes=[
            "attacked: right when clean. fooled: attacked, and wrong now. frames: mean of the fooled units.",
            *fault_pointer(results),
        ],
    )


def paired(results: Results) -> Table:
    """Two attacks on the same units: McNemar's test, and the difference of their success rates."""
    rows: list[list[Value]] = []
    places = [("stack", system) for system in results.systems] + [("video", results.system)]
    for level, system in places:
        for first, second in combinations(results.made_on(system), 2):
            for epsilon in results.epsilons:
                cells = [results.cell(name, system, epsilon, level) for name in (first, second)]
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
                        *percents(both.interval),
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
    """Median frames, the share that stands at each budget, and the paper's mean over successes; see `survivals`."""
    rows: list[list[Value]] = []
    after = range(1, results.frames + 1)
    for cell, curve in results.survivals.items():
        counts = results.tallies[cell]
        rows.append(
            [cell.attack, cell.target, cell.epsilon, counts.attacked, curve.median, *curve.median_interval]
            + [rounded(counts.mean_frames)]
            + [percent(float(share[t])) for t in after for share in (curve.standing, curve.low, curve.high)]
        )
    heads = ("attack", "judged", "epsilon", "attacked", "median", "low", "high", "mean of successes")
    return Table(
        name="survival",
        title=f"Frames to success: median, stacks that withstand as more than {results.frames}; share (%) still right",
        columns=[
            *(("", name) for name in heads),
            *((f"still right after {frames}", bound) for frames in after for bound in ("", "low", "high")),
        ],
        rows=rows,
        notes=[
            f"No median: more than half of the stacks withstand the attack on all {results.frames} frames.",
            "low, high: 95 % interval, of a share pointwise.",
            *fault_pointer(results, "Where the gradient became zero, a stack counts up to the frames it had."),
        ],
    )


def budgets(results: Results) -> Table:
    """Stack accuracy under each ε and with at most so many frames perturbed."""
    rows: list[list[Value]] = []
    for system in results.systems:
        for attack in results.made_on(system):
            if attack in results.dense:
                continue
            accuracy = budget_map(
                results.tallies,
                system=results.system,
                attack=attack,
                target=system,
                epsilons=results.epsilons,
                frames=results.frames,
            )
            for epsilon, row in zip(results.epsilons, accuracy, strict=True):
                bounds = results.budgets[results.cell(attack, system, epsilon)]
                values: list[Value] = [attack, system, epsilon]
                for share, bound in zip(row.tolist(), bounds, strict=True):
                    values += [percent(share), *percents(bound)]
                rows.append(values)
    return Table(
        name="budgets",
        title="Stack accuracy (%) of all stacks by ε and frame budget",
        columns=[
            *(("", name) for name in ("attack", "judged", "epsilon")),
            *(
                (f"{frames} frame{'s' * (frames != 1)}", bound)
                for frames in range(results.frames + 1)
                for bound in ("", "low", "high")
            ),
        ],
        rows=rows,
        notes=[
            "Each frame is perturbed in the attack's own order until the stack is lost or the budget is.",
            "low, high: 95 % interval.",
            *fault_pointer(results),
        ],
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


def _on_the_same_units(results: Results, cells: list[Cell]) -> tuple[list[np.ndarray], np.ndarray]:
    """Success of two attacks on the units that were right when clean and that both were made on."""
    found = []
    for cell in cells:
        columns = results.columns.cells[cell]
        found.append((columns.units[columns.attacked], columns.success[columns.attacked]))
    (first, of_first), (second, of_second) = found
    units, at_first, at_second = np.intersect1d(first, second, return_indices=True)
    return [of_first[at_first], of_second[at_second]], units


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
