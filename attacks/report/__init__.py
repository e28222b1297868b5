"""What a finished sweep says: tables, figures, page and results.json, from the records in its folder alone."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

from rich import get_console

from attacks.report.cells import encodable
from attacks.report.evidence_tables import all_tables
from attacks.report.figures import write_figures
from attacks.report.gallery import Gallery
from attacks.report.gallery import gallery as moving_pictures
from attacks.report.page import write_page
from attacks.report.reservations import reservations
from attacks.report.results import Results, load_results
from attacks.report.table import Table, print_tables
from attacks.report.tables import results_json, write_tables
from attacks.whole_file import write_whole


class Reservation(UserWarning):
    """What a reader of a report must know before its numbers."""


class Report(NamedTuple):
    folder: Path
    results: Results
    tables: list[Table]
    figures: dict[str, Path]
    """name -> PNG"""
    page: Path
    reservations: list[str]
    """what a reader must know before the numbers, failures included"""
    failures: list[str]
    """figures that could not be drawn; all else is there"""

    @property
    def files(self) -> list[Path]:
        """All that the report is made of, relative to its folder."""
        written = [Path("settings.json"), Path("results.json"), Path("summary.txt"), Path("tables.txt")]
        written += [Path("tables") / f"{table.name}.{form}" for table in self.tables for form in ("csv", "md", "tex")]
        figures = [path.relative_to(self.folder) for path in self.figures.values()]
        vectors = [path.with_suffix(".svg") for path in figures if (self.folder / path).with_suffix(".svg").exists()]
        return [*written, *figures, *vectors, self.page.relative_to(self.folder)]


def write_report(folder: Path) -> Report:
    """Write the report into the folder of a finished sweep.

    summary.txt and tables.txt, tables/*, figures/*, report/index.html, and results.json last: that it is there says
    that the report is finished.

    Warns:
        Reservation: what a reader must know before the numbers, each once.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
    """
    results = load_results(folder)
    said = reservations(results)
    tables = all_tables(results)
    write_tables(folder, tables)
    figures, failures = write_figures(folder, results)
    try:
        shown = moving_pictures(results)
    except Exception as error:  # as with a figure: a picture must not cost the report
        shown = Gallery([], moves=False)
        failures.append(f"The gallery could not be drawn: {type(error).__name__}: {error}")
    said += failures
    page = write_page(folder, results, tables, figures, said, shown)
    content = json.dumps(results_json(results, tables, said), indent=1, ensure_ascii=False)
    write_whole(folder / "results.json", encodable(content) + "\n")
    for sentence in said:
        warnings.warn(sentence, Reservation, stacklevel=2)
    return Report(folder, results, tables, figures, page, said, failures)


def report_on_console(folder: Path) -> Report:
    """`write_report`, with its first tables, what a reader must know and the page's path on the console."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Reservation)  # they are printed below
        report = write_report(folder)
    console = get_console()
    print_tables(console, report.tables)
    for sentence in report.reservations:
        console.print(f"Warning: {sentence}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    console.print(f"Report: {report.page}", soft_wrap=True, markup=False)
    return report
