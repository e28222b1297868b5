from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules import flow_codec
from datamodules.flow_import import find_flow, import_flow
from datamodules.flow_precompute import estimate_clip
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101

ARRANGEMENTS = {
    "flow_x, flow_y in the clip's folder, from 1": lambda clip, axis, k: f"{clip}/flow_{'xy'[axis]}_{k + 1:05d}",
    "u and v above the clips, from 1": lambda clip, axis, k: f"{'uv'[axis]}/{clip.split('/')[1]}/frame{k + 1:06d}",
    "u and v within the clips, from 0": lambda clip, axis, k: f"{clip}/{'uv'[axis]}/{k:04d}",
    "x, y without classes, from 0": lambda clip, axis, k: f"{clip.split('/')[1].upper()}/{'xy'[axis]}_{k}",
}


def store_for(folder: Path, dataset: UCF101) -> FlowStore:
    return FlowStore(folder, store_manifest({"algorithm": "theirs", "imported": True}, dataset.frame_settings))


def lay_out(folder: Path, dataset: UCF101, estimator, name, suffix: str = ".png") -> dict[str, np.ndarray]:
    """Every clip's planes in an arrangement; the planes (n, 2, H, W)."""
    planes = {}
    for clip in [*dataset.clips("train"), *dataset.clips("test")]:
        planes[clip.name] = flow_codec.encode(estimate_clip(dataset.decode(clip), estimator))
        for k, pair in enumerate(planes[clip.name]):
            for axis in (0, 1):
                path = folder / (name(clip.name, axis, k) + suffix)
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), pair[axis])
    return planes


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_each_arrangement_is_found_and_its_values_kept(small_tree, tmp_path, difference, arrangement):
    dataset = UCF101(small_tree)
    planes = lay_out(tmp_path / "theirs", dataset, difference(), ARRANGEMENTS[arrangement])
    clips = [*dataset.clips("train"), *dataset.clips("test")]
    found = find_flow(tmp_path / "theirs", clips)
    fields = sum(map(len, planes.values()))
    assert found.description.startswith(f"9 of 9 clips, {fields} flow fields, PNG, ")
    assert found.description.endswith(arrangement[-6:].replace("from", "counted from").strip(", "))
    store = store_for(tmp_path / "store", dataset)
    assert import_flow(dataset, clips, found, store) == []
    for clip in clips:
        assert np.array_equal(store.read_planes(clip, 0, len(planes[clip.name])), planes[clip.name])
        assert store.fault(clip) is None


def test_jpeg_is_kept_as_it_decodes(small_tree, tmp_path, difference):
    dataset = UCF101(small_tree)
    name = ARRANGEMENTS["flow_x, flow_y in the clip's folder, from 1"]
    lay_out(tmp_path / "theirs", dataset, difference(), name, ".jpg")
    clip = dataset.clips("test")[0]
    found = find_flow(tmp_path / "theirs", [clip])
    assert "JPEG" in found.description
    store = store_for(tmp_path / "store", dataset)
    assert import_flow(dataset, [clip], found, store) == []
    path = tmp_path / "theirs" / f"{clip.name}/flow_y_00003.jpg"
    assert np.array_equal(store.read_planes(clip, 2, 1)[0, 1], cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def last(folder: Path, clip) -> list[Path]:
    return sorted((folder / clip.name).glob("flow_x_*"))[-1:] + sorted((folder / clip.name).glob("flow_y_*"))[-1:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, c: [p.unlink() for p in last(f, c)], r"11 flow fields, but 12 pairs .*its end dropped"),
        (lambda f, c: last(f, c)[0].unlink(), r"11 planes of u and 12 of v; number 12"),
        (lambda f, c: [p.unlink() for p in (f / c.name).glob("*_00004.png")], r"count on .*after 3 one is missing"),
        (lambda f, c: (f / c.name / "flow_x_00002.png").write_bytes(b"x"), r"flow_x_00002\.png is no 8-bit image"),
        (
            lambda f, c: cv2.imwrite(
                str(f / c.name / "flow_x_00002.png"), np.eye(48, 64, dtype=np.uint8)[..., None] * [9, 0, 0]
            ),
            r"flow_x_00002\.png is a coloured image",
        ),
        (
            lambda f, c: cv2.imwrite(str(f / c.name / "flow_x_00002.png"), np.zeros((4, 4), np.uint8)),
            "planes of different sizes",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_the_rest_imported(small_tree, tmp_path, difference, spoil, message):
    dataset = UCF101(small_tree)
    name = ARRANGEMENTS["flow_x, flow_y in the clip's folder, from 1"]
    planes = lay_out(tmp_path / "theirs", dataset, difference(), name)
    clips = [*dataset.clips("train"), *dataset.clips("test")]
    assert {len(p) for p in planes.values()} == {12}
    spoil(tmp_path / "theirs", clips[1])
    store = store_for(tmp_path / "store", dataset)
    faults = import_flow(dataset, clips, find_flow(tmp_path / "theirs", clips), store)
    assert len(faults) == 1 and faults[0].startswith(clips[1].name)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(faults[0])
    assert [store.has(clip) for clip in clips] == [clip is not clips[1] for clip in clips]


def test_a_folder_without_flow_is_named(small_tree, tmp_path):
    clips = UCF101(small_tree).clips("train")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        find_flow(tmp_path / "absent", clips)
    cv2.imwrite(str(tmp_path / "x_1.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match="1 pictures, none of them a plane of one of the dataset's 6 clips"):
        find_flow(tmp_path, clips)
