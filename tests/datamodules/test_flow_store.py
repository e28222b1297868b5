import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodules import flow_codec
from datamodules.flow_precompute import estimate_clip, precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101


def store_for(folder: Path, dataset: UCF101, estimator) -> FlowStore:
    return FlowStore(folder, store_manifest(estimator.settings, dataset.frame_settings))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_adjacent_pair_is_stored_by_the_codec(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator)
    clips = dataset.clips("train")
    assert precompute(dataset, clips, estimator, store, workers=1) == len(clips)
    frames = dataset.decode(clips[3])
    flow = estimate_clip(frames, estimator)
    assert store.n_flow(clips[3]) == len(frames) - 1 == len(flow)
    assert np.array_equal(store.read(clips[3], 0, len(flow)), flow_codec.decode(flow_codec.encode(flow)))
    assert np.array_equal(store.read(clips[3], 4, 3), store.read(clips[3], 0, len(flow))[4:7])
    assert precompute(dataset, clips, estimator, store) == 0


def test_long_clips_are_estimated_in_parts_with_no_pair_lost(difference):
    frames = np.random.default_rng(0).integers(0, 256, (70, 8, 9, 3), dtype=np.uint8)
    flow = estimate_clip(frames, difference())
    expected = np.diff(frames[..., :2].astype(np.float32) / 255, axis=0) * 8
    assert np.allclose(flow, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_a_store_made_with_other_settings_is_refused(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    precompute(
        dataset, dataset.clips("test")[:1], estimator, store_for(tmp_path / "store", dataset, estimator), workers=1
    )
    with pytest.raises(ValueError, match=r"estimator\.factor: 8\.0 there, 3\.0 asked for"):
        store_for(tmp_path / "store", dataset, difference(3.0)).check()
    other = UCF101(small_tree, frame_rate=6.0)
    with pytest.raises(ValueError, match=r"frames\.frame_rate: 12\.0 there, 6\.0 asked for"):
        precompute(other, other.clips("test"), estimator, store_for(tmp_path / "store", other, estimator))


def test_a_store_that_is_not_there_or_lacks_a_clip_says_so(small_tree, tmp_path, difference):
    dataset = UCF101(small_tree)
    store = store_for(tmp_path / "store", dataset, difference())
    with pytest.raises(FileNotFoundError, match="no flow store here"):
        store.check()
    with pytest.raises(FileNotFoundError, match="holds no flow of Archery/v_Archery_g01_c01"):
        store.n_flow(dataset.clips("test")[0])


def test_bad_clips_are_named_and_stop_only_themselves(small_tree, tmp_path, difference, video_writer, texture):
    dataset, estimator = UCF101(small_tree), difference()
    clips = dataset.clips("train")
    clips[1].path.write_bytes(clips[1].path.read_bytes()[:500])
    video_writer(clips[2].path, texture(0, count=1))
    clips[4].path.unlink()
    store = store_for(tmp_path / "store", dataset, estimator)
    with pytest.raises(ValueError, match="3 of 6 clips gave no flow") as error:
        precompute(dataset, clips, estimator, store, workers=2)
    assert all(str(clips[k].path) in str(error.value) for k in (1, 2, 4))
    assert [store.has(clip) for clip in clips] == [True, False, False, True, False, True]


def test_a_damaged_plane_is_named(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    clip = dataset.clips("test")[0]
    store = store_for(tmp_path / "store", dataset, estimator)
    precompute(dataset, [clip], estimator, store, workers=1)
    plane = tmp_path / "store" / clip.name / "flow_y_00003.png"
    plane.write_bytes(plane.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"flow_y_00003\.png: not a gray-scale"):
        store.read(clip, 0, 5)


KILLED = """
import importlib.util, sys, time
from pathlib import Path
from datamodules.flow_precompute import precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101
spec = importlib.util.spec_from_file_location("difference", sys.argv[3])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

class Slow(module.Difference):
    differentiable = True  # stays in this process
    def forward(self, frames):
        time.sleep(0.05)
        return super().forward(frames)

dataset, estimator = UCF101(Path(sys.argv[1])), Slow()
clips = dataset.clips("train") + dataset.clips("test")
store = FlowStore(Path(sys.argv[2]), store_manifest(estimator.settings, dataset.frame_settings))
precompute(dataset, clips, estimator, store)
"""


def test_a_killed_precompute_goes_on_to_the_same_bytes(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    clips = dataset.clips("train") + dataset.clips("test")
    precompute(dataset, clips, estimator, store_for(tmp_path / "whole", dataset, estimator), workers=1)

    folder = tmp_path / "killed"
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", KILLED, str(small_tree), str(folder), str(conftest)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*/*/clip.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(folder.glob("*/*/clip.json")))
    assert 3 <= done < len(clips)
    (folder / "Archery" / ".v_Archery_g09_c01.1.part").mkdir()  # what a kill within a clip leaves
    assert precompute(dataset, clips, estimator, store_for(folder, dataset, estimator), workers=2) == len(clips) - done
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list(folder.glob("*/.*"))
