import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from datamodules import flow_codec
from datamodules.flow_extraction import extract, repair, shard_of, verify
from datamodules.flow_precompute import estimate_clip, precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip


def store_for(folder: Path, dataset: UCF101, estimator, layout=None) -> FlowStore:
    return FlowStore(folder, store_manifest(estimator.settings, dataset.frame_settings), layout)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_by(folder: Path, **versions: str) -> None:
    """Let a store's manifest say that other versions of libraries made it."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "libraries": {**content["libraries"], **versions}}))


@pytest.fixture(params=["archive", "loose"])
def layout(request) -> str:
    return request.param


def test_every_adjacent_pair_is_stored_by_the_codec(small_tree, tmp_path, difference, layout):
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator, layout)
    clips = dataset.clips("train")
    assert precompute(dataset, clips, estimator, store, workers=1) == len(clips)
    frames = dataset.decode(clips[3])
    flow = estimate_clip(frames, estimator)
    assert store.n_flow(clips[3]) == len(frames) - 1 == len(flow)
    assert np.array_equal(store.read(clips[3], 0, len(flow)), flow_codec.decode(flow_codec.encode(flow)))
    assert np.array_equal(store.read(clips[3], 4, 3), store.read(clips[3], 0, len(flow))[4:7])
    assert precompute(dataset, clips, estimator, store) == 0
    assert precompute(dataset, clips, estimator, store_for(tmp_path / "store", dataset, estimator)) == 0
    with pytest.raises(FileNotFoundError, match=r"v_Archery|flow_x_0000"):
        store.read(clips[0], len(flow) - 2, 3)


def test_both_layouts_hold_the_same_bytes_and_every_tool_reads_them(small_tree, tmp_path, difference):
    """An archive is a ZIP file of the files that the loose layout has; OpenCV reads the planes."""
    dataset, estimator = UCF101(small_tree), difference()
    clip = dataset.clips("train")[0]
    for kind in ("archive", "loose"):
        precompute(dataset, [clip], estimator, store_for(tmp_path / kind, dataset, estimator, kind), workers=1)
    with zipfile.ZipFile(tmp_path / "archive" / f"{clip.name}.zip") as archive:
        assert archive.testzip() is None
        zipped = {name: archive.read(name) for name in archive.namelist()}
    assert zipped == contents(tmp_path / "loose" / clip.name)
    flow = np.stack([flow_codec.encode(f) for f in estimate_clip(dataset.decode(clip), estimator)])
    loose = tmp_path / "loose" / clip.name
    for number in range(1, len(flow) + 1):
        for axis, plane in zip("xy", flow[number - 1], strict=True):
            image = cv2.imread(str(loose / f"flow_{axis}_{number:05d}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(image, plane)
    record = json.loads(zipped["clip.json"])
    assert (record["n_frames"], record["n_flow"], record["size"]) == (len(flow) + 1, len(flow), [48, 64])
    assert record["source"]["sha256"] == hashlib.sha256(clip.path.read_bytes()).hexdigest()
    assert record["source"]["bytes"] == clip.path.stat().st_size


def test_long_clips_are_estimated_in_parts_with_no_pair_lost(difference):
    frames = np.random.default_rng(0).integers(0, 256, (70, 8, 9, 3), dtype=np.uint8)
    flow = estimate_clip(frames, difference())
    expected = np.diff(frames[..., :2].astype(np.float32) / 255, axis=0) * 8
    assert np.allclose(flow, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_an_estimator_that_sees_images_is_given_them_as_they_are():
    class OfImages(nn.Module):
        def flow_of_images(self, images):
            return images[1:, ..., :2].transpose(0, 3, 1, 2).astype(np.float32)

    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)
    assert (estimate_clip(frames, OfImages()) == frames[1:, ..., :2].transpose(0, 3, 1, 2)).all()
    with pytest.raises(ValueError, match="1 frame: flow needs two"):
        estimate_clip(frames[:1], OfImages())


class Precision(nn.Module):
    """Its flow tells how precise float32 is in the process that estimates: u of products, v of convolutions."""

    differentiable = True
    settings: ClassVar[dict] = {"algorithm": "precision"}

    def forward(self, frames):
        exact = [torch.get_float32_matmul_precision() == "highest", not torch.backends.cudnn.allow_tf32]
        return 10 * torch.tensor(exact).float().view(2, 1, 1).expand_as(frames[:, 1:, :2])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_stored_flow_is_as_precise_as_products_are_in_every_process(
    small_tree, tmp_path, monkeypatch, precision, workers
):
    """cuDNN's own default is TF32, and a spawned worker has torch's defaults."""
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "highest")
    torch.set_float32_matmul_precision(precision)
    try:
        dataset, estimator = UCF101(small_tree), Precision()
        store = store_for(tmp_path / "store", dataset, estimator)
        precompute(dataset, dataset.clips("test"), estimator, store, workers=workers)
        assert torch.backends.cudnn.allow_tf32 is (precision == "highest")  # as it was
    finally:
        torch.set_float32_matmul_precision(before)
    for clip in dataset.clips("test"):
        flow = store.read(clip, 0, 1)
        assert (flow > 5).all() if precision == "highest" else (flow < 5).all()


@pytest.mark.parametrize("workers", [0, -1])
def test_an_impossible_number_of_workers_is_named(small_tree, tmp_path, difference, workers):
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator)
    with pytest.raises(ValueError, match=f"workers {workers}: at least 1"):
        precompute(dataset, dataset.clips("test"), estimator, store, workers=workers)
    assert not store.made


def test_a_store_made_with_other_settings_is_refused(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    precompute(
        dataset, dataset.clips("test")[:1], estimator, store_for(tmp_path / "store", dataset, estimator), workers=1
    )
    with pytest.raises(ValueError, match=r"estimator\.factor: 8\.0 there, 3\.0 asked for"):
        store_for(tmp_path / "store", dataset, difference(3.0)).check()
    with pytest.raises(ValueError, match=r"layout: 'archive' there, 'loose' asked for"):
        store_for(tmp_path / "store", dataset, estimator, "loose").check()
    with pytest.raises(ValueError, match=r"unknown layout 'tar'.*archive or loose"):
        store_for(tmp_path / "store", dataset, estimator, "tar")
    manifest = tmp_path / "store" / "manifest.json"
    kept = manifest.read_text()
    made_by(tmp_path / "store", opencv="3.4.18", av="13.9.1")
    assert (
        precompute(dataset, dataset.clips("test")[:1], estimator, store_for(tmp_path / "store", dataset, estimator))
        == 0
    )
    with pytest.raises(ValueError, match=r"libraries\.opencv: '3\.4\.18' there") as error:
        precompute(dataset, dataset.clips("test"), estimator, store_for(tmp_path / "store", dataset, estimator))
    assert '(pip install "opencv-contrib-python-headless==3.4.18.*" "av==13.9.1"), name another' in str(error.value)
    assert "settings" not in str(error.value)
    manifest.write_text(kept)
    upgraded, reset = difference(3.0), difference(3.0)
    upgraded.versions, reset.versions = {"torch": "2.8.0"}, {"torch": "2.9.0"}
    store_for(tmp_path / "torch", dataset, upgraded).open_for_writing()
    with pytest.raises(ValueError, match=r'torch: .2\.8\.0. there.*\n.*Install what .*"torch==2\.8\.0"\), name'):
        store_for(tmp_path / "torch", dataset, reset).check()
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
    loose, archive = (store_for(tmp_path / kind, dataset, estimator, kind) for kind in ("loose", "archive"))
    for store in (loose, archive):
        precompute(dataset, [clip], estimator, store, workers=1)
    plane = tmp_path / "loose" / clip.name / "flow_y_00003.png"
    plane.write_bytes(plane.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"flow_y_00003\.png: not a gray-scale"):
        loose.read(clip, 0, 5)
    path = tmp_path / "archive" / f"{clip.name}.zip"
    whole = path.read_bytes()
    start = whole.index(b"flow_y_00003.png") + len("flow_y_00003.png")
    path.write_bytes(whole[:start] + bytes(30) + whole[start + 30 :])
    with pytest.raises(ValueError, match=r"\.zip/flow_y_00003\.png: not a gray-scale"):
        archive.read(clip, 0, 5)
    for damaged in (whole[:-1], whole[:100], b"", whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"v_Archery_g01_c01\.zip: damaged"):
            archive.n_flow(clip)
        with pytest.raises(ValueError, match=r"v_Archery_g01_c01\.zip: damaged"):
            archive.read(clip, 0, 5)


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


def stored_clips(folder: Path) -> int:
    return len(list(folder.glob("*/[!.]*")))


def test_a_killed_precompute_goes_on_to_the_same_bytes(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    clips = dataset.clips("train") + dataset.clips("test")
    precompute(dataset, clips, estimator, store_for(tmp_path / "whole", dataset, estimator), workers=1)

    folder = tmp_path / "killed"
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", KILLED, str(small_tree), str(folder), str(conftest)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while stored_clips(folder) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = stored_clips(folder)
    assert 3 <= done < len(clips)
    machine = re.sub(r"\W", "_", os.uname().nodename)
    dead = f"{machine}-{process.pid}.part"
    (folder / "Archery" / f".v_Archery_g09_c01.{dead}").mkdir()  # what a kill within a clip leaves
    (folder / "Archery" / f".v_Archery_g09_c01.zip.{dead}").touch()
    alive = folder / "Archery" / f".v_Archery_g08_c01.zip.{machine}-{os.getpid()}.part"
    alive.touch()
    assert precompute(dataset, clips, estimator, store_for(folder, dataset, estimator), workers=2) == len(clips) - done
    alive.unlink()  # another process's, and it lives: it was left alone
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list(folder.glob("*/.*"))


def test_what_an_earlier_process_of_the_same_number_left_is_no_hindrance(small_tree, tmp_path, difference, layout):
    """In a container the first process has the same number each time."""
    dataset, estimator = UCF101(small_tree), difference()
    clips = dataset.clips("train")
    precompute(dataset, clips, estimator, store_for(tmp_path / "whole", dataset, estimator, layout), workers=1)
    store = store_for(tmp_path / "store", dataset, estimator, layout)
    suffix = ".zip" if layout == "archive" else ""
    machine = re.sub(r"\W", "_", os.uname().nodename)
    ours = f"{suffix}.{machine}-{os.getpid()}.part"
    for number, clip in enumerate(clips):
        part = store.folder / Path(clip.name).parent / f".{Path(clip.name).name}{ours}"
        part.parent.mkdir(parents=True, exist_ok=True)
        if suffix:
            part.write_bytes(b"half" * number)
        else:
            part.mkdir()
            (part / "flow_x_00099.png").touch()
    assert precompute(dataset, clips, estimator, store, workers=1) == len(clips)
    assert contents(store.folder) == contents(tmp_path / "whole")


FAULTS = {
    "gone": (lambda path: path.unlink(), "missing"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "a bit": (lambda path: path.write_bytes(flipped(path.read_bytes())), r"checksum|not a gray-scale"),
}


def flipped(data: bytes) -> bytes:
    """One bit of a plane's picture data, in the middle."""
    place = data.index(b"IDAT", data.index(b"flow_x_00005.png")) + 20
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_only_it_is_repaired(small_tree, tmp_path, difference, fault):
    dataset, estimator = UCF101(small_tree), difference()
    folder = tmp_path / "store"
    store = store_for(folder, dataset, estimator)
    assert extract(dataset, estimator, store, workers=1, shard=(0, 1)) == []
    assert verify(dataset, store) == ([], [])
    sound = contents(folder)
    clip = dataset.clips("train")[2]
    path = folder / f"{clip.name}.zip"
    spoil, message = FAULTS[fault]
    spoil(path)
    bad, faults = verify(dataset, store)
    assert bad == [clip] and len(faults) == 1
    assert re.search(rf"{path}: .*({message})", faults[0])
    times = {name: (folder / name).stat().st_mtime_ns for name in sound if name != f"{clip.name}.zip"}
    assert repair(dataset, estimator, store, workers=1) == (1, [])
    assert contents(folder) == sound
    assert times == {name: (folder / name).stat().st_mtime_ns for name in times}


def test_a_video_that_changed_is_a_fault(small_tree, tmp_path, difference, video_writer, texture):
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator)
    extract(dataset, estimator, store, workers=1, shard=(0, 1))
    clip = dataset.clips("test")[1]
    video_writer(clip.path, texture(99, count=30))
    bad, faults = verify(dataset, store)
    assert bad == [clip] and "was made from another v_HandstandPushups_g01_c01.avi" in faults[0]
    repair(dataset, estimator, store, workers=1)
    assert store.n_flow(clip) == len(dataset.decode(clip)) - 1 and verify(dataset, store) == ([], [])


def test_repair_keeps_what_it_cannot_compute_anew(small_tree, tmp_path, difference, layout):
    """A video that was cut off after its flow was made, and one that cannot be estimated: the sound flow stays."""
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator, layout)
    extract(dataset, estimator, store, workers=1, shard=(0, 1))
    clips = dataset.clips("train")
    whole, sound = clips[0].path.read_bytes(), contents(tmp_path / "store")
    clips[0].path.write_bytes(whole[:500])
    count, faults = repair(dataset, estimator, store, workers=1)
    assert count == 0 and len(faults) == 1 and clips[0].path.name in faults[0]
    assert contents(tmp_path / "store") == sound
    clips[0].path.write_bytes(whole)
    for name in (name for name in sound if name.startswith(clips[1].name)):
        (tmp_path / "store" / name).write_bytes(sound[name][:-9])
    assert repair(dataset, estimator, store, workers=1) == (1, [])  # in the place of a damaged one
    assert contents(tmp_path / "store") == sound and not list((tmp_path / "store").glob("*/.*"))


def test_repair_under_other_versions_is_refused_before_anything_is_touched(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    store = store_for(tmp_path / "store", dataset, estimator)
    extract(dataset, estimator, store, workers=1, shard=(0, 1))
    made_by(tmp_path / "store", av="13.9.1")
    assert repair(dataset, estimator, store, workers=1) == (0, [])
    spoiled = tmp_path / "store" / f"{dataset.clips('train')[0].name}.zip"
    spoiled.write_bytes(spoiled.read_bytes()[:-40])
    left = contents(tmp_path / "store")
    with pytest.raises(ValueError, match=r"libraries\.av: '13\.9\.1' there"):
        repair(dataset, estimator, store, workers=1)
    assert contents(tmp_path / "store") == left


def test_loose_flow_that_cannot_be_put_in_place_leaves_the_old_one(small_tree, tmp_path, difference, monkeypatch):
    dataset, estimator = UCF101(small_tree), difference()
    clip, store = dataset.clips("train")[0], store_for(tmp_path / "store", dataset, estimator, "loose")
    precompute(dataset, [clip], estimator, store, workers=1)
    sound, rename = contents(tmp_path / "store"), Path.rename

    def fails(path, target):
        if Path(target) == tmp_path / "store" / clip.name and ".replaced." not in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        precompute(dataset, [clip], estimator, store, workers=1, anew=True)
    assert contents(tmp_path / "store") == sound and not list((tmp_path / "store").glob("*/.*"))


def test_bad_clips_among_good_ones_are_listed_and_the_good_ones_are_there(
    small_tree, tmp_path, difference, video_writer, texture, capsys
):
    """Vanished, cut off, empty, of one frame, wrongly named: five faults, and the flow of the four others."""
    whole, estimator = UCF101(small_tree), difference()
    clips = [*whole.clips("train"), *whole.clips("test")]
    extract(whole, estimator, store_for(tmp_path / "whole", whole, estimator), workers=1, shard=(0, 1))
    clips[0].path.unlink()
    clips[1].path.write_bytes(clips[1].path.read_bytes()[:500])
    clips[2].path.write_bytes(b"")
    video_writer(clips[3].path, texture(0, count=1))
    clips[4].path.rename(clips[4].path.with_name("v_Rowing_g02_c1.avi"))
    dataset = UCF101(small_tree)
    store = store_for(tmp_path / "store", dataset, estimator)
    faults = extract(dataset, estimator, store, workers=2, shard=(0, 1))
    for clip in clips[:5]:
        assert sum(clip.path.name in fault for fault in faults) == 1
    assert len(faults) == 5
    assert "not used: 1 videos are in no list of split 1: Rowing/v_Rowing_g02_c1.avi" in capsys.readouterr().out
    good = {
        name: data for name, data in contents(tmp_path / "whole").items() if not any(c.name in name for c in clips[:5])
    }
    assert contents(tmp_path / "store") == good and len(good) == 5  # and the manifest


def test_shards_and_processes_give_one_store(small_tree, tmp_path, difference):
    dataset, estimator = UCF101(small_tree), difference()
    extract(dataset, estimator, store_for(tmp_path / "whole", dataset, estimator), workers=1, shard=(0, 1))
    for index in range(2):
        store = store_for(tmp_path / "shards", dataset, estimator)
        assert extract(dataset, estimator, store, workers=1, shard=(index, 2)) == []
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("1/4", {"WORLD_SIZE": "2", "RANK": "0"}, (1, 4)),
        (None, {}, (0, 1)),
        (None, {"SLURM_NTASKS": "3", "SLURM_PROCID": "2"}, (2, 3)),
        (None, {"WORLD_SIZE": "2", "NODE_RANK": "1", "LOCAL_RANK": "0"}, (1, 2)),
        (None, {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4)),
    ],
)
def test_a_shard_is_named_or_follows_from_the_launcher(text, environment, expected):
    assert shard_of(text, environment) == expected


def test_a_shard_that_slurm_tells_half_of_is_named():
    """`salloc` without `srun`."""
    with pytest.raises(ValueError, match=r"SLURM_NTASKS is 4, but SLURM_PROCID is not set.*srun.*--shard=0/1"):
        shard_of(None, {"SLURM_NTASKS": "4"})


@pytest.mark.parametrize("text", ["4/4", "1", "a/2", "-1/2"])
def test_an_impossible_shard_is_named(text):
    with pytest.raises(ValueError, match=f"shard {text.partition('/')[0]}"):
        shard_of(text, {})


def test_a_full_disk_stops_the_work_and_leaves_nothing_half_written(small_tree, tmp_path, difference, monkeypatch):
    dataset, estimator = UCF101(small_tree), difference()
    clips = [*dataset.clips("train"), *dataset.clips("test")]
    store = store_for(tmp_path / "store", dataset, estimator)
    replace, moved = Path.replace, []

    def full(path, target):
        if Path(target).suffix == ".zip":
            moved.append(target)
            if len(moved) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=rf"no space for {clips[3].name} in .*make room") as error:
        precompute(dataset, clips, estimator, store, workers=1)
    assert error.value.errno == errno.ENOSPC
    assert [store.has(clip) for clip in clips[:5]] == [True, True, True, False, False]
    assert not list((tmp_path / "store").glob("*/.*"))
    monkeypatch.undo()
    assert precompute(dataset, clips, estimator, store, workers=1) == len(clips) - 3
    precompute(dataset, clips, estimator, store_for(tmp_path / "whole", dataset, estimator), workers=1)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


LONG = "v_" + "ä" * 118 + "xxxxx_g01_c01"  # 251 bytes: with .avi all that a file's name may have


@pytest.mark.parametrize("layout", ["archive", "loose"])
def test_the_longest_names_are_stored(tmp_path, difference, layout):
    clips = [Clip(tmp_path / f"{name}.ts", f"Class/{name}", 0, "g") for name in (LONG, f"{LONG[:-1]}2", f"{LONG}y")]
    store = FlowStore(tmp_path / "store", store_manifest(difference().settings, {}), layout)
    store.open_for_writing()
    for value, clip in enumerate(clips):
        clip.path.touch()
        store.write(clip, np.full((3, 2, 8, 8), float(value), np.float32))
        store.write(clip, np.full((3, 2, 8, 8), float(value), np.float32))  # in place of what is there
    for value, clip in enumerate(clips):
        assert store.n_flow(clip) == 3 and store.size(clip) == (8, 8) and store.fault(clip) is None
        assert np.abs(store.read(clip, 0, 3) - value).max() < 0.1
    assert not list((tmp_path / "store").rglob("*.part"))


def test_a_store_without_a_clip_binds_nobody(tmp_path, difference):
    """A call that failed at every clip is followed by one with other settings."""
    clip = Clip(tmp_path / "a.avi", "Class/a", 0, "g")
    clip.path.touch()
    for factor, layout in ((1.0, "loose"), (2.0, "archive")):
        store = FlowStore(tmp_path / "store", store_manifest(difference(factor).settings, {}), layout)
        store.open_for_writing()
    store.write(clip, np.zeros((1, 2, 8, 8), np.float32))
    assert (tmp_path / "store" / "Class" / "a.zip").is_file()
    with pytest.raises(ValueError, match=r"factor: 2\.0 there, 1\.0 asked for"):
        FlowStore(tmp_path / "store", store_manifest(difference(1.0).settings, {})).open_for_writing()
