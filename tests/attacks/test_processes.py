"""Two processes, one of which takes longer, fails or leaves."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from attacks.processes import Processes


def work(rank: int, what: str, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    processes = Processes()
    processes.connect()
    processes.wait()
    started = time.monotonic()
    said = "nothing"
    try:
        if what == "late" and rank == 0:
            time.sleep(3)
        if what == "leaves" and rank == 0:
            processes.leave()
            time.sleep(8)  # and lives on
        elif what == "fails":
            processes.in_first(lambda: fail(folder))
        else:
            processes.wait()
    except (OSError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    (folder / f"{rank}").write_text(f"{time.monotonic() - started:.1f} {said}")


def fail(folder: Path) -> None:
    (folder / "worked").write_text((folder / "worked").read_text() + "x" if (folder / "worked").exists() else "x")
    raise OSError("no space left")


@pytest.fixture
def said(request: pytest.FixtureRequest, tmp_path: Path) -> list[tuple[float, str]]:
    """Of each process, after how long and with what it ended."""
    mp.spawn(work, (request.param, tmp_path), nprocs=2)
    found = [(tmp_path / str(rank)).read_text().partition(" ") for rank in range(2)]
    return [(float(seconds), error) for seconds, _, error in found]


@pytest.mark.parametrize("said", ["late"], indirect=True)
def test_one_waits_for_the_other(said: list[tuple[float, str]]) -> None:
    assert [error for _, error in said] == ["nothing", "nothing"]
    assert said[1][0] > 2.5


@pytest.mark.parametrize("said", ["fails"], indirect=True)
def test_the_first_ones_error_ends_all(said: list[tuple[float, str]], tmp_path: Path) -> None:
    assert said[0][1] == "OSError: no space left"
    assert said[1][1] == "RuntimeError: the first process failed, and this one ends with it: OSError: no space left"
    assert (tmp_path / "worked").read_text() == "x"  # by one of them


@pytest.mark.parametrize("said", ["leaves"], indirect=True)
def test_nobody_waits_for_one_that_left(said: list[tuple[float, str]]) -> None:
    assert said[1][0] < 4 and said[1][1].startswith("RuntimeError")


def test_a_process_alone_does_not_wait() -> None:
    processes, done = Processes(), list[int]()
    processes.connect()
    processes.wait()
    processes.in_first(lambda: done.append(1))
    processes.leave()
    assert done == [1]
