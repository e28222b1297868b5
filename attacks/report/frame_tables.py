"""The adversarial frames themselves: how visible the perturbation is, and what of it survives being stored."""

import numpy as np

from attacks.columns import QUALITIES
from attacks.group_bootstrap import Interval
from attacks.report.cells import percent, percents, rounded
from attacks.report.results import Results
from attacks.report.table import Table, Value
from attacks.statistics import clustered_mean, clustered_rate


def perceptibility(results: Results) -> Table:
    """Means over the stacks that an attack perturbed, white box."""
    columns = results.columns
    rows: list[list[Value]] = []
    for attack in results.attacks:
        for epsilon in results.epsilons:
            cell = columns.cells[results.cell(attack, results.system, epsilon)]
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
                interval = clustered_mean(sums, counts, columns.group_labels)
                row += [rounded(value, 4) for value in (mean, *interval)]
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
        if row["prediction"] < 0:  # neither right nor fooled
            continue
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
                *percents(clustered_rate(standing, units, strata)),
                percent((right - still) / right) if right else None,
                *percents(Interval(1 - of_right.high, 1 - of_right.low)),
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
