"""A table and its forms: text for a terminal, CSV, Markdown, LaTeX (booktabs), and what the page's template needs."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from attacks.report.cells import literal

Value = float | int | str | None

SHORT = {
    "one_shot": "one-shot",
    "iterative_saliency": "it-sal",
    "iterative_saliency_rg": "it-sal-RG",
    "random_order": "random",
    "first_to_last": "in order",
    "least_salient": "least sal",
}
"""attack -> the head of its columns, for the first three the paper's"""
LONGEST_SLUG = 60
HERE, BETWEEN, THERE = "this run", "95 %", "paper"
"""sources of a row: what was measured, its interval, what the paper prints"""

_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "%&#_${}"}
    | {c: f"{{{c}}}" for c in "[]*"}  # after a line's end they would be taken for its options
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$", "≤": r"$\leq$", "≥": r"$\geq$", "×": r"$\times$", "ε": r"$\epsilon$"}
    | {"†": r"$^\dagger$", "‡": r"$^\ddagger$", "–": "--", "…": r"\ldots{}", "\u00a0": "~"}
)
"""for pdfLaTeX; letters of a name that are none of ASCII's stay as they are, which it reads as UTF-8"""
_LATIN = 0x17F
"""the last letter that pdfLaTeX knows by itself"""
_MARKDOWN = re.compile(r"[\\|*~$\[\]]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])")
"""what Markdown, with GitHub's tables, links and formulas, would not show as it is; a _ within a word it does"""
_TEXT_COLUMNS = {
    "attack",
    "first",
    "second",
    "judged",
    "source",
    "sweep",
    "less",
    "level",
    "class",
    "clean",
    "adversarial",
    "medium",
    "system",
    "part",
}


class Table(NamedTuple):
    name: str
    """of its files"""
    title: str
    columns: list[tuple[str, str]]
    """(what it is about, quantity); the first is "" for the leading columns"""
    rows: list[list[Value]]
    notes: list[str]
    printed: bool = False
    """on the console too, where only what one looks at first is"""
    timed: bool = False
    """holds wall seconds, which differ from run to run: it stays out of the files that equal sweeps have in common"""

    @property
    def headings(self) -> list[str]:
        return [f"{group}/{quantity}" if group else quantity for group, quantity in self.columns]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What neighbouring columns are about, and how many they are."""
        return [(_short(name), len(list(run))) for name, run in groupby(group for group, _ in self.columns)]

    def shown(self) -> list[list[str]]:
        """The rows as they are read."""
        return [[shown(column, value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def is_text(self, column: int) -> bool:
        """The column holds names, which are aligned to the left."""
        return self.columns[column][1] in _TEXT_COLUMNS

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return text.getvalue()

    def markdown(self) -> str:
        heads = [f"{_short(group)} {literal(quantity)}".strip() for group, quantity in self.columns]
        rule = [":--" if self.is_text(i) else "--:" for i in range(len(heads))]
        shown = [[_markdown(cell).replace("`", r"\`") for cell in cells] for cells in (heads, *self.shown())]
        lines = ["| " + " | ".join(cells) + " |" for cells in (shown[0], rule, *shown[1:])]
        notes = [f"{_markdown(note)}  " for note in self.notes]  # ours quote code
        return "\n".join([f"**{_markdown(self.title)}**", "", *lines, "", *notes]) + "\n"

    def latex(self) -> str:
        """A table for a document that uses booktabs."""
        form = "".join("l" if self.is_text(i) else "r" for i in range(len(self.columns)))
        rules, at = [], 1
        for name, span in self.groups:
            rules += [rf"\cmidrule(lr){{{at}-{at + span - 1}}}"] if name else []
            at += span
        above = " & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_tex(name)}}}" for name, span in self.groups)
        heads = [above + r" \\", "".join(rules)] if rules else []
        heads.append(" & ".join(_tex(quantity) for _, quantity in self.columns) + r" \\")
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.shown()]
        text = "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(self.title)}. {_tex(' '.join(self.notes))}}}",
                rf"\label{{tab:{self.name}}}",
                rf"\begin{{tabular}}{{{form}}}",
                r"\toprule",
                *heads,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )
        if any(ord(letter) > _LATIN for letter in text):
            return f"% names in other scripts: for XeLaTeX or LuaLaTeX, and a font that has them\n{text}"
        return text

    def lines(self) -> list[tuple[str, bool]]:
        """Lines of plain text, and whether each is one to read past."""
        cells = self.shown()
        span = [name for name, length in self.groups for name in [name] * length]
        heads = [span, [literal(quantity) for _, quantity in self.columns]]
        widths = [max(map(cell_len, column)) for column in zip(*heads, *cells, strict=True)]

        def line(row: list[str]) -> str:
            places = []
            for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
                space = " " * (width - cell_len(cell))  # letters of some scripts are two columns wide
                places.append(cell + space if self.is_text(i) else space + cell)
            return ("  " + "   ".join(places)).rstrip()

        quiet = [len(row) > 1 and row[1] in (THERE, BETWEEN) for row in self.rows]
        return [
            (literal(self.title), False),
            ("", False),
            *((line(head), False) for head in heads if any(head)),
            (" " + "─" * (sum(widths) + 3 * len(widths) - 1), False),
            *zip(map(line, cells), quiet, strict=True),
            ("", False),
            *((f"  {literal(note)}", False) for note in self.notes),
            ("", False),
            ("", False),
        ]


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Print those that one looks at first, whole, on a terminal of any width."""
    for table in tables:
        if table.printed:
            for number, (line, quiet) in enumerate(table.lines()):
                style = "bold" if number == 0 else "dim" if quiet else ""
                console.print(Text(line, style=style), soft_wrap=True)


def text_of(tables: Iterable[Table]) -> str:
    """Tables as plain text, as wide as they are."""
    return "".join(f"{line}\n" for table in tables for line, _ in table.lines())


def shown(column: tuple[str, str], value: Value) -> str:
    """A value of a column as it is read."""
    group, quantity = column
    if value is None:
        return "–"
    if isinstance(value, str):
        return _short(value)
    if quantity in ("epsilon", "p"):
        return f"{value:.2g}" if quantity == "p" else f"{value:g}"
    digits = 4 if group == "SSIM" else 2
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def spoken(attack: str) -> str:
    """An attack's name as the paper writes it."""
    return attack.replace("_rg", "-RG").replace("_", "-")


def slug(name: str) -> str:
    """A name as a part of a file's name: a path's / and what else a file system or LaTeX may refuse are replaced."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:LONGEST_SLUG]
    # Other names must not share a file.
    return plain if plain == name else f"{plain}-{hashlib.sha256(ascii(name).encode()).hexdigest()[:8]}"


def _short(name: str) -> str:
    return SHORT.get(name, literal(name))


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", literal(text))


def _tex(text: str) -> str:
    return literal(text).translate(_LATEX)
