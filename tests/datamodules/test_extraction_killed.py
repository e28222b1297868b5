"""Extraction as `make` starts it, on files: killed at any moment, in shards, as two nodes; and its bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.flow_extraction import extract
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101
from lightning_modules.flow.farneback import Farneback
from lightning_modules.flow.tvl1 import TVL1

CONFIGS = Path(__file__).parents[2] / "configs"
MOMENTS = 30


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(tree: Path, store: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    arguments = [
        *(sys.executable, "-m", "datamodules", "extract"),
        *(
            "--dataset",
            str(CONFIGS / "paper" / "dataset.yaml"),
            "--estimator",
            str(CONFIGS / "flow" / "farneback.yaml"),
        ),
        *("--store", str(store), *options),
    ]
    return arguments, {**os.environ, "UCF101": str(tree)}


def start(tree: Path, store: Path, *options: str, **environment: str) -> subprocess.Popen:
    arguments, inherited = command(tree, store, *options)
    return subprocess.Popen(
        arguments,
        env={**inherited, **environment},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def clips_in(store: Path) -> dict[str, int]:
    """What is finished, with when it was."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("*/[!.]*.zip")}


def members(session: int) -> list[int]:
    """The processes of a session that are alive."""
    fields = [
        path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()
    ]
    return [int(state[3]) for state in fields if int(state[3]) == session and state[0] != "Z"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_the_store_is_that_of_an_uninterrupted_run(small_tree, tmp_path, workers):
    """SIGKILL to the job and all its processes, 30 times; then to the end. Nothing that was finished is made again."""
    assert start(small_tree, tmp_path / "whole", "--workers=1").wait() == 0
    random.seed(workers)
    began = time.monotonic()
    process = start(small_tree, tmp_path / "measured", f"--workers={workers}")
    assert process.wait() == 0
    lasts = time.monotonic() - began
    store, finished = tmp_path / "store", {}
    unfinished = 0
    for _ in range(MOMENTS):
        process = start(small_tree, store, f"--workers={workers}")
        time.sleep(random.uniform(0, lasts))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = clips_in(store)
        assert finished.items() <= found.items()  # nothing twice
        finished = found
        unfinished += len(finished) < 9
        if len(finished) == 9:  # the moments are to fall into the work
            for path in random.sample(sorted(store.glob("*/*.zip")), 6):
                path.unlink()
                del finished[path.name]
    assert unfinished > MOMENTS / 3
    assert start(small_tree, store, f"--workers={workers}").wait() == 0
    assert contents(store) == contents(tmp_path / "whole")
    assert not list(store.glob("*/.*"))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_extraction(small_tree, tmp_path):
    process = start(small_tree, tmp_path, "--workers=2")
    wait_for(lambda: len(clips_in(tmp_path)) > 0)
    assert len(members(process.pid)) > 2  # both workers, beside it
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not members(process.pid))


@pytest.mark.slow
def test_two_nodes_and_two_shards_give_the_store_of_one_process(small_tree, tmp_path):
    """Started together, as a launcher does: by the Trainer's variables, and by --shard."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    runs = [start(small_tree, tmp_path / "whole", "--workers=1")]
    runs += [start(small_tree, tmp_path / "nodes", "--workers=1", **address, NODE_RANK=str(rank)) for rank in (0, 1)]
    runs += [start(small_tree, tmp_path / "shards", "--workers=1", f"--shard={index}/2") for index in (0, 1)]
    assert [run.wait() for run in runs] == [0] * 5
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "nodes") == whole and contents(tmp_path / "shards") == whole and len(whole) == 10


@pytest.mark.parametrize("algorithm", ["tvl1", "farneback"])
def test_every_byte_is_that_of_ten_lines_over_cv2(ucf101_root, tmp_path, algorithm):
    """On real clips, at an odd size; for TV-L1 the first frames only."""
    estimator = TVL1() if algorithm == "tvl1" else Farneback()
    options = {
        "classes": ["JumpRope", "PullUps"],
        "frame_size": (60, 82),
        "max_frames": 5 if algorithm == "tvl1" else 20,
    }
    dataset = UCF101(ucf101_root, allow_missing=True, **options)
    clips = dataset.clips("test")[::4]
    store = FlowStore(tmp_path, store_manifest(estimator.settings, dataset.frame_settings), "loose")
    store.open_for_writing()
    dataset.available = lambda: (clips, [])
    assert extract(dataset, estimator, store, workers=1, shard=(0, 1)) == []
    for clip in clips:
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in dataset.decode(clip)]
        for number, (first, second) in enumerate(pairwise(gray), 1):
            if algorithm == "tvl1":
                flow = cv2.optflow.DualTVL1OpticalFlow_create().calc(first, second, None)
            else:
                flow = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            planes = np.rint((np.clip(flow, -20, 20) + 20) * (255 / 40)).astype(np.uint8)
            for axis, name in enumerate("xy"):
                path = tmp_path / clip.name / f"flow_{name}_{number:05d}.png"
                assert path.read_bytes() == cv2.imencode(".png", planes[..., axis])[1].tobytes()
        assert not (tmp_path / clip.name / f"flow_x_{len(gray):05d}.png").exists()
