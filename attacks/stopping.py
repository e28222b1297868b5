"""Threads that attack side by side: when one of them fails, the others end at their next pass of a system."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

_asked: ContextVar[Event | None] = ContextVar("asked to stop", default=None)


class Stopped(Exception):
    """This thread was asked to stop. The error of the thread that failed is the one to raise."""


@contextmanager
def stopped_by(event: Event) -> Iterator[None]:
    """Within the block, `go_on` of this thread raises once the event is set."""
    token = _asked.set(event)
    try:
        yield
    finally:
        _asked.reset(token)


def go_on() -> None:
    """Raise Stopped where this thread was asked to stop. Called before each pass of a system."""
    event = _asked.get()
    if event is not None and event.is_set():
        raise Stopped
