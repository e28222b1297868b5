"""A sweep in Weights & Biases: curves over ε, tables, figures, clips, summary, and the report as an artifact.

All of it goes through the run itself, not through the logger's step, and works offline.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import wandb

from attacks.examples import Example
from attacks.metrics import Tally
from attacks.report import Report
from attacks.report.results import Results

EPSILON = "attack/epsilon"
FRAMES_PER_SECOND = 6
"""half the speed of 12 fps video, so that single frames can be seen"""


def log_report(run: Any, report: Report, settings: Mapping[str, Any]) -> None:
    """Log a report to a W&B run (`WandbLogger.experiment`)."""
    results = report.results
    run.config.update({"attack_sweep": dict(settings)}, allow_val_change=True)
    run.define_metric(EPSILON)
    run.define_metric("attack/*", step_metric=EPSILON)
    curves = dict(_curves(results))
    for name in curves:
        # By name too: the logger has declared every metric against the Trainer's step.
        run.define_metric(name, step_metric=EPSILON)
    for epsilon in (0.0, *results.epsilons):
        points = {name: curve[epsilon] for name, curve in curves.items() if curve.get(epsilon) is not None}
        run.log({EPSILON: epsilon} | points)
    # The summary keeps the last value of each curve, at the largest ε; beside it, what the attacks started from.
    for system, level in product(results.systems, ("stack", "video")):
        run.summary[f"clean/{level}_accuracy/{system}"] = results.clean(system, level).accuracy

    media: dict[str, Any] = {}
    for table in report.tables:
        rows = [["" if value is None else str(value) for value in row] for row in table.rows]
        media[f"attack_tables/{table.name}"] = wandb.Table(columns=list(table.headings), data=rows)
    for name, path in report.figures.items():
        media[f"attack_figures/{name}"] = wandb.Image(str(path))
    for example in results.examples:
        path = write_clip(report.folder / "examples", example)
        panels = ", ".join(["clean", *example.adversarial])
        caption = f"{example.clip}, stack {example.stack + 1}, ε = {example.epsilon:g}: {panels}"
        media[f"attack_clips/{path.stem}"] = wandb.Video(str(path), caption=caption, format="mp4")
    run.log(media)

    artifact = wandb.Artifact("attack-sweep", type="attack-sweep")
    for file in report.files:
        artifact.add_file(str(report.folder / file), name=str(file))
    run.log_artifact(artifact)


def write_clip(folder: Path, example: Example, *, size: int = 224) -> Path:
    """The stack of an example as an H.264 video, the clean frames and each attack's side by side.

    For looking at only: the codec is lossy, the example's .npz holds the frames themselves.
    """
    panels = np.concatenate([example.frames, *example.adversarial.values()], axis=2)
    scale = max(1, size // example.frames.shape[1])
    panels = panels.repeat(scale, 1).repeat(scale, 2)
    height, width = (side - side % 2 for side in panels.shape[1:3])
    path = folder / f"{example.clip.replace('/', '--')}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in panels[:, :height, :width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def _curves(results: Results) -> Iterator[tuple[str, dict[float, float | None]]]:
    """attack/<level>_<quantity>/<attack>/<target> -> ε -> value."""
    quantities: dict[str, Callable[[Tally], float | None]] = {
        "accuracy": lambda tally: tally.accuracy,
        "accuracy_8bit": lambda tally: tally.accuracy_8bit,
        "success_rate": lambda tally: tally.success_rate,
        "frames_perturbed": lambda tally: tally.mean_frames,
    }
    for attack, target, level in product(results.attacks, results.systems, ("stack", "video")):
        points = results.curve(attack, target, level)
        for quantity, value in quantities.items():
            values = {epsilon: value(tally) for epsilon, tally in points.items()}
            if any(v is not None for v in values.values()):
                yield f"attack/{level}_{quantity}/{attack}/{target}", values
