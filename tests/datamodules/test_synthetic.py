"""The embedded dataset: files in the official layout, the same each time; motion tells the class, a frame does not."""

import math
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from datamodules.appearances import OCTAVES, TILE
from datamodules.rendering import MOTIONS, draw_scene, pose_at
from datamodules.synthetic import EmbeddedDataset
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip

SMALL = {"groups": 3, "clips_per_group": 1, "test_groups": 1}
"""24 clips."""

SPLITS = (1, 2, 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedDataset:
    dataset = EmbeddedDataset(tmp_path_factory.mktemp("small"), **SMALL)
    dataset.prepare()
    return dataset


FAST = {"speeds": (2.0, 3.5)}
"""Every clip moves much more than its camera shakes."""


def rendered(root: Path, **options: Any) -> dict[int, EmbeddedDataset]:
    EmbeddedDataset(root, groups=9, test_groups=3, **options).prepare()
    return {split: EmbeddedDataset(root, groups=9, test_groups=3, split=split, **options) for split in SPLITS}


def decoded(dataset: EmbeddedDataset) -> dict[str, np.ndarray]:
    return {clip.name: dataset.decode(clip) for subset in ("train", "test") for clip in dataset.clips(subset)}


@pytest.fixture(scope="module")
def by_split(tmp_path_factory: pytest.TempPathFactory) -> dict[int, EmbeddedDataset]:
    """144 clips, of which each split tests on 48; together the three test on all."""
    return rendered(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def fast_by_split(tmp_path_factory: pytest.TempPathFactory) -> dict[int, EmbeddedDataset]:
    return rendered(tmp_path_factory.mktemp("fast"), **FAST)


@pytest.fixture(scope="module")
def videos(by_split: dict[int, EmbeddedDataset]) -> dict[str, np.ndarray]:
    """Name to uint8 (22, 64, 64, 3), of all clips."""
    return decoded(by_split[1])


@pytest.fixture(scope="module")
def fast_videos(fast_by_split: dict[int, EmbeddedDataset]) -> dict[str, np.ndarray]:
    return decoded(fast_by_split[1])


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- files


def test_a_subclass_that_decodes_otherwise_has_its_own_frames_in_each_way(small: EmbeddedDataset) -> None:
    class Dark(EmbeddedDataset):
        def decode(self, clip: Clip) -> np.ndarray:
            return super().decode(clip) // 2

    dark, clip = Dark(small.root, **SMALL), small.clips("train")[0]
    assert np.array_equal(small.decode_frames(clip, [2, 3, 9]), small.decode(clip)[[2, 3, 9]])
    assert np.array_equal(dark.decode_frames(clip, [2, 3, 9]), small.decode(clip)[[2, 3, 9]] // 2)


def test_the_layout_is_the_official_one(small: EmbeddedDataset) -> None:
    lists = small.root / "ucfTrainTestlist"
    classes = [line.split(" ") for line in (lists / "classInd.txt").read_text().splitlines()]
    assert [int(number) for number, _ in classes] == list(range(1, 9))
    assert [name for _, name in classes] == small.classes == sorted(small.classes)
    number = {name: index for index, name in classes}
    for split in SPLITS:
        train = (lists / f"trainlist{split:02d}.txt").read_text().splitlines()
        test = (lists / f"testlist{split:02d}.txt").read_text().splitlines()
        assert (len(train), len(test)) == (16, 8)
        for line in train:
            name, label = line.split(" ")
            assert label == number[name.split("/")[0]]
        for name in [line.split(" ")[0] for line in train] + test:
            assert re.fullmatch(r"(\w+)/v_\1_g\d\d_c\d\d\.avi", name)
            assert (small.root / "UCF-101" / name).is_file()
    assert len(list((small.root / "UCF-101").rglob("*"))) == 8 + 24


@pytest.mark.parametrize("split", SPLITS)
def test_a_reader_of_ucf101_reads_it(small: EmbeddedDataset, split: int) -> None:
    real, embedded = UCF101(small.root, split=split), EmbeddedDataset(small.root, **SMALL, split=split)
    for subset in ("train", "test"):
        assert real.clips(subset) == embedded.clips(subset)
    assert real.classes == embedded.classes


def test_train_and_test_share_no_group_and_the_splits_test_on_different_ones(
    by_split: dict[int, EmbeddedDataset],
) -> None:
    tested = []
    for dataset in by_split.values():
        groups = {
            subset: {re.search(r"_g(\d+)_", c.name)[1] for c in dataset.clips(subset)} for subset in ("train", "test")
        }
        assert not groups["train"] & groups["test"]
        assert groups["train"] | groups["test"] == {f"{group:02d}" for group in range(1, 10)}
        tested += sorted(groups["test"])
    assert len(tested) == len(set(tested)) == 9


def test_the_files_are_video_as_stated(tmp_path: Path) -> None:
    dataset = EmbeddedDataset(tmp_path, **SMALL, frames=30, size=(48, 80))
    dataset.prepare()
    for subset in ("train", "test"):
        for clip in dataset.clips(subset):
            with av.open(str(clip.path)) as container:
                stream = container.streams.video[0]
                assert container.format.name == "avi" and stream.codec_context.name == "mpeg4"
                assert stream.average_rate == 25
                frames = list(container.decode(stream))
            assert len(frames) == 30
            assert all((frame.height, frame.width) == (48, 80) for frame in frames)
            # A frame predicted from the last would carry traces of how it moved.
            assert all(frame.key_frame for frame in frames)


def test_a_clip_makes_two_stacks_at_12_frames_per_second(small: EmbeddedDataset) -> None:
    assert small.decode(small.clips("test")[0]).shape == (22, 64, 64, 3)


# --- determinism, resuming, other settings


def test_a_seed_renders_the_same_files_and_another_seed_other_pictures(small: EmbeddedDataset, tmp_path: Path) -> None:
    EmbeddedDataset(tmp_path / "again", **SMALL).prepare()
    assert tree(tmp_path / "again") == tree(small.root)

    other = EmbeddedDataset(tmp_path / "other", **SMALL, seed=1)
    other.prepare()
    for ours, theirs in zip(small.clips("test"), other.clips("test"), strict=True):
        assert ours.name == theirs.name
        assert np.abs(small.decode(ours)[0].astype(float) - other.decode(theirs)[0]).mean() > 20


def test_a_killed_call_goes_on_to_the_same_files(small: EmbeddedDataset, tmp_path: Path) -> None:
    code = f"""from pathlib import Path
from datamodules.synthetic import EmbeddedDataset
EmbeddedDataset(Path({str(tmp_path)!r}), **{SMALL!r}).prepare()"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(tmp_path.rglob("*.avi"))) < 4:
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.avi")}
    assert 4 <= len(done) < 24

    dataset = EmbeddedDataset(tmp_path, **SMALL)
    with pytest.raises(FileNotFoundError, match=rf"{24 - len(done)} of the clips.*prepare"):
        dataset.clips("train")
    dataset.prepare()
    assert tree(tmp_path) == tree(small.root)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


def test_two_processes_at_once_render_one_dataset(small: EmbeddedDataset, tmp_path: Path) -> None:
    root = tmp_path / "data"
    code = f"""import sys
from pathlib import Path
from datamodules.synthetic import EmbeddedDataset
dataset = EmbeddedDataset(Path({str(root)!r}), **{SMALL!r})
import av, cv2
print("ready", flush=True)
sys.stdin.readline()
dataset.prepare()
print(len(dataset.clips("train")), len(dataset.clips("test")))"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert [out for out, _ in results] == ["16 8\n", "16 8\n"]
    assert tree(root) == tree(small.root)


def test_what_was_seen_before_rendering_is_forgotten(small: EmbeddedDataset, tmp_path: Path) -> None:
    dataset = EmbeddedDataset(tmp_path, **SMALL)
    dataset.prepare()
    clip = dataset.clips("test")[0]
    clip.path.unlink()
    dataset = EmbeddedDataset(tmp_path, **SMALL)
    clips, faults = dataset.available()
    assert len(clips) == 23 and len(faults) == 1 and faults[0].startswith(f"{clip.path}: missing, ")
    dataset.prepare()
    assert dataset.available() == ([*dataset.clips("train"), *dataset.clips("test")], [])
    assert tree(tmp_path) == tree(small.root)


def test_a_second_call_renders_nothing(small: EmbeddedDataset) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*")}
    EmbeddedDataset(small.root, **SMALL).prepare()
    assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed 0 there, 1 asked for"),
        ({"frames": 90}, "frames 45 there, 90 asked for"),
        ({"size": (32, 32)}, r"size \[64, 64\] there, \[32, 32\] asked for"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(small: EmbeddedDataset, changed: dict, message: str) -> None:
    before = tree(small.root)
    other = EmbeddedDataset(small.root, **{**SMALL, **changed})
    with pytest.raises(ValueError, match=rf"settings\.json.*{message}"):
        other.prepare()
    with pytest.raises(ValueError, match=message):
        other.clips("train")
    assert tree(small.root) == before


def test_a_folder_that_holds_another_dataset_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "UCF-101" / "Archery").mkdir(parents=True)
    with pytest.raises(ValueError, match="not rendered here"):
        EmbeddedDataset(tmp_path).prepare()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": 5, "test_groups": 2}, "test_groups 2 of groups 5"),
        ({"test_groups": 0}, "test_groups 0"),
        ({"size": (64, 63)}, r"size \(64, 63\)"),
        ({"frames": 0}, "frames 0"),
        ({"contrast": 0.0}, r"contrast 0\.0: above 0 and at most 1"),
        ({"contrast": 1.5}, r"contrast 1\.5"),
    ],
)
def test_impossible_settings_are_named(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddedDataset(tmp_path, **wrong)


def test_contrast_scales_the_brightness_of_the_textures(tmp_path: Path) -> None:
    """The same drawing: what moves is as it was, its grey values lie closer together."""
    full, low = (EmbeddedDataset(tmp_path / str(c), contrast=c, **SMALL) for c in (1.0, 0.5))
    grey = []
    for dataset in (full, low):
        dataset.prepare()
        frames = dataset.decode(dataset.clips("test")[0]).astype(np.float64) @ (0.299, 0.587, 0.114)
        grey.append(np.diff(frames))
    assert 0.4 < np.median(np.abs(grey[1])) / np.median(np.abs(grey[0])) < 0.6
    assert np.corrcoef(grey[0].ravel(), grey[1].ravel())[0, 1] > 0.9


def test_classes_and_frame_settings_are_known_before_rendering(tmp_path: Path) -> None:
    dataset = EmbeddedDataset(tmp_path / "nothing", seed=3)
    assert dataset.classes == sorted(MOTIONS) and len(dataset.classes) == 8
    assert dataset.frame_settings["rendering"]["seed"] == 3
    with pytest.raises(FileNotFoundError, match="prepare"):
        dataset.clips("test")


# --- what is in the pictures


def test_groups_look_alike_in_every_class(videos: dict[str, np.ndarray]) -> None:
    colours = {name: video[0].reshape(-1, 3).astype(float) for name, video in videos.items()}
    histograms = {name: np.histogramdd(c, bins=6, range=[(0, 256)] * 3)[0].ravel() for name, c in colours.items()}
    found = 0
    for name, histogram in histograms.items():
        others = [other for other in histograms if other.split("/")[0] != name.split("/")[0]]
        nearest = min(others, key=lambda other: np.abs(histograms[other] - histogram).sum())
        found += nearest[-7:-4] == name[-7:-4]
    assert found > 0.9 * len(videos)


def farneback(video: np.ndarray) -> np.ndarray:
    """(T-1, H, W, 2)."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    return np.stack([cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(grey)])


def test_flow_outlasts_random_noise(videos: dict[str, np.ndarray]) -> None:
    """The control of every attack: signs at random, at the paper's greatest ε, 9 grey levels."""
    rng = np.random.default_rng(0)
    moved, changed = [], []
    for video in list(videos.values())[::12]:
        noisy = video[:11] / 255 + 0.035 * rng.choice([-1, 1], video[:11].shape)
        flow = farneback(video[:11])
        moved.append(np.linalg.norm(flow, axis=-1).mean())
        changed.append(
            np.linalg.norm(farneback((noisy.clip(0, 1) * 255).round().astype(np.uint8)) - flow, axis=-1).mean()
        )
    assert np.mean(changed) < 0.5 * np.mean(moved)


def motion_features(video: np.ndarray) -> np.ndarray:
    """(fields, 5) means about the centre: u, v, divergence, curl (clockwise: v points down), rate of shear."""
    flow = farneback(video)
    u, v = flow[..., 0], flow[..., 1]
    (u_y, u_x), (v_y, v_x) = (np.gradient(field, axis=(1, 2)) for field in (u, v))
    centre = (slice(None), slice(16, 48), slice(16, 48))
    return np.stack([field[centre].mean((1, 2)) for field in (u, v, u_x + v_y, v_x - u_y, u_y + v_x)], 1)


@pytest.fixture(scope="module")
def fast_motions(fast_videos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name to (10, 5) of the first stack."""
    return {name: motion_features(video[:11]) for name, video in fast_videos.items()}


@pytest.fixture(scope="module")
def motions(videos: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name to (10, 5) of the first stack."""
    return {name: motion_features(video[:11]) for name, video in videos.items()}


@pytest.mark.parametrize(
    ("name", "feature", "sign"),
    [
        ("TranslateLeft", 0, -1),
        ("TranslateRight", 0, 1),
        ("ZoomIn", 2, 1),
        ("ZoomOut", 2, -1),
        ("RotateClockwise", 3, 1),
        ("RotateCounterclockwise", 3, -1),
    ],
)
def test_steady_motions_go_where_their_names_say(
    fast_motions: dict[str, np.ndarray], name: str, feature: int, sign: int
) -> None:
    along = {
        clip: sign * features[:, feature].mean()
        for clip, features in fast_motions.items()
        if clip.startswith(f"{name}/")
    }
    assert len(along) == 18
    assert all(value > 0 for value in along.values()), along
    assert np.median(list(along.values())) > (0.5 if feature == 0 else 0.03)


@pytest.mark.parametrize(("name", "feature"), [("Oscillate", 0), ("ShearHorizontal", 4)])
def test_swings_go_both_ways_within_a_stack(fast_motions: dict[str, np.ndarray], name: str, feature: int) -> None:
    for clip, features in fast_motions.items():
        if clip.startswith(f"{name}/"):
            swing = features[:, feature]
            assert swing.min() < 0 < swing.max(), clip
            # It moves more than anything else does in that way.
            assert np.ptp(swing) > np.median([np.ptp(other[:, feature]) for other in fast_motions.values()]), clip


def test_a_pose_has_one_distribution_whatever_the_class_and_the_moment() -> None:
    # Why no frame can tell the class: each part of the pose, at any step, is distributed as at the start of any clip.
    scenes = [draw_scene(np.random.default_rng([9, index]), (0.4, 2.5)) for index in range(4000)]

    def parts(motion: str, step: float, scenes: list) -> np.ndarray:
        poses = [pose_at(scene, MOTIONS[motion], step) for scene in scenes]
        return np.array([(p.angle, p.zoom, p.lean, *p.offsets.ravel(), *p.camera) for p in poses])

    reference = np.sort(parts("Oscillate", 0, scenes[:2000]), axis=0)
    assert np.ptp(reference[:, 0]) == pytest.approx(math.tau, rel=0.01)
    assert np.ptp(reference[:, 1]) == pytest.approx(OCTAVES, rel=0.01)
    assert np.ptp(reference[:, 3]) == pytest.approx(TILE, rel=0.01)
    for motion in MOTIONS:
        for step in (4.7, 21.0):
            values = np.sort(parts(motion, step, scenes[2000:]), axis=0)
            for column in range(values.shape[1]):
                # Kolmogorov and Smirnov's two-sample distance; 2.23 is its 1e-4 quantile.
                both = np.concatenate([values[:, column], reference[:, column]])
                ranks = [np.searchsorted(sample[:, column], both, side="right") for sample in (values, reference)]
                assert np.abs(ranks[0] - ranks[1]).max() / 2000 < 2.23 * math.sqrt(2 / 2000), (motion, step, column)


# --- what a classifier makes of them

MOMENTS = (0, 3, 6, 9, 12, 15, 18, 20)
"""Frames of a clip that classifiers of single frames are trained on."""

TESTED = (0, 9, 20)
"""And those they are tested on, each by itself: the trials are then independent, and an end of a clip cannot hide."""


def frame_features(frame: np.ndarray) -> np.ndarray:
    """(378,) of one frame: how strong its first and second derivatives are, sidewards, along and about the centre, by
    region and at two scales; a thumbnail; colours. That is how blur, grain, place, size and lean would show."""
    down, right = np.mgrid[-31.5:32, -31.5:32]
    distance = np.hypot(right, down)
    c, s = right / distance, down / distance
    rings = [(low <= distance) & (distance < high) for low, high in ((0, 10), (10, 18), (0, 18), (18, 25), (28, 46))]
    fields = [(abs(right - x) < 8) & (abs(down - y) < 8) for x in (-16, 0, 16) for y in (-16, 0, 16)]
    regions = np.stack([region.ravel() / region.sum() for region in rings + fields], 1)

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    features = [cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).ravel(), frame.mean((0, 1)), frame.std((0, 1))]
    for image in (grey, cv2.GaussianBlur(grey, (0, 0), 1)):
        x, y, xx, yy, xy = (
            cv2.Sobel(image, cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
        )
        along, about = c * x + s * y, c * y - s * x
        along2, about2 = c * c * xx + 2 * c * s * xy + s * s * yy, s * s * xx - 2 * c * s * xy + c * c * yy
        derivatives = np.stack([x, y, x + y, x - y, along, about, xx, yy, xy, along2, about2]).reshape(11, -1)
        features.append(np.log(derivatives**2 @ regions + 1).ravel())
    return np.concatenate(features)


def classify(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """Kernel ridge regression on the labels: predictions on `test`, and the share of `train` that it fits."""
    mean, deviation = train.mean(0), train.std(0) + 1e-9
    train, test = (train - mean) / deviation, (test - mean) / deviation

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distances = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-0.3 * distances / a.shape[1])

    of_train = kernel(train, train)
    weights = np.linalg.solve(of_train + 0.1 * np.eye(len(train)), np.eye(8)[labels] - 1 / 8)
    fit = ((of_train @ weights).argmax(1) == labels).mean()
    return (kernel(test, train) @ weights).argmax(1), fit


def chance_of(correct: int) -> float:
    """The probability that guessing among eight classes is right on so many of the 144 clips, or more."""
    return sum(math.comb(144, k) * (1 / 8) ** k * (7 / 8) ** (144 - k) for k in range(correct, 145))


def labels_of(clips: list[Clip]) -> np.ndarray:
    return np.array([clip.label for clip in clips])


def told_by_a_frame(by_split: dict[int, EmbeddedDataset], pictures: dict[str, np.ndarray]) -> np.ndarray:
    """(3,) how many of the 144 clips are told by one frame at each moment of TESTED, by classifiers trained on other
    groups. `pictures`: name to the frames at MOMENTS."""
    features = {name: np.stack([frame_features(frame) for frame in frames]) for name, frames in pictures.items()}
    tested = [MOMENTS.index(moment) for moment in TESTED]
    correct = np.zeros(len(TESTED), int)
    for dataset in by_split.values():
        train, test = dataset.clips("train"), dataset.clips("test")
        seen = np.concatenate([features[clip.name] for clip in train])
        unseen = np.concatenate([features[clip.name][tested] for clip in test])
        predictions, fit = classify(seen, labels_of(train).repeat(len(MOMENTS)), unseen)
        assert fit > 0.99
        correct += (predictions.reshape(len(test), -1) == labels_of(test)[:, None]).sum(0)
    return correct


def test_a_classifier_of_single_frames_is_at_chance(
    by_split: dict[int, EmbeddedDataset], videos: dict[str, np.ndarray]
) -> None:
    correct = told_by_a_frame(by_split, {name: video[list(MOMENTS)] for name, video in videos.items()})
    for moment, count in zip(TESTED, correct, strict=True):
        assert chance_of(count) > 0.01 / len(TESTED), f"frame {moment}: {count} of 144 right, 18 by chance"


def test_the_same_classifier_would_find_motion_blur(
    fast_by_split: dict[int, EmbeddedDataset], fast_videos: dict[str, np.ndarray]
) -> None:
    # The mean of three frames looks as if the shutter had been open for two steps.
    blurred = {
        name: np.stack(
            [video[(start := min(max(moment - 1, 0), 19)) : start + 3].mean(0).astype(np.uint8) for moment in MOMENTS]
        )
        for name, video in fast_videos.items()
    }
    for moment, count in zip(TESTED, told_by_a_frame(fast_by_split, blurred), strict=True):
        assert chance_of(count) < 0.01 / len(TESTED), f"frame {moment}: {count} of 144 right, 18 by chance"


def test_the_same_classifier_of_flow_is_far_above_chance(
    by_split: dict[int, EmbeddedDataset], motions: dict[str, np.ndarray]
) -> None:
    features = {name: np.concatenate([motion.mean(0), motion.std(0)]) for name, motion in motions.items()}
    correct = 0
    for dataset in by_split.values():
        train, test = dataset.clips("train"), dataset.clips("test")
        seen, unseen = (np.stack([features[clip.name] for clip in clips]) for clips in (train, test))
        predictions, _ = classify(seen, labels_of(train), unseen)
        correct += int((predictions == labels_of(test)).sum())
    assert correct > 0.9 * 144
