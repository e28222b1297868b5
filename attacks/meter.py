"""What the parts of a sweep cost: seconds of the wall, frame pairs estimated and differentiated."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from attacks.attack_result import AttackResult
from attacks.records import Cost


class Meter:
    """What the parts of a sweep cost, on the device of these frames."""

    def __init__(self, frames: Tensor) -> None:
        self._cuda = frames.device if frames.is_cuda else None
        self._seconds: dict[str, float] = defaultdict(float)
        self.pair_forwards: Counter[str] = Counter()
        self.pair_backwards: Counter[str] = Counter()

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        self._seconds[what] += time.perf_counter() - start

    def count(self, what: str, result: AttackResult) -> None:
        self.pair_forwards[what] += int(result.pair_forwards.sum())
        self.pair_backwards[what] += int(result.pair_backwards.sum())

    @property
    def costs(self) -> dict[str, Cost]:
        return {
            what: Cost(seconds, self.pair_forwards[what], self.pair_backwards[what])
            for what, seconds in self._seconds.items()
        }
