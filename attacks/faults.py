"""What a sweep says at its end of the rows that say nothing of robustness."""

from collections import Counter
from collections.abc import Iterable

from attacks.records import NO_GRADIENT, NOT_FINITE, Record

REMEDIES = {
    NO_GRADIENT: "No gradient, the attack stood still: look for saturated logits or a rounding in the system, let the "
    "gradient pass the rounding, try another loss, or attack in float32",
    NOT_FINITE: "Logits or a gradient that are not finite, no verdict: look for a square root or a division at zero in "
    "the system, or attack in float32",
}


def describe_faults(records: Iterable[Record]) -> str | None:
    """How many stacks of which attack and target have a fault, and what to do; None where there is none."""
    rows: Counter[tuple[str, str]] = Counter()
    faulty_rows: Counter[tuple[str, str, str]] = Counter()
    faulty_stacks: dict[tuple[str, str, str], set[tuple[str, int | None]]] = {}
    for record in records:
        if record.level != "stack":
            continue
        key = record.attack, record.target
        rows[key] += 1
        if record.fault is not None:
            faulty_rows[record.fault, *key] += 1
            faulty_stacks.setdefault((record.fault, *key), set()).add((record.clip, record.stack))
    lines = []
    for fault, remedy in REMEDIES.items():
        found = [
            f"  {attack} on {target}: {len(faulty_stacks[fault, attack, target])} stacks, "
            f"{count} of {rows[attack, target]} rows"
            for (which, attack, target), count in faulty_rows.items()
            if which == fault
        ]
        if found:
            lines += [remedy, *found]
    return "\n".join(["These rows say nothing of robustness.", *lines]) if lines else None
