"""Timing of alternatives in turns, so that what the machine does besides slows all of them alike."""

import statistics
import time
from collections.abc import Callable

import torch


def side_by_side(
    alternatives: dict[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each alternative in each round; every round runs all of them once, one after the other."""
    for run in alternatives.values():
        for _ in range(warm_up):
            _timed(run)
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            seconds[name].append(_timed(run))
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Median over the rounds of slower / faster."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def _timed(run: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
