"""How far a sweep is and how long it still takes, in stacks: what it costs goes by stacks, not by videos.

A video's stacks are known once it is decoded, so their total, and with it the time left, is an estimate until the end.
"""


class Progress:
    """One process's part of a sweep.

    Args:
        videos: that this process goes through.
        found: those among them that an earlier run has finished.
    """

    def __init__(self, videos: int, found: int = 0) -> None:
        self._videos_left, self._found_left = videos, found
        self._videos = self._stacks = self._attacked = 0
        self._seconds = 0.0

    def add(self, stacks: int, seconds: float | None) -> None:
        """One more video is done: attacked in so many seconds of the wall, or found done (None)."""
        self._videos_left -= 1
        self._videos += 1
        self._stacks += stacks
        if seconds is None:
            self._found_left -= 1
        else:
            self._attacked += stacks
            self._seconds += seconds

    @property
    def seconds_left(self) -> float | None:
        """At the mean speed so far, for videos of the mean length so far; None before the first attack."""
        if not self._attacked:
            return None
        videos = max(0, self._videos_left - max(0, self._found_left))
        return videos * self._stacks / self._videos * self._seconds / self._attacked

    def __str__(self) -> str:
        if not self._videos:
            return "Attacking stacks"
        total = self._stacks + round(self._videos_left * self._stacks / self._videos)
        text = f"Attacking stacks: {self._stacks} of {'about ' if self._videos_left else ''}{total}"
        left = self.seconds_left
        return text if left is None or not self._videos_left else f"{text}, {_spoken(left)} left"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
