"""Flow estimates with their graphs, retained from one refreshed gradient to the next: a choice of memory for time.

Pairs that were estimated together have one graph, and autograd walks it whole: what nobody needs of it is walked, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RETAINED_TOGETHER = 2
"""Pairs in a graph that is retained: the two of a perturbed frame are mostly needed together. More would be faster on
small frames, and save fewer estimates."""


class PairGraph:
    """Flow (n, 2, H, W) of n frame pairs, and the graph that leads back to their frames (n, 3, H, W) each."""

    def __init__(self, estimate: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> None:
        with torch.enable_grad():
            self.frames = first.detach().requires_grad_(), second.detach().requires_grad_()
            self.flow = estimate(*self.frames)

    def __len__(self) -> int:
        return len(self.flow)


class Needed(NamedTuple):
    """What a gradient needs of one graph."""

    graph: PairGraph
    place: Tensor
    """(m,) which of its pairs"""
    which: Tensor
    """(m,) of the estimates that the gradient needs"""


class RetainedGraphs:
    """The graphs of the latest estimates, at most `most` pairs. An estimate goes by a key, an integer."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: list[tuple[Tensor, PairGraph]] = []  # the oldest first

    def keep(self, keys: Tensor, graph: PairGraph) -> None:
        """Retain a graph with the keys (n,) of its pairs; the oldest make room."""
        self._kept.append((keys, graph))
        pairs = sum(len(graph) for _, graph in self._kept)
        while pairs > self.most:
            pairs -= len(self._kept.pop(0)[1])

    def worth_walking(self, keys: Tensor, times: Tensor) -> list[Needed]:
        """The graphs whose walks cost no more than the estimates that they save; the others are let go.

        A pair's estimate counts as much as a walk back through it. What a gradient does not need is not kept for later
        ones: where the order is by saliency they do not need it either, as frames once used stay used.

        Args:
            keys: (n,) increasing, of the estimates that a gradient needs.
            times: (n,) how often it walks back through each.
        """
        worth, kept = [], []
        for of_graph, graph in self._kept:
            which = torch.searchsorted(keys, of_graph).clamp(max=len(keys) - 1)
            place = (keys[which] == of_graph).nonzero().flatten()
            which = which[place]
            saved = len(place)
            wasted = len(graph) * int(times[which].max()) - int(times[which].sum()) if saved else 0
            if saved and wasted <= saved:
                worth.append(Needed(graph, place, which))
                kept.append((of_graph, graph))
        self._kept = kept
        return worth
