"""The processes of one run: they wait for each other as long as it takes, and fail together.

A collective of the default group gives up after its timeout, half an hour unless it is set, and one process may have
hours more to attack than another. A process that dies closes its connection, which ends the wait of all others.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(days=365)


class Processes:
    """Made in all processes at the same time, once torch.distributed is set up; of a single process it does nothing."""

    def __init__(self) -> None:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        # Gloo, whatever the default group is: NCCL's waits keep a GPU busy, and do not notice a process that dies.
        self._group: Any = None if alone else dist.new_group(backend="gloo", timeout=PATIENCE)

    def wait(self) -> None:
        """Until all processes are here."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def in_first(self, work: Callable[[], None]) -> None:
        """Do something in the first process alone, while the others wait.

        Raises:
            RuntimeError: in the others, with its message, where it failed; the first one raises what it was.
        """
        if self._group is None:
            return work()
        said: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                work()
            except BaseException as error:
                said = [f"{type(error).__name__}: {error}"]
                raise
            finally:
                dist.broadcast_object_list(said, src=0, group=self._group)
        else:
            dist.broadcast_object_list(said, src=0, group=self._group)
            if said[0] is not None:
                raise RuntimeError(f"the first process failed, and this one ends with it: {said[0]}")
