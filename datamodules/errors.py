"""Errors as one message: what our own code raises, also in another process, and what the system or W&B says.

What other packages raise keeps its traceback: no message of theirs tells a user what to do.
"""

import ast
import builtins
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

OUR_PACKAGES = ("lightning_modules", "datamodules", "attacks")
_ROOT = Path(__file__).resolve().parents[1]

# How a DataLoader's worker, a process of ddp_fork, and a process pool hand on what went wrong in them.
_CARRIED = re.compile(r'\s*(Caught \w+ in [^\n]*\nOriginal |-- Process \d+ terminated [^\n]*\n|"""\n)Traceback ')
_TRACEBACK = "Traceback (most recent call last):\n"
_CAUSES = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+), in .*\n(?:    (?P<code>.*))?')
_WORKER_DIED = re.compile(r"DataLoader worker \(pid")


class Raised(NamedTuple):
    """An error as a traceback shows it."""

    kind: str
    """class, with its module"""
    text: str
    file: str
    line: int
    code: str
    """the source line that raised it"""


@contextmanager
def ended_by_one_message() -> Iterator[None]:
    """A command: what a user can mend ends it as one message, unless FLOWFOOL_TRACEBACK=1."""
    try:
        yield
    except Exception as error:
        message = None if os.environ.get("FLOWFOOL_TRACEBACK") == "1" else one_message(error)
        if message is None:
            raise
        sys.exit(message)


def one_message(error: BaseException) -> str | None:
    """What to print of an error instead of its traceback; None where the traceback must be seen.

    An error that our code did not mean to raise is a defect: its traceback goes into a file.
    """
    chain = list(_chain(error))
    for raised in filter(_tells, chain):
        return f"\nError: {raised.text}\n(FLOWFOOL_TRACEBACK=1 shows where it came from)"
    for raised in chain:
        if _WORKER_DIED.match(raised.text):
            return f"\nError: {raised.text.strip()}: lower num_workers, or give the machine more (shared) memory"
        if _is_ours(raised):
            place = f"{Path(raised.file).resolve().relative_to(_ROOT)}, line {raised.line}"
            kind = raised.kind.rpartition(".")[2]
            return f"\nError: {kind}: {raised.text} ({place})\n(a defect; its traceback is in {_kept(error)})"
    return None


def _tells(raised: Raised) -> bool:
    """Whether the message alone helps: what the system, the Trainer or W&B say, and what our own code refuses."""
    package, name = raised.kind.partition(".")[0], raised.kind.rpartition(".")[2]
    if package in ("wandb", *OUR_PACKAGES) or name == "MisconfigurationException":
        return True
    system = getattr(builtins, raised.kind, None)
    if isinstance(system, type) and issubclass(system, OSError):
        return True
    return _is_ours(raised) and raised.code.startswith("raise ")


def _is_ours(raised: Raised) -> bool:
    file = Path(raised.file).resolve()
    return any(file.is_relative_to(_ROOT / package) for package in OUR_PACKAGES)


def _chain(error: BaseException | None) -> Iterator[Raised]:
    """An error and what it was raised from: jsonargparse wraps those of constructors in its own."""
    while error is not None:
        text = str(error)
        if _CARRIED.match(text):
            yield from _parse(text)
        else:
            yield _raised(error, text)
        error = error.__cause__


def _raised(error: BaseException, text: str) -> Raised:
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # a KeyError's own text is quoted
    of = OSError if isinstance(error, OSError) else type(error)
    kind = of.__name__ if of.__module__ == "builtins" else f"{of.__module__}.{of.__name__}"
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else traceback.FrameSummary("", 0, "", line="")
    return Raised(kind, text, last.filename, last.lineno or 0, last.line or "")


def _parse(text: str) -> Iterator[Raised]:
    """The errors of a traceback in words, the last one first, as `_chain` gives them."""
    for part in reversed(text.rpartition(_CONTEXT)[2].split(_CAUSES)):
        frames, kind, message = _split(part.partition(_TRACEBACK)[2].strip("\n").removesuffix('"""'))
        found = list(_FRAME.finditer(frames))
        if found:
            last = found[-1]
            if kind == "KeyError" and message[:1] in ("'", '"'):
                message = str(ast.literal_eval(message))
            yield Raised(kind, message, last["file"], int(last["line"]), (last["code"] or "").strip())


def _split(block: str) -> tuple[str, str, str]:
    """Frames, which are indented; the class; the message, which may have several lines."""
    lines = block.split("\n")
    count = next((k for k, line in enumerate(lines) if line and not line.startswith("  ")), len(lines))
    kind, _, message = "\n".join(lines[count:]).strip().partition(": ")
    return "\n".join(lines[:count]) + "\n", kind, message


def _kept(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="flowfool-", suffix=".txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return file.name
