import pytest

from datamodules.synthetic import EmbeddedDataset
from datamodules.ucf101 import UCF101


def test_names_are_matched_without_regard_to_case(small_tree):
    dataset = UCF101(small_tree)
    assert dataset.classes == ["Archery", "HandstandPushups", "Rowing"]
    assert [clip.label for clip in dataset.clips("train")] == [0, 0, 1, 1, 2, 2]
    assert dataset.clips("test")[1].group == "HandstandPushups_g01"
    assert all(clip.path.is_file() for subset in ("train", "test") for clip in dataset.clips(subset))


def test_the_suffix_is_matched_without_regard_to_case_too(small_tree):
    folder = small_tree / "UCF-101" / "Rowing"
    (folder / "v_Rowing_g02_c01.avi").rename(folder / "v_Rowing_g02_c01.AVI")
    dataset = UCF101(small_tree)
    assert dataset.clips("train")[4].path.name == "v_Rowing_g02_c01.AVI"
    assert dataset.clips("train")[4].name == "Rowing/v_Rowing_g02_c01"
    assert len(dataset.decode(dataset.clips("train")[4])) == 13


def test_files_that_differ_by_capitals_only_are_named(small_tree):
    folder = small_tree / "UCF-101" / "Rowing"
    (folder / "v_rowing_g02_c01.AVI").write_bytes((folder / "v_Rowing_g02_c01.avi").read_bytes())
    with pytest.raises(ValueError, match=r"v_Rowing_g02_c01\.avi and .*v_rowing_g02_c01\.AVI are one clip"):
        UCF101(small_tree).clips("train")


@pytest.mark.parametrize("dataset", [UCF101, EmbeddedDataset])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_frames": -1}, "max_frames -1: at least 1, or null for all"),
        ({"max_frames": 0}, "max_frames 0: "),
        ({"frame_rate": 0.0}, r"frame_rate 0\.0: .*above 0"),
        ({"frame_rate": -12.0}, r"frame_rate -12\.0: "),
        ({"frame_size": (0, 64)}, r"frame_size \(0, 64\): .*at least 1"),
        ({"frame_size": [64, -1]}, r"frame_size \(64, -1\): "),
    ],
)
def test_frame_options_out_of_range_are_named(tmp_path, dataset, option, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        dataset(tmp_path, **option)


def test_the_class_folder_itself_may_be_named(small_tree):
    assert len(UCF101(small_tree / "UCF-101").clips("train")) == 6


def test_missing_clips_are_counted_and_named(small_tree):
    for file in (small_tree / "UCF-101" / "Rowing").glob("*_g0[23]_*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 9 clips .*(?s:.)*v_Rowing_g02_c01(?s:.)*allow_missing: true"):
        UCF101(small_tree).clips("train")


def test_a_partial_tree_is_used_on_purpose_and_said(small_tree):
    for file in (small_tree / "UCF-101" / "Rowing").glob("*_g0[23]_*"):
        file.unlink()
    (small_tree / "UCF-101" / "Archery" / "v_Archery_g02_c01.avi").unlink()
    dataset = UCF101(small_tree, allow_missing=True)
    assert dataset.classes == ["Archery", "HandstandPushups"]  # Rowing has no train clip left
    assert "2 of 3 classes (Archery, HandstandPushups), 3 of 6 train clips, 2 of 3 test clips" in dataset.summary()


def test_chosen_classes_need_only_their_own_clips(small_tree):
    for file in (small_tree / "UCF-101" / "Rowing").glob("*.avi"):
        file.unlink()
    dataset = UCF101(small_tree, classes=["handstandpushups", "Archery"])
    assert dataset.classes == ["Archery", "HandstandPushups"]
    assert len(dataset.clips("train")) == 4


def test_bad_input_is_named(small_tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        UCF101(tmp_path / "absent").clips("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no classInd\.txt in .*empty"):
        UCF101(tmp_path / "empty").clips("train")
    with pytest.raises(FileNotFoundError, match=r"empty: holds no class folder with \.avi files"):
        UCF101(tmp_path / "empty", lists=small_tree / "ucfTrainTestlist").clips("train")
    with pytest.raises(ValueError, match=r"'Arcery' is not in .*; near: Archery"):
        UCF101(small_tree, classes=["Arcery", "Rowing"]).clips("train")
    with pytest.raises(ValueError, match="split 4"):
        UCF101(small_tree, split=4).clips("train")  # type: ignore[arg-type]


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_official_splits(ucf101_root, split, train, test):
    """The sizes that UCF-101's authors publish; no group on both sides; every clip on one side."""
    dataset = UCF101(ucf101_root, split=split, allow_missing=True)
    listed = dataset._listed
    assert (len(listed["train"]), len(listed["test"])) == (train, test)
    assert len({name.lower() for names in listed.values() for name in names}) == 13320
    groups = [{clip.group for clip in dataset.clips(subset)} for subset in ("train", "test")]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


def test_the_real_partial_tree(ucf101_root):
    dataset = UCF101(ucf101_root, allow_missing=True)
    files = sum(1 for _ in (ucf101_root / "UCF-101").glob("*/*.avi"))
    assert len(dataset.clips("train")) + len(dataset.clips("test")) == files
    with pytest.raises(FileNotFoundError, match=f"{13320 - files} of 13320 clips"):
        UCF101(ucf101_root).clips("train")
