"""What a reader must know before the numbers: said once at the top of the page, on the console and in results.json."""

from attacks.report.faults import worst_faults
from attacks.report.lettering import missing, no_font
from attacks.report.results import Results

NAMED = 3
"""up to so many classes with a missing sign are listed"""


def reservations(results: Results) -> list[str]:
    """In sentences; empty where there is nothing to say."""
    said = [
        f"records.jsonl also holds {rows} rows that used the gradient of {system}: this report is of {results.system} "
        "alone and leaves them out. A folder for each sweep keeps them apart."
        for system, rows in results.left_out.items()
    ]
    return said + worst_faults(results) + _missing_signs(results)


def _missing_signs(results: Results) -> list[str]:
    signs = missing(results.names)
    if not signs:
        return []
    numbered = [
        f"class {index} is {name}" for index, name in enumerate(results.classes) if not set(signs).isdisjoint(name)
    ]
    listed = f" Here {'; '.join(numbered[:NAMED])}{'; …' if len(numbered) > NAMED else ''}." if numbered else ""
    return [f"{no_font(signs)} and run `python -m attacks report FOLDER` again.{listed}"]
