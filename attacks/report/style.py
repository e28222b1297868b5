"""One look for all figures. What differs, differs by marker, dashes or hatch as well as by colour."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attacks.report.lettering import families
from attacks.report.results import CONTROLS

# Okabe and Ito's colours, which stay apart for the colour-blind; with a marker and a dash pattern each.
STYLES: list[tuple[str, str, Any]] = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", (0, (3, 1, 1, 1, 1, 1))),
    ("#E69F00", "v", (0, (5, 1))),
    ("#56B4E9", "P", (0, (1, 1))),
]
CONTROL_STYLES: dict[str, tuple[str, str, Any]] = {
    "noise": ("#666666", "x", ":"),
    "random_order": ("#7F5F00", "D", (0, (3, 1, 1, 1))),
    "first_to_last": ("#882255", ">", (0, (5, 1))),
    "least_salient": ("#444444", "v", (0, (1, 1))),
}
HATCHES = ["", "////", "....", "xxxx", "\\\\\\\\", "++++"]
SHADES = "cividis"
"""from dark to light in print, too"""

DOTS_PER_INCH = 150
"""of the PNG files"""

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.35",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "flowfool",
    "svg.fonttype": "path",
    # Names are users' own: a $ in one is no formula.
    "text.parse_math": False,
    "text.usetex": False,
}


def settings_for(names: Iterable[str]) -> dict[Any, Any]:
    """RC, with the fonts that these names take."""
    return {**RC, "font.family": families(names)}


def legend_columns(labels: Sequence[str], most: int) -> int:
    """As many as the figure is wide enough for."""
    return max(1, min(len(labels), most, 120 // max(map(len, labels), default=1)))


def style(names: Sequence[str], name: str) -> tuple[str, str, Any]:
    """(colour, marker, dashes) of `name` among `names`; a control has its own."""
    if name in CONTROL_STYLES:
        return CONTROL_STYLES[name]
    return STYLES[[other for other in names if other not in CONTROLS].index(name) % len(STYLES)]


def accuracy_axes(
    ax: Axes, classes: int | None, *, title: str, xlabel: str, ylabel: str = "", chance_at: float = 0.0
) -> None:
    """Percent from 0 to 100, with the line of chance, named at that place from left (0) to right (1).

    Without it where there is no one number of classes.
    """
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103), title=title)
    ax.grid(axis="y", color="0.9")
    if classes is None:
        return
    chance = 100 / classes
    ax.axhline(chance, color="0.55", linewidth=0.8, zorder=0.5)
    ax.annotate(
        "chance", (chance_at, chance), xycoords=("axes fraction", "data"), xytext=(3 - 6 * chance_at, -1.5),
        textcoords="offset points", ha="right" if chance_at else "left", va="top", fontsize=7.5, color="0.4",
    )  # fmt: skip


def ink_on(shade: float) -> str:
    """Colour of text on a shade of SHADES, 0 dark to 1 light."""
    return "white" if shade < 0.55 else "black"


def save(figure: Figure, path: Path, *, svg: bool) -> None:
    """Write a figure as PNG and, if asked for, as SVG beside it."""
    figure.savefig(path, dpi=DOTS_PER_INCH)
    if svg:
        figure.set_layout_engine("none")  # the PNG's layout stays: to compute it takes as long as to draw
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
