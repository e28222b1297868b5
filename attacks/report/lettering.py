"""Names in figures as they are written: no TeX in them, one line each, and a stand-in where no font has a sign.

Matplotlib takes a sign from the first font of a list that has it. Boxes of missing signs all look alike, so a class
with such a sign is drawn as its number, and any other name with the sign's code point.
"""

from collections.abc import Iterable, Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties

from attacks.report.cells import literal
from attacks.report.table import spoken

BASE = "DejaVu Sans"
"""the one that matplotlib brings along"""
PREFERRED = ("Noto Sans", "Source Han Sans", "WenQuanYi", "IPA", "Droid Sans Fallback", "Symbola")
"""beginnings of families without serifs that have many scripts; any other installed font comes after them"""
NO_LETTERS = ("Last Resort", "LastResort", "Color Emoji", "Adobe Blank")
"""families that claim signs and draw boxes, colours that are lost here, or nothing"""
LONGEST = 48
"""letters of a name; of a longer one the middle is left out"""
SIGNS = 12
"""up to so many missing ones are listed"""
WEIGHTS = ("normal", "bold")


def drawn(text: str, longest: int = LONGEST) -> str:
    """A name as figures show it."""
    text = "".join(sign if font_of(sign) else ascii(sign)[1:-1] for sign in literal(text))
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[len(text) - (longest - longest // 2 - 1) :]}"
    # Matplotlib leaves out of a legend what begins with an underscore.
    return f" {text}" if text.startswith("_") else text


def drawn_attack(attack: str) -> str:
    return drawn(spoken(attack))


def drawn_class(classes: Sequence[str], index: int, longest: int = LONGEST) -> str:
    """A class's name, or its number where no font has the name's signs."""
    return f"class {index}" if missing([classes[index]]) else drawn(classes[index], longest)


def missing(names: Iterable[str]) -> list[str]:
    """The signs of these names that no font has."""
    return sorted({sign for name in names for sign in literal(name) if font_of(sign) is None})


def no_font(signs: Sequence[str]) -> str:
    """What is drawn instead of signs that no font has, and what to do. The caller ends the sentence."""
    some = "".join(signs[:SIGNS]) + ("…" if len(signs) > SIGNS else "")
    return (
        f"No installed font has {some}: figures show the numbers of such classes and the codes of other signs. Install "
        "a font that has them (on Debian fonts-noto-cjk, fonts-noto-core or fonts-symbola)"
    )


def families(names: Iterable[str]) -> list[str]:
    """The fonts that these names take: for matplotlib's `font.family`."""
    found = {font_of(sign) for name in names for sign in literal(name)} - {None, BASE}
    return [BASE, *sorted(str(family) for family in found)]


@cache
def font_of(sign: str) -> str | None:
    """The first installed family that has a sign, in normal and in bold weight."""
    return next((family for family in (BASE, *_others()) if ord(sign) in _signs(family)), None) if sign else None


@cache
def _others() -> list[str]:
    """The other families, those that are preferred first. Asked for only where BASE is not enough."""
    manager = font_manager.fontManager
    known = {str(font.fname) for font in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:  # installed after matplotlib wrote its list of fonts
            try:
                manager.addfont(path)
            except (OSError, RuntimeError, ValueError):
                continue  # a font that matplotlib cannot read
    names = {font.name for font in manager.ttflist if not any(part in font.name for part in NO_LETTERS)} - {BASE}
    return sorted(names, key=lambda name: (not name.startswith(PREFERRED), name))


@cache
def _signs(family: str) -> frozenset[int]:
    """Code points that a family has in every weight that figures use."""
    found = []
    for weight in WEIGHTS:
        try:
            path = font_manager.findfont(FontProperties(family=[family], weight=weight), fallback_to_default=False)
            found.append(frozenset(font_manager.get_font(path).get_charmap()))
        except (OSError, RuntimeError, ValueError):
            return frozenset()
    return found[0].intersection(*found[1:])
