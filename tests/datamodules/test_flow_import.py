import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules import flow_codec
from datamodules.__main__ import main
from datamodules.flow_finding import FoundFlow, find_flow
from datamodules.flow_import import conversion, import_flow
from datamodules.flow_precompute import estimate_clip
from datamodules.flow_stacks import FlowStacks
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip
from lightning_modules.flow.imported import ImportedFlow

ARRANGEMENTS = {
    "flow_x, flow_y in the clip's folder, from 1": lambda clip, axis, k: f"{clip}/flow_{'xy'[axis]}_{k + 1:05d}",
    "u and v above the clips, from 1": lambda clip, axis, k: f"{'uv'[axis]}/{clip.split('/')[1]}/frame{k + 1:06d}",
    "u and v within the clips, from 0": lambda clip, axis, k: f"{clip}/{'uv'[axis]}/{k:04d}",
    "clips in the names below u and v, from 1": lambda clip, axis, k: f"{'uv'[axis]}/{clip.split('/')[1]}_{k + 1:04d}",
    "all in one folder, from 1": lambda clip, axis, k: f"{clip.split('/')[1]}_flow_{'xy'[axis]}_{k + 1:04d}",
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
            lambda f, c: cv2.imwrite(str(f / c.name / "flow_x_00002.png"), np.zeros((4, 6), np.uint8)),
            r"flow_x_00002\.png is 6×4 pixels, the dataset's frames 64×48: set .* `frame_size` to \[4, 6\]",
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


def clips_of(root: Path, *names: str) -> list[Clip]:
    return [Clip(root / f"{name}.avi", name, 0, name) for name in names]


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    return path


@pytest.mark.parametrize("second", ["A/001/flow_x_00001.jpg", "A/001/flow_x_1.png", "A/001/u/frame1.png"])
def test_two_pictures_of_one_plane_are_named(tmp_path, second):
    first = draw(tmp_path / "A/001/flow_x_00001.png")
    other = draw(tmp_path / second)
    with pytest.raises(ValueError, match=r"both are plane 1 of u of a/001; take one") as error:
        find_flow(tmp_path, clips_of(tmp_path, "A/001", "A/002"))
    assert str(first) in str(error.value) and str(other) in str(error.value)


@pytest.mark.parametrize(
    "arrangement", ["{}/{}/u/{:04d}.png", "u/{}/{}/{:04d}.png", "{}/u/{}/{:04d}.png", "{}/{}_flow_x_{:04d}.png"]
)
def test_the_class_folder_tells_clips_of_one_stem_apart(tmp_path, arrangement):
    names = ("A/001", "B/001", "B/002")
    paths = {name: draw(tmp_path / arrangement.format(*name.split("/"), 1)) for name in names}
    found = find_flow(tmp_path, clips_of(tmp_path, *names))
    assert found.planes == {name.lower(): ({1: path}, {}) for name, path in paths.items()}


def test_a_picture_that_may_be_of_two_clips_is_named(tmp_path):
    draw(tmp_path / "001/flow_x_1.png")
    with pytest.raises(ValueError, match=r"001/flow_x_1\.png: which clip is it of, a/001 and b/001\? "):
        find_flow(tmp_path, clips_of(tmp_path, "A/001", "B/001"))


def test_a_clip_of_another_class_is_not_taken_for_the_one_of_its_stem(tmp_path):
    draw(tmp_path / "B/001/flow_x_1.png")
    mine = draw(tmp_path / "A/001/flow_x_1.png")
    found = find_flow(tmp_path, clips_of(tmp_path, "A/001", "B/002"))
    assert found.planes == {"a/001": ({1: mine}, {})}


def test_flow_of_another_frame_size_is_named_and_not_stored(small_tree, tmp_path, difference):
    """All planes are of one size, the wrong one."""
    name = ARRANGEMENTS["flow_x, flow_y in the clip's folder, from 1"]
    lay_out(tmp_path / "theirs", UCF101(small_tree, frame_size=(24, 32)), difference(), name)
    dataset = UCF101(small_tree)
    clip = dataset.clips("test")[0]
    store = store_for(tmp_path / "store", dataset)
    (fault,) = import_flow(dataset, [clip], find_flow(tmp_path / "theirs", [clip]), store)
    assert "flow_x_00001.png is 32×24 pixels, the dataset's frames 64×48" in fault and "to [24, 32]" in fault
    assert not store.has(clip)


@pytest.mark.parametrize("bound", [8.0, 15.0, 32.0])
def test_another_bound_is_converted(small_tree, tmp_path, difference, bound):
    dataset = UCF101(small_tree)
    planes = lay_out(tmp_path / "theirs", dataset, difference(), next(iter(ARRANGEMENTS.values())))
    clip = dataset.clips("test")[0]
    every = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    cv2.imwrite(str(tmp_path / "theirs" / clip.name / "flow_y_00002.png"), every)
    planes[clip.name][1, 1] = every
    store = store_for(tmp_path / "store", dataset)
    assert import_flow(dataset, [clip], find_flow(tmp_path / "theirs", [clip]), store, bound=bound) == []
    meant = np.clip(planes[clip.name] / 255.0 * 2 * bound - bound, -20, 20)
    half_a_level = 20 / 255
    assert np.abs(store.read(clip, 0, len(meant)) - meant).max() <= half_a_level + 1e-5
    assert json.loads((tmp_path / "store" / "import.json").read_text()) == {"bound": bound}
    assert f"±{bound:g} pixels" in conversion(bound) and "0.157 pixels apart, by 0.078 at most" in conversion(bound)
    assert ("clipped" in conversion(bound)) == (bound > 20)


@pytest.mark.parametrize("bound", [0.0, -20.0, float("inf"), float("nan")])
def test_an_impossible_bound_is_named(small_tree, tmp_path, bound):
    dataset = UCF101(small_tree)
    with pytest.raises(ValueError, match=f"^bound {bound}: "):
        import_flow(dataset, [], FoundFlow({}, ""), store_for(tmp_path / "store", dataset), bound=bound)
    assert not (tmp_path / "store").exists()


def test_one_store_holds_flow_of_one_bound(small_tree, tmp_path, difference):
    dataset = UCF101(small_tree)
    clips = dataset.clips("test")
    lay_out(tmp_path / "theirs", dataset, difference(), next(iter(ARRANGEMENTS.values())))
    found, store = find_flow(tmp_path / "theirs", clips), store_for(tmp_path / "store", dataset)
    nothing = FoundFlow({}, "")
    assert len(import_flow(dataset, clips, nothing, store, bound=9.0)) == len(clips)  # none: the bound is still free
    assert import_flow(dataset, clips[:1], found, store, bound=15.0) == []
    with pytest.raises(ValueError, match=r"store: holds flow that was imported with bound 15, 20 is asked for"):
        import_flow(dataset, clips, found, store)
    assert import_flow(dataset, clips, found, store, bound=15.0) == []
    (tmp_path / "store" / "import.json").unlink()  # as in stores of before: they took all for ±20
    with pytest.raises(ValueError, match=r"imported with bound 20, 15 is asked for"):
        import_flow(dataset, clips, found, store, bound=15.0)


def test_the_command_says_what_it_took_the_images_for(small_tree, tmp_path, difference, monkeypatch, capsys):
    monkeypatch.setenv("UCF101", str(small_tree))
    dataset = UCF101(small_tree)
    lay_out(tmp_path / "theirs", dataset, difference(), next(iter(ARRANGEMENTS.values())))
    configs = Path(__file__).parents[2] / "configs"
    command = [
        "import_flow",
        f"--source={tmp_path / 'theirs'}",
        f"--dataset={configs / 'paper' / 'dataset.yaml'}",
        f"--estimator={configs / 'flow' / 'imported.yaml'}",
        f"--store={tmp_path / 'store'}",
    ]
    main([*command, "--bound=15"])
    assert "0 to 255 are taken for ±15 pixels, the store's stand for ±20: the values are rounded" in (
        capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match="imported with bound 15, 20 is asked for"):
        main(command)


def denseflow(folder: Path, dataset: UCF101, estimator) -> None:
    """Class/clip/flow_x_00000.jpg, of every frame of every clip, as its authors' tool writes it."""
    name = lambda clip, axis, k: f"{clip}/flow_{'xy'[axis]}_{k:05d}"  # noqa: E731
    lay_out(folder, dataset, estimator, name, ".jpg")


def test_flow_of_every_frame_is_imported_at_the_videos_own_rate(
    small_tree, tmp_path, difference, monkeypatch, video_writer, texture
):
    """By the shipped YAML; at 12 frames per second it is refused, and the message says what to give."""
    monkeypatch.setenv("UCF101", str(small_tree))
    for clip, rate in zip(UCF101(small_tree).clips("train"), (25, Fraction(30000, 1001), 15), strict=False):
        video_writer(clip.path, texture(0, count=30), rate=rate)
    denseflow(tmp_path / "theirs", UCF101(small_tree, frame_rate=None), difference())
    configs = Path(__file__).parents[2] / "configs"
    command = ["import_flow", f"--source={tmp_path / 'theirs'}", f"--estimator={configs / 'flow' / 'imported.yaml'}"]
    with pytest.raises(SystemExit, match=r"9 faults:(?s:.)*29 flow fields, but \d+ .* DATASET=configs/data/"):
        main([*command, f"--store={tmp_path / 'twelve'}", f"--dataset={configs / 'paper' / 'dataset.yaml'}"])
    main([*command, f"--store={tmp_path / 'own'}", f"--dataset={configs / 'data' / 'ucf101_native.yaml'}"])
    data = FlowStacks(
        UCF101(small_tree, frame_rate=None),
        estimator=ImportedFlow(algorithm="imported"),
        store=tmp_path / "own",
        crop=32,
        num_workers=0,
    )
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).flow.shape == (6, 20, 32, 32)
