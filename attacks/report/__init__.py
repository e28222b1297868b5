"""What a finished sweep says: tables, figures and results.json, from the records in its folder alone."""

import json
from pathlib import Path
from typing import NamedTuple

from attacks.report.evidence_tables import all_tables
from attacks.report.figures import write_figures
from attacks.report.results import Results, load_results
from attacks.report.table import Table
from attacks.report.tables import results_json, write_tables


class Report(NamedTuple):
    folder: Path
    results: Results
    tables: list[Table]
    figures: dict[str, Path]
    """name -> PNG"""

    @property
    def files(self) -> list[Path]:
        """All that the report is made of, relative to its folder."""
        tables = [Path("tables") / f"{table.name}.csv" for table in self.tables]
        figures = [path.relative_to(self.folder) for path in self.figures.values()]
        return [Path("settings.json"), Path("results.json"), Path("tables.txt"), *tables, *figures]


def write_report(folder: Path) -> Report:
    """Write tables.txt, tables/*.csv, results.json and figures/*.png into the folder of a finished sweep.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
    """
    results = load_results(folder)
    tables = all_tables(results)
    write_tables(folder, tables)
    figures = write_figures(folder, results)
    # Last and whole: its presence says that the report is finished.
    part = folder / "results.json.part"
    part.write_text(json.dumps(results_json(results, tables), indent=1, ensure_ascii=False) + "\n")
    part.replace(folder / "results.json")
    return Report(folder, results, tables, figures)
