"""Values of a table's cells, from shares of 1, means and intervals; None where there is none."""

import math
import unicodedata

from attacks.group_bootstrap import Interval

_BREAKING = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates, separators of lines and paragraphs"""


def percent(share: float | None) -> float | None:
    """A share in percent, to two digits."""
    return None if share is None or math.isnan(share) else round(100 * share, 2)


def percents(interval: Interval) -> list[float | None]:
    """Both ends of an interval of a share."""
    return [percent(end) for end in interval]


def between(interval: Interval, scale: float = 100, digits: int = 1) -> str | None:
    """An interval in one cell: of a share in percent, of anything else with `scale` 1."""
    low, high = interval
    return None if math.isnan(low) else f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"


def rounded(value: float | None, digits: int = 2) -> float | None:
    """A mean, or an end of its interval."""
    return None if value is None or math.isnan(value) else round(value, digits)


def literal(text: str) -> str:
    """A name on one line: what breaks lines, controls a terminal or is half a character, by its escape."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _BREAKING else c for c in text)


def encodable(text: str) -> str:
    """Half characters, as in the names of files that are not UTF-8, by their escapes: no file takes them."""
    return text.encode("utf-8", "backslashreplace").decode()
