"""`python -m attacks report FOLDER`: tables and figures once more, from the records that a sweep left."""

import sys
from pathlib import Path

from jsonargparse import CLI
from rich import get_console

from attacks.report import write_report
from attacks.report.tables import print_tables


def report(folder: Path) -> None:
    """Write tables and figures from records.

    Args:
        folder: what the sweep wrote its records to.
    """
    print_tables(get_console(), write_report(folder).tables)


if __name__ == "__main__":
    try:
        CLI({"report": report}, as_positional=True)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"Error: {error}")
