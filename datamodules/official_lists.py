"""UCF-101's lists: class names with their numbers, and for each split the clips of a subset, with or without a label.

    classInd.txt       1 ApplyEyeMakeup
    trainlist01.txt    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
    testlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi

Lists of other datasets are read, too: names with spaces, backslashes, a byte-order mark, UTF-16, classes without
numbers, labels counted from 0, names without a suffix.
"""

import codecs
import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".webm", ".wmv",
)  # fmt: skip

NAMED = 10
"""How many names a message lists."""

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


class Line(NamedTuple):
    """A line of a list."""

    path: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.path} line {self.number}"


class Classes(NamedTuple):
    """The classes in the list's order."""

    path: Path
    names: list[str]
    numbers: list[int]
    """as the list has them, or from 1"""


class ListedClip(NamedTuple):
    """A clip in a list."""

    name: str
    """class and file stem, `Archery/v_Archery_g01_c01`"""
    file: str
    """the same as it is listed, with a suffix or without"""
    line: Line


def same(name: str) -> str:
    """What names of the same class or clip have in common: the lists and the files differ in capitals
    (HandstandPushups, HandStandPushups), and file systems in how they write accents."""
    return unicodedata.normalize("NFC", name).lower()


def stem(name: str) -> str:
    """A file's name without its suffix, if that is one of a video."""
    head, dot, suffix = name.rpartition(".")
    return head if head and f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else name


def read_classes(path: Path) -> Classes:
    """The class list.

    Raises:
        FileNotFoundError: no such list.
        ValueError: an unreadable line, no class, or one twice; names file and line.
    """
    lines = _lines(path)
    matches = [re.fullmatch(r"(\d+)\s+(\S.*)", line.text) for line in lines]
    numbers = [int(match[1]) for match in matches if match]
    numbered = len(set(numbers)) == len(lines)
    names = [match[2] if numbered and match else line.text for match, line in zip(matches, lines, strict=True)]
    if not names:
        raise ValueError(f"{path}: holds no class; a line is a number and a name, “1 ApplyEyeMakeup”")
    seen: dict[str, Line] = {}
    for name, line in zip(names, lines, strict=True):
        if seen.setdefault(same(name), line) is not line:
            raise ValueError(
                f"{line}: class {name!r} stands in line {seen[same(name)].number}, too; remove one of them"
            )
    return Classes(path, names, numbers if numbered else list(range(1, len(names) + 1)))


def read_clips(path: Path, classes: Classes, is_file: Callable[[str], bool]) -> list[ListedClip]:
    """The clips of a list.

    Args:
        path: the list.
        classes: the classes that it may name.
        is_file: whether there is a clip of that name: tells a label from a name that ends in a number.

    Raises:
        FileNotFoundError: no such list.
        ValueError: a line that is no clip, of a class that is unknown, or with a label that is not the class's; names
            file and line.
    """
    number_of = {same(name): number for name, number in zip(classes.names, classes.numbers, strict=True)}
    clips, labels = [], []
    for line in _lines(path):
        file, label = _split_label(line.text.replace("\\", "/").removeprefix("./"), is_file)
        class_name, slash, rest = file.partition("/")
        if not (class_name and slash and rest) or "/" in rest:
            raise ValueError(f"{line}: {line.text!r} is no clip; a line is “Class/file.avi”, with or without a label")
        if same(class_name) not in number_of:
            raise ValueError(f"{line}: class {class_name!r} is not in {classes.path}{near(class_name, classes.names)}")
        clips.append(ListedClip(stem(file), file, line))
        labels.append((label, number_of[same(class_name)]))
    _check_labels(clips, labels, classes)
    return clips


def refuse_repeated(lists: Mapping[str, Sequence[ListedClip]], most: int) -> None:
    """Refuse a clip that stands in two lists, or twice in one: what is tested on would be trained on, or count twice.

    Raises:
        ValueError: names `most` of such clips, with their lines.
    """
    first: dict[str, ListedClip] = {}
    repeated = []
    for clips in lists.values():
        for clip in clips:
            before = first.setdefault(same(clip.name), clip)
            if before is not clip:
                repeated.append(
                    f"{clip.name}: {before.line.path.name} line {before.line.number} and {clip.line.path.name} line "
                    f"{clip.line.number}"
                )
    if repeated:
        raise ValueError(
            f"{clips[0].line.path.parent}: {len(repeated)} clips are listed twice, so that the classifier is tested on "
            f"what it was trained on, or a clip counts double:\n  {named(repeated, most, separator=chr(10) + '  ')}\n"
            "Remove all lines but one of each"
        )


def near(name: str, names: Sequence[str]) -> str:
    """`; near: Archery`, for a name that is not among them; nothing where none is alike."""
    found = difflib.get_close_matches(name, names, n=3)
    return f"; near: {', '.join(found)}" if found else ""


def named(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = [f"… and {len(names) - most} more"] if len(names) > most else []
    return separator.join([*names[:most], *more])


def _split_label(text: str, is_file: Callable[[str], bool]) -> tuple[str, int | None]:
    """File and label: a label stands at the right end, after white space."""
    match = re.fullmatch(r"(.*\S)\s+(\d+)", text)
    if match is None or stem(text) != text:
        return text, None
    if stem(match[1]) == match[1] and is_file(text):
        return text, None  # “Left/clip 1” without a suffix
    return match[1], int(match[2])


def _check_labels(clips: list[ListedClip], labels: list[tuple[int | None, int]], classes: Classes) -> None:
    """All labels count as the class list does, or all from 0."""
    lowest = min(classes.numbers)
    wrong = [
        [index for index, (label, number) in enumerate(labels) if label not in (None, number - offset)]
        for offset in (0, lowest)
    ]
    if all(wrong):
        index = min(wrong, key=len)[0]
        label, number = labels[index]
        raise ValueError(
            f"{clips[index].line}: label {label}, but {classes.path} gives the class of {clips[index].name!r} the "
            f"number {number}; correct the one or the other"
        )


def _lines(path: Path) -> list[Line]:
    """All lines with something in them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; it is part of UCF101TrainTestSplits-RecognitionTask.zip")
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} line {number}: is no {encoding} text (byte {data[error.start]:#04x}); save the list as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} line {text[: text.index(chr(0))].count(chr(10)) + 1}: holds a zero byte; save the list as UTF-8"
        )
    lines = (Line(path, number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [line for line in lines if line.text]
