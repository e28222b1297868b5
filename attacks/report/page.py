"""report/index.html: everything of a sweep on one page, in one file, without a script and without the network."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from attacks.group_bootstrap import Interval
from attacks.records import CLEAN
from attacks.report.cells import encodable
from attacks.report.gallery import Gallery, gallery
from attacks.report.results import NOISE, Results
from attacks.report.style import DOTS_PER_INCH
from attacks.report.table import Table, spoken
from attacks.whole_file import write_whole

ROWS_SHOWN = 60
"""of a long table; the files hold all"""
CAPTIONS = {
    "fig3_stack": "Figure 3. One stack under each attack, with class and confidence; perturbed frames are numbered.",
    "fig4_accuracy": "Figure 4. Accuracy against ε, at stack and at video level.",
    "fig5_frames_perturbed": "Figure 5. Frames perturbed of the successful stacks, mean over all ε.",
    "fig6_transfer": "Figure 6. Accuracy of systems that see other flow, attacked with the white box's gradient.",
    "fig7_epsilons": "Figure 7. Frames under every ε, with what is seen in their stack.",
    "budgets": "Accuracy by ε and by the number of frames that may be perturbed.",
    "survival": "Share of the stacks right when clean that is still right after so many perturbed frames. Stacks that "
    "withstand the attack on all frames are censored at the last one, not dropped; stacks whose gradient became zero, "
    "at the frames that they had until then. Shaded: 95 % band.",
    "controls": "The attacks beside what knows less: random signs, and the gradient's signs, frames in another order.",
    "per_class": "Accuracy of each class, clean and under the strongest attack at the least ε.",
    "confusion": "What the attacked stacks are taken for: rows are classes when clean, and sum to 100 %.",
    "realisability": "Accuracy on frames that were stored: float as the paper attacks, in 8 bits, and as video.",
}


class Number(NamedTuple):
    """A tile of the headline."""

    value: str
    interval: str
    words: str


class Picture(NamedTuple):
    uri: str
    width: int
    """CSS pixels at its own size"""


def write_page(
    folder: Path,
    results: Results,
    tables: list[Table],
    figures: Mapping[str, Path],
    reservations: Sequence[str] = (),
    shown: Gallery | None = None,
) -> Path:
    """Write report/index.html into the folder of a sweep; the other arguments are what it shows."""
    path = folder / "report" / "index.html"
    text = render(
        "page.html.jinja",
        title=f"FlowFool: {results.system} under attack",
        reservations=reservations,
        headline=headline(results),
        numbers=headline_numbers(results),
        facts=facts(results),
        runs=results.runs,
        tables={table.name: table for table in tables},
        figures={name: picture(figure) for name, figure in figures.items()},
        captions=CAPTIONS,
        gallery=gallery(results) if shown is None else shown,
        rows_shown=ROWS_SHOWN,
        controls=[table for table in tables if table.name in ("control", "orders", "paths")],
        denominators=[table for table in tables if table.name.startswith("denominators")],
    )
    write_whole(path, encodable(text))
    return path


def render(template: str, **values: Any) -> str:
    """A template of this package."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    parts = files("attacks.report")
    environment.globals["style"] = parts.joinpath("page.css").read_text()
    source = parts.joinpath("macros.html.jinja").read_text() + parts.joinpath(template).read_text()
    return environment.from_string(source).render(**values)


def picture(path: Path) -> Picture:
    """A figure as data: its SVG where there is one."""
    vector = path.with_suffix(".svg")
    kind, data = ("svg+xml", vector.read_bytes()) if vector.exists() else ("png", path.read_bytes())
    with Image.open(path) as image:
        width = round(image.width * 96 / DOTS_PER_INCH)
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", width)


def headline_numbers(results: Results) -> list[Number]:
    """Clean, under the strongest attack at the least ε, under noise of that size, and the frames it takes."""
    epsilon, attack, system = results.epsilons[0], results.strongest, results.system
    clean = results.intervals[results.cell(CLEAN, system, 0.0)].accuracy
    numbers = [Number(_percent(results.clean(system).accuracy), _between(clean), "of stacks right when clean")]
    for name in [attack, *(name for name in results.controls if name == NOISE)]:
        counts, bounds = results.curve(name, system)[epsilon], results.bounds(name, system)[epsilon]
        words = f"under {spoken(name)}, {_at(epsilon)}"
        numbers.append(Number(_percent(counts.accuracy), _between(bounds.accuracy), words))
    curve = results.survivals.get(results.cell(attack, system, epsilon))
    if curve is not None and not np.isnan(curve.standing[-1]):
        low, high = ("more" if end is None else str(end) for end in curve.median_interval)
        median = f"> {results.frames}" if curve.median is None else str(curve.median)
        words = f"frames, of {results.frames}, until half of the stacks it had right are fooled, at that ε"
        numbers.append(Number(median, f"{low}–{high}", words))
    return numbers


def headline(results: Results) -> list[str]:
    """What was found, in sentences."""
    epsilon, attack, system = results.epsilons[0], results.strongest, results.system
    clean, fooled = results.clean(system), results.curve(attack, system)[epsilon]
    bounds = results.bounds(attack, system)[epsilon]
    sentences = [
        f"{system} saw {results.extent}, and got {_percent(clean.accuracy)} of the stacks right. Changes of at most "
        f"{_at(epsilon)} ({255 * epsilon:.2g} of 255 grey levels) by {spoken(attack)} fooled it on "
        f"{fooled.success} of the {fooled.attacked} it had right"
        + (
            f" ({_percent(fooled.success_rate)}, 95 % interval {_between(bounds.success_rate)})"
            if fooled.attacked
            else ""
        )
        + f", which leaves {_percent(fooled.accuracy)} of all stacks ({_between(bounds.accuracy)})."
    ]
    if NOISE in results.controls and (noise := results.curve(NOISE, system).get(epsilon)):
        sentences.append(
            f"Random signs of the same size fooled it on {noise.success}: {_percent(noise.accuracy)} stay right "
            f"({_between(results.bounds('noise', system)[epsilon].accuracy)})."
        )
    largest = results.epsilons[-1]
    for target in results.targets:
        made = [name for name in results.gradient_attacks if results.curve(name, target)]
        if made:
            worst = results.least(made, target, largest)
            before, after = results.clean(target).accuracy, results.curve(worst, target)[largest].accuracy
            sentences.append(
                f"Transferred to {target}, {spoken(worst)} at {_at(largest)} takes {_percent(before)} to "
                f"{_percent(after)} ({_between(results.bounds(worst, target)[largest].accuracy)})."
            )
    return sentences


def facts(results: Results) -> list[tuple[str, str]]:
    """What was attacked, and how, as settings.json tells it."""
    settings = results.settings
    listed = [
        ("white box", results.system),
        ("extent", results.extent),
        ("classes", ", ".join(results.classes)),
        ("ε", ", ".join(f"{epsilon:g}" for epsilon in results.epsilons)),
        ("transferred", ", ".join(spoken(name) for name in settings.get("transfer", [])) or "nothing"),
    ]
    for name, system in settings["systems"].items():
        listed.append((f"system {name}", _told(system)))
    for name, attack in settings["attacks"].items():
        listed.append((f"attack {spoken(name)}", _told(attack)))
    listed.append(("dataset", _told(settings.get("dataset", {})) or "not told"))
    groups = len(results.columns.group_labels)
    listed.append(("units", f"{groups} groups of clips (in UCF-101, cut from one video); they carry the intervals"))
    return listed


def _told(value: Any) -> str:
    """Nested settings on one line; hashes by their first digits."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_told(item)}" if not isinstance(item, Mapping) else f"{key} ({_told(item)})"
                         for key, item in value.items() if item not in ({}, None))  # fmt: skip
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:12] + "…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _at(epsilon: float) -> str:
    return f"ε\u00a0=\u00a0{epsilon:g}"


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}\u00a0%"


def _between(interval: Interval) -> str:
    low, high = interval
    return "no interval" if math.isnan(low) else f"{100 * low:.1f}–{100 * high:.1f}\u00a0%"
