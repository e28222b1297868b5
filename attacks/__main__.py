"""`python -m attacks report FOLDER`, `python -m attacks compare FOLDER FOLDER`: what sweeps say, from their records."""

import sys
from pathlib import Path

from jsonargparse import auto_cli
from rich import get_console

from attacks.report import report_on_console
from attacks.report.compare import compare as write_comparison
from attacks.report.results import sweep_folder
from attacks.report.table import print_tables
from datamodules.errors import ended_by_one_message


def report(folder: Path) -> None:
    """Write tables, figures and page from records.

    Args:
        folder: what a sweep wrote its records to, or the run folder that holds it.
    """
    made = report_on_console(sweep_folder(folder))
    if made.failures:
        sys.exit("\n".join(f"Error: {failure}" for failure in made.failures))


def compare(first: Path, second: Path, more: list[Path] | None = None, output: Path = Path("comparison")) -> None:
    """Lay sweeps side by side.

    Args:
        first: folder of a sweep, or the run folder that holds it; the differences are taken from this one.
        second: another one.
        more: further ones.
        output: folder of page, tables and figure; not that of a sweep, whose own report it would write over.
    """
    made = write_comparison([sweep_folder(folder) for folder in (first, second, *(more or []))], output)
    print_tables(get_console(), made.tables)
    get_console().print(f"Comparison: {made.page}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    with ended_by_one_message():
        auto_cli({"report": report, "compare": compare}, as_positional=True)
