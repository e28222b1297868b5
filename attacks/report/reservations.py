"""What a reader must know before the numbers: said once at the top of the page, on the console and in results.json."""

from attacks.report.faults import worst_faults
from attacks.report.results import Results


def reservations(results: Results) -> list[str]:
    """In sentences; empty where there is nothing to say."""
    said = [
        f"records.jsonl also holds {rows} rows that used the gradient of {system}: this report is of {results.system} "
        "alone and leaves them out. A folder for each sweep keeps them apart."
        for system, rows in results.left_out.items()
    ]
    return said + worst_faults(results)
