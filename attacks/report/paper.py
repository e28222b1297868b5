"""The paper's own Tables 1 and 2, read from the two files beside this one: the only place of its figures."""

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

TABLE_2_NOTES = (
    "† as printed: a fraction, not percent (Table 1 gives 3.80, 1.45, 0.78 … percent for the same attack).",
    "‡ as printed in Table 2; section 4 says 70.72.",
)


class PaperTable1(NamedTuple):
    """One ε of one white-box attack: accuracies in percent, frames of the successful examples; text as printed."""

    stack_accuracy: str
    frames_perturbed: str
    video_accuracy: str


@cache
def table1() -> dict[tuple[str, float], PaperTable1]:
    """(attack, ε) -> what Table 1 prints."""
    return {
        (row["attack"], float(row["epsilon"])): PaperTable1(
            row["stack_accuracy"], row["frames_perturbed"], row["video_accuracy"]
        )
        for row in _rows("paper_table1.csv")
    }


@cache
def table2() -> dict[tuple[str, str, float], str]:
    """(attack, target, ε) -> the stack-level accuracy that Table 2 prints, with the mark of its note."""
    return {
        (row["attack"], row["target"], float(row["epsilon"])): row["stack_accuracy"] + _mark(row)
        for row in _rows("paper_table2.csv")
    }


def _mark(row: dict[str, str]) -> str:
    if row["unit"] == "fraction":
        return "†"
    return "‡" if row["target"] == "tvl1" and float(row["epsilon"]) == 0 else ""


def _rows(name: str) -> list[dict[str, str]]:
    text = files("attacks.report").joinpath(name).read_text()
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
