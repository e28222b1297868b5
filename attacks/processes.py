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
    """This process and the others; alone until it is connected."""

    def __init__(self) -> None:
        self._group: Any = None

    def connect(self) -> None:
        """Called by all processes at the same time, once torch.distributed is set up; a single one stays alone."""
        if self._group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Gloo, whatever the default group is: NCCL's waits keep a GPU busy, and do not notice a process that dies.
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def leave(self) -> None:
        """Close the connection, which ends the wait of the others with an error: for a process that has failed, and
        may live on (in a notebook)."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

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
