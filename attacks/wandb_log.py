"""A sweep in Weights & Biases: curves over ε with their intervals, charts of all attacks, tables, figures, a gallery of
clips, summary, and the report as an artifact.

All of it goes through the run itself, not through the logger's step, and works offline.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import wandb

from attacks.clip_export import LOOKING_CRF, LOOKING_RATE
from attacks.eight_bit import amplified_difference, gain_of
from attacks.examples import Example
from attacks.records import CLEAN
from attacks.report import Report
from attacks.report.cells import literal
from attacks.report.results import Results
from attacks.video_files import write_h264
from attacks.whole_file import file_stem

EPSILON = "attack/epsilon"
LEVELS = ("stack", "video")
BOUNDS = ("lower", "upper")
GALLERY = "attack_gallery/examples"


class Quantity(NamedTuple):
    title: str
    field: str
    """of Tally, and of CellIntervals"""


QUANTITIES = {
    "accuracy": Quantity("accuracy", "accuracy"),
    "accuracy_8bit": Quantity("accuracy of 8-bit frames", "accuracy_8bit"),
    "success_rate": Quantity("success rate", "success_rate"),
    "frames_perturbed": Quantity("frames perturbed", "mean_frames"),
}


def curve_name(quantity: str, level: str, attack: str, target: str, bound: str | None = None) -> str:
    """attack/<level>_<quantity>/<attack>/<target>; with _lower or _upper after the quantity, an end of its interval."""
    name = f"attack/{level}_{quantity}{'' if bound is None else f'_{bound}'}/{attack}/{target}"
    return literal(name).replace("*", "×")  # W&B takes a * for any text


def chart_name(quantity: str, level: str) -> str:
    """One chart with a line for each attack and target."""
    return f"attack_charts/{level}_{quantity}"


def log_report(run: Any, report: Report, settings: Mapping[str, Any]) -> None:
    """Log a report to a W&B run (`WandbLogger.experiment`)."""
    results = report.results
    run.config.update({"attack_sweep": dict(settings)}, allow_val_change=True)
    run.define_metric(EPSILON)
    run.define_metric("attack/*", step_metric=EPSILON)
    curves = dict(curves_of(results))
    for name in curves:
        # By name too: the logger has declared every metric against the Trainer's step.
        run.define_metric(name, step_metric=EPSILON)
    for epsilon in (0.0, *results.epsilons):
        points = {name: curve[epsilon] for name, curve in curves.items() if curve.get(epsilon) is not None}
        run.log({EPSILON: epsilon} | points)
    # The summary keeps the last value of each curve, at the largest ε; beside it, what the attacks started from.
    for system, level in product(results.systems, LEVELS):
        run.summary[f"clean/{level}_accuracy/{system}"] = _known(results.clean(system, level).accuracy)

    media: dict[str, Any] = dict(_charts(results, curves))
    for table in report.tables:
        media[f"attack_tables/{table.name}"] = _table(table.headings, table.rows)
    for name, path in report.figures.items():
        media[f"attack_figures/{name}"] = wandb.Image(str(path))
    media |= _gallery(report.folder / "examples", results)
    run.log(media)

    artifact = wandb.Artifact("attack-sweep", type="attack-sweep")
    for file in report.files:
        artifact.add_file(str(report.folder / file), name=str(file))
    run.log_artifact(artifact)


def clip_name(example: Example) -> str:
    """Where the video of an example is logged."""
    return f"attack_clips/{file_stem(literal(example.clip))}"


def write_clip(folder: Path, example: Example, *, size: int = 224) -> Path:
    """The stack of an example as an H.264 video: the clean frames and each attack's side by side, under each attack's
    its difference, amplified so that ±ε fills the range.

    For looking at only: the codec is lossy, the example's .npz holds the frames themselves.
    """
    gain = gain_of(example.epsilon)
    adversarial = list(example.adversarial.values())
    differences = [amplified_difference(example.frames, frames, gain) for frames in adversarial]
    above = np.concatenate([example.frames, *adversarial], axis=2)
    below = np.concatenate([np.full_like(example.frames, 128), *differences], axis=2)
    panels = np.concatenate([above, below], axis=1)
    scale = max(1, size // example.frames.shape[1])
    path = folder / f"{file_stem(example.clip)}.mp4"
    write_h264(path, panels.repeat(scale, 1).repeat(scale, 2), crf=LOOKING_CRF, frame_rate=LOOKING_RATE)
    return path


def curves_of(results: Results) -> Iterator[tuple[str, dict[float, float | None]]]:
    """Name -> ε -> value, of each quantity and of the ends of its interval (the report's, by the bootstrap over
    groups)."""
    for attack, target, level in product(results.attacks, results.systems, LEVELS):
        points, bounds = results.curve(attack, target, level), results.bounds(attack, target, level)
        for quantity, about in QUANTITIES.items():
            values = {e: _known(getattr(tally, about.field)) for e, tally in points.items()}
            if all(value is None for value in values.values()):
                continue
            yield curve_name(quantity, level, attack, target), values
            for end, bound in enumerate(BOUNDS):
                ends = {e: getattr(bounds[e], about.field)[end] for e, value in values.items() if value is not None}
                ends = {e: value for e, value in ends.items() if not np.isnan(value)}
                if ends:  # one-shot perturbs all frames, always: that mean has no interval
                    yield curve_name(quantity, level, attack, target, bound), ends


def _known(value: float | None) -> float | None:
    """None for nan, too: a rate of no example."""
    return None if value is None or np.isnan(value) else value


def _charts(
    results: Results, curves: Mapping[str, Mapping[float, float | None]]
) -> Iterator[tuple[str, wandb.plot.CustomChart]]:
    """A chart for each level and quantity, one line per attack and target."""
    for level, (quantity, about) in product(LEVELS, QUANTITIES.items()):
        lines: dict[str, list[tuple[float, float]]] = {}
        for attack, target in product(results.attacks, results.systems):
            curve = curves.get(curve_name(quantity, level, attack, target), {})
            points = [(epsilon, value) for epsilon, value in curve.items() if value is not None]
            if points:
                lines[f"{attack} on {target}"] = points
        if lines:
            yield (
                chart_name(quantity, level),
                wandb.plot.line_series(
                    [[epsilon for epsilon, _ in points] for points in lines.values()],
                    [[value for _, value in points] for points in lines.values()],
                    keys=list(lines),
                    title=f"{level} level: {about.title}, gradient of {results.system}",
                    xname="epsilon",
                ),
            )


def _gallery(folder: Path, results: Results) -> dict[str, Any]:
    """A video for each example, and a table of what the white box says of each attack on it."""
    media: dict[str, Any] = {}
    rows = []
    for example in results.examples:
        path = write_clip(folder, example)
        clip, number = literal(example.clip), example.stack + 1
        panels = ", ".join([CLEAN, *example.adversarial])
        caption = f"{clip}, stack {number}, ε = {example.epsilon:g}: {panels}; differences below"
        media[clip_name(example)] = wandb.Video(str(path), caption=caption, format="mp4")
        for attack in (CLEAN, *example.adversarial):
            epsilon = 0.0 if attack == CLEAN else example.epsilon
            record = results.example_records[example.clip, attack, epsilon]
            said = results.class_name(record.prediction)
            rows.append([clip, number, results.classes[record.label], attack, epsilon, said])
            rows[-1] += [record.confidence, record.frames_perturbed, wandb.Video(str(path), format="mp4")]
    if rows:
        columns = ["clip", "stack", "class", "attack", "epsilon", "prediction", "confidence", "frames perturbed"]
        media[GALLERY] = wandb.Table(columns=[*columns, "video"], data=rows)
    return media


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> wandb.Table:
    """As text: a W&B column has one type, and ours hold gaps and footnote marks."""
    shown = [["" if value is None else str(value) for value in row] for row in rows]
    return wandb.Table(columns=list(columns), data=shown)
