"""Flow estimates with the graphs that lead back to their frames, and how to have such a graph without estimating again.

A refreshed gradient needs graphs of pairs that were estimated before, among others than then. So not the graphs are
retained, which autograd walks whole, but what the system's convolutions gave for each pair: from those any pairs make
a graph together, in which only what lies between the convolutions is computed again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTION = torch.ops.aten.convolution.default
"""All kinds: transposed, grouped, of one to three dimensions."""

TOLERANCE = 1e-3
"""Of flow that is made from retained convolutions, in pixels and relative. It is the same flow, bit for bit or but for
the rounding of what is computed again in another batch; a system that cannot be retained is further off."""

Estimate = Callable[[Tensor, Tensor], Tensor]
"""Frames (n, 3, H, W) and their successors to flow (n, 2, H, W)."""


class PairGraph:
    """Flow (n, 2, H, W) of n frame pairs, and the graph that leads back to their frames (n, 3, H, W) each."""

    def __init__(self, estimate: Estimate, first: Tensor, second: Tensor) -> None:
        with torch.enable_grad():
            self.frames = first.detach().requires_grad_(), second.detach().requires_grad_()
            self.flow = estimate(*self.frames)


class RetainedPairs:
    """What a system's convolutions gave for at most `most` frame pairs. A pair goes by a key, an integer from 0 on;
    keys lie on `device`.

    A convolution is retained if the first dimension of its output is that of the pairs; others are computed again, as
    is everything else. Of a system without convolutions nothing is retained.
    """

    def __init__(self, most: int, device: torch.device | str = "cpu") -> None:
        self.most = most
        self._outputs: list[Tensor | None] = []
        """(most, …) of each convolution in the order of their calls; a row is a pair's"""
        self._flow: Tensor | None = None
        # Of the rows; -1 is the key of a free one.
        with torch.inference_mode(False):  # they are written to outside of it
            self._keys = torch.full((most,), -1, device=device)
            self._age = torch.zeros(most, dtype=torch.int64, device=device)
        self._estimates = 0

    def estimate(self, estimate: Estimate, first: Tensor, second: Tensor, keys: Tensor) -> Tensor:
        """Flow of pairs, some of which are retained: those with keys (n,) from 0 on, in place of the oldest."""
        pairs = (keys >= 0).nonzero().flatten()[: self.most]
        rows = torch.where(self._keys < 0, -1, self._age).argsort(stable=True)[: len(pairs)]
        self._keys[rows] = -1
        with Recording(self._outputs, self.most, pairs, rows, len(keys)):
            flow = estimate(first, second)
        if any(output is not None for output in self._outputs):
            if self._flow is None:
                self._flow = flow.new_empty((self.most, *flow.shape[1:]), requires_grad=False)
            self._flow[rows] = flow.detach()[pairs]
            self._keys[rows] = keys[pairs]
            self._estimates += 1
            self._age[rows] = self._estimates
        return flow

    def has(self, keys: Tensor) -> Tensor:
        """Which of the keys (n,) are those of retained pairs, (n,) bool."""
        return torch.isin(keys, self._keys)

    def drop_all_but(self, keys: Tensor) -> None:
        """Free the rows of pairs that are not among the keys (n,)."""
        self._keys[~torch.isin(self._keys, keys)] = -1

    def clear(self) -> None:
        """Free all rows and their memory."""
        self._outputs.clear()
        self._flow = None
        self._keys.fill_(-1)

    def graph(self, estimate: Estimate, first: Tensor, second: Tensor, keys: Tensor) -> PairGraph:
        """The graph of retained pairs, with the flow that they had.

        Raises:
            ValueError: it is not that flow: what the system computes for a pair depends on its batch, or on chance.
        """
        assert self._flow is not None
        order = self._keys.argsort()
        rows = order[torch.searchsorted(self._keys[order], keys)]
        with Replay(self._outputs, rows):
            graph = PairGraph(estimate, first, second)
        had = self._flow[rows]
        if not torch.allclose(graph.flow, had, TOLERANCE, TOLERANCE, equal_nan=True):
            raise ValueError(
                f"flow made anew from retained convolutions is up to {(graph.flow - had).abs().max().item():.3g} px "
                "from what it was: the estimator does not treat every pair alike, whatever the others; attack it with "
                "retained_pairs=0"
            )
        return graph


class Recording(TorchDispatchMode):
    """Copies the outputs of convolutions, those of `pairs` into `rows`: a system may go on to change them in place."""

    def __init__(self, outputs: list[Tensor | None], most: int, pairs: Tensor, rows: Tensor, batch: int) -> None:
        super().__init__()
        self.outputs, self.most, self.pairs, self.rows, self.batch = outputs, most, pairs, rows, batch
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is CONVOLUTION:
            self._record(output)
            self.calls += 1
        return output

    def _record(self, output: Tensor) -> None:
        of_pairs = len(output) == self.batch
        if self.calls == len(self.outputs):
            self.outputs.append(_table(output, self.most) if of_pairs else None)
        kept = self.outputs[self.calls]
        if kept is None or not of_pairs or output.shape[1:] != kept.shape[1:]:
            self.outputs[self.calls] = None  # not in every batch, even if in this one
        else:
            kept[self.rows] = output if len(self.pairs) == self.batch else output[self.pairs]


def _table(output: Tensor, rows: int) -> Tensor:
    """With rows of the output's shape and layout: in another than a kernel chose, the gradient's are slower."""
    row = output[0]
    return output.new_empty_strided((rows, *row.shape), (row.numel(), *row.stride()))


class Replay(TorchDispatchMode):
    """Gives `rows` of the outputs in place of the convolutions; autograd, above, makes its graph as ever."""

    def __init__(self, outputs: list[Tensor | None], rows: Tensor) -> None:
        super().__init__()
        self.outputs, self.rows = outputs, rows
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is CONVOLUTION:
            self.calls += 1
            if self.calls <= len(self.outputs) and (output := self.outputs[self.calls - 1]) is not None:
                return output[self.rows]
        return func(*args, **(kwargs or {}))
