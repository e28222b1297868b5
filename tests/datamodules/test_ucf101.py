import pytest

from datamodules.official_lists import read_classes, read_clips, same
from datamodules.synthetic import EmbeddedDataset
from datamodules.ucf101 import UCF101

SUBSETS = ("train", "test")


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
    with pytest.raises(FileNotFoundError, match="empty: holds no class folder with videos"):
        UCF101(tmp_path / "empty", lists=small_tree / "ucfTrainTestlist").clips("train")
    with pytest.raises(ValueError, match=r"'Arcery' is not in .*; near: Archery"):
        UCF101(small_tree, classes=["Arcery", "Rowing"]).clips("train")
    with pytest.raises(ValueError, match="split 4"):
        UCF101(small_tree, split=4).clips("train")  # type: ignore[arg-type]


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_official_splits(ucf101_root, split, train, test):
    """The sizes that UCF-101's authors publish; no group on both sides; every clip on one side."""
    lists = ucf101_root / "ucfTrainTestlist"
    classes = read_classes(lists / "classInd.txt")
    listed = [read_clips(lists / f"{subset}list{split:02d}.txt", classes, lambda _: False) for subset in SUBSETS]
    assert list(map(len, listed)) == [train, test]
    assert len({same(clip.name) for clips in listed for clip in clips}) == 13320
    dataset = UCF101(ucf101_root, split=split, allow_missing=True)
    groups = [{clip.group for clip in dataset.clips(subset)} for subset in ("train", "test")]
    assert groups[0] and groups[1] and not groups[0] & groups[1]


def test_the_real_partial_tree(ucf101_root):
    dataset = UCF101(ucf101_root, allow_missing=True)
    files = sum(1 for _ in (ucf101_root / "UCF-101").glob("*/*.avi"))
    assert len(dataset.clips("train")) + len(dataset.clips("test")) == files
    with pytest.raises(FileNotFoundError, match=f"{13320 - files} of 13320 clips"):
        UCF101(ucf101_root).clips("train")


def tree(folder, names, *, classes=None, train=None, test=None, suffix=".avi", encoding="utf-8"):
    """Empty files of four clips a class, and their lists: clips 1 and 2 are tested on."""
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    clips = {name: [f"v_{name}_g{k:02d}_c01" for k in range(1, 5)] for name in names}
    for name, stems in clips.items():
        (folder / "UCF-101" / name).mkdir(parents=True)
        for stem in stems:
            (folder / "UCF-101" / name / f"{stem}{suffix}").touch()
    lines = {
        "classInd": classes or [f"{number} {name}" for number, name in enumerate(names, 1)],
        "trainlist01": train
        or [f"{name}/{stem}{suffix} {n}" for n, name in enumerate(names, 1) for stem in clips[name][2:]],
        "testlist01": test or [f"{name}/{stem}{suffix}" for name in names for stem in clips[name][:2]],
    }
    for file, content in lines.items():
        (lists / f"{file}.txt").write_bytes("".join(f"{line}\n" for line in content).encode(encoding))
    return folder


def clips_of(dataset):
    return {subset: [(clip.name, clip.label) for clip in dataset.clips(subset)] for subset in SUBSETS}


NAMES = ["Left", "air guitar", "Ägypten tanzt", "10 pin bowling"]


def lines(sep="/", suffix=".avi", first=1, prefix=""):
    return {
        "train": [
            f"{prefix}{n}{sep}v_{n}_g{k:02d}_c01{suffix} {i}" for i, n in enumerate(NAMES, first) for k in (3, 4)
        ],
        "test": [f"{prefix}{n}{sep}v_{n}_g{k:02d}_c01{suffix}" for n in NAMES for k in (1, 2)],
    }


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"suffix": ".MP4"},
        {**lines(sep="\\")},
        {**lines(prefix="./")},
        {**lines(suffix="")},
        {**lines(suffix=".mp4")},
        {**lines(first=0)},
        {"classes": NAMES},
        {"classes": [f"{n}\t{name}" for n, name in enumerate(NAMES)], **lines(first=0)},
        {"classes": [f"{n} {name}" for n, name in enumerate(NAMES, 11)], **lines(first=11)},
    ],
    ids=lambda written: ",".join(written) or "as UCF-101's",
)
def test_lists_of_other_kinds_give_the_same_clips(tmp_path, written):
    dataset = UCF101(tree(tmp_path, NAMES, **written))
    assert dataset.classes == NAMES
    assert clips_of(dataset) == {
        subset: [(f"{n}/v_{n}_g{k:02d}_c01", label) for label, n in enumerate(NAMES) for k in numbers]
        for subset, numbers in zip(SUBSETS, ((3, 4), (1, 2)), strict=True)
    }
    assert dataset.account() == []


def test_names_that_end_in_numbers_keep_them(tmp_path):
    names = ["Left", "Right"]
    root = tree(tmp_path, names, train=["Left/a 1", "Left/a 2 1", "Right/b 2"], test=["Left/a 3", "Right/b 7"])
    for file in ("Left/a 1", "Left/a 2", "Left/a 3", "Right/b", "Right/b 7"):
        (root / "UCF-101" / f"{file}.avi").touch()
    found = clips_of(UCF101(root))
    assert found == {
        "train": [("Left/a 1", 0), ("Left/a 2", 0), ("Right/b", 1)],
        "test": [("Left/a 3", 0), ("Right/b 7", 1)],
    }


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            {"train": ["Left/a.avi 1", "", "Lefft/b.avi 1"]},
            r"trainlist01\.txt line 3: class 'Lefft' is not in .*near: Left",
        ),
        ({"test": ["Left/a.avi", "nothing"]}, r"testlist01\.txt line 2: 'nothing' is no clip"),
        ({"test": ["train/Left/a.avi"]}, r"testlist01\.txt line 1: 'train/Left/a\.avi' is no clip"),
        ({"train": ["Left/a.avi 1", "Right/b.avi 3"]}, r"trainlist01\.txt line 2: label 3, .*'Right/b' the number 2"),
        ({"classes": ["1 Left", "2 Right", "3 left"]}, r"classInd\.txt line 3: class 'left' stands in line 1, too"),
        (
            {"classes": ["1 Left", "2 R\u00e9glage"], "encoding": "latin-1"},
            r"classInd\.txt line 2: is no utf-8 text .*0xe9",
        ),
        ({"encoding": "utf-16-le"}, r"classInd\.txt line 1: holds a zero byte"),
    ],
)
@pytest.mark.parametrize("allow_missing", [False, True])
def test_lines_that_cannot_be_read_are_named(tmp_path, written, message, allow_missing):
    root = tree(tmp_path, ["Left", "Right"], **written)
    with pytest.raises(ValueError, match=message):
        UCF101(root, allow_missing=allow_missing).clips("train")


@pytest.mark.parametrize(
    ("written", "where"),
    [
        (
            {"test": ["Left/v_Left_g03_c01.avi", "Right/v_Right_g01_c01.avi"]},
            r"trainlist01\.txt line 1 and testlist01\.txt line 1",
        ),
        (
            {"test": ["Left/V_left_g03_c01.AVI", "Right/v_Right_g01_c01.avi"]},
            r"trainlist01\.txt line 1 and testlist01\.txt line 1",
        ),
        (
            {"train": ["Left/v_Left_g03_c01.avi 1", "Left/v_Left_g03_c01.mp4 1"]},
            r"trainlist01\.txt line 1 and trainlist01\.txt line 2",
        ),
    ],
)
def test_a_clip_that_is_listed_twice_is_refused(tmp_path, written, where):
    root = tree(tmp_path, ["Left", "Right"], **written)
    with pytest.raises(ValueError, match=rf"1 clips are listed twice(?s:.)*(?i:v_left_g03_c01): {where}"):
        UCF101(root, allow_missing=True).clips("train")


def test_what_is_not_used_is_counted_and_named(tmp_path):
    root = tree(tmp_path, ["Left", "Right", "Up", "Down"])
    videos = root / "UCF-101"
    (videos / "Left" / "v_Left_g09_c01.mp4").touch()
    (videos / "Left" / "notes.txt").touch()
    (videos / "Left" / "more").mkdir()
    (videos / "Left" / "more" / "x.avi").touch()
    (videos / "v_Left_g10_c01.avi").touch()
    (videos / "Sideways").mkdir()
    (videos / "Sideways" / "y.avi").touch()
    (videos / "Right" / "v_Right_g03_c01.avi").unlink()
    for file in (videos / "Down").iterdir():
        file.unlink()
    for file in (videos / "Up").glob("*_g0[12]_*"):
        file.unlink()
    dataset = UCF101(root, allow_missing=True)
    assert dataset.classes == ["Left", "Right"]
    assert dataset.account() == [
        "not used: 1 classes have no video here: Down",
        "not used: 3 listed clips of the other classes are not here: Right/v_Right_g03_c01, Up/v_Up_g01_c01, "
        "Up/v_Up_g02_c01",
        "not used: 2 clips are of classes that have no train clip here, or no test clip: Up/v_Up_g03_c01, "
        "Up/v_Up_g04_c01",
        "not used: 1 videos are in no list of split 1: Left/v_Left_g09_c01.mp4",
        "not used: 1 videos lie in no class's folder: v_Left_g10_c01.avi",
        "not used: 2 folders are no class's: Left/more (1 videos), Sideways (1 videos)",
        "not used: 1 files are no videos by their suffix: Left/notes.txt",
    ]
    assert "Up/v_Up_g01_c01, … and 1 more" in dataset.account(2)[1]


def test_a_class_without_clips_in_a_list_is_an_error_unless_wanted(tmp_path):
    root = tree(tmp_path, ["Left", "Right", "Up"], test=["Left/v_Left_g01_c01.avi", "Right/v_Right_g01_c01.avi"])
    with pytest.raises(ValueError, match=r"lists no train clip or no test clip of 1 of its classes: Up\. List some"):
        UCF101(root).clips("train")
    assert UCF101(root, classes=["Left", "Right"]).classes == UCF101(root, allow_missing=True).classes


def test_the_advice_on_a_broken_clip_is_the_end_of_it(small_tree):
    """Taken out of the lists, it is named as unlisted, and no longer an error."""
    broken = small_tree / "UCF-101" / "Rowing" / "v_Rowing_g02_c01.avi"
    broken.write_bytes(broken.read_bytes()[:500])
    lists = small_tree / "ucfTrainTestlist"
    for file in lists.glob("*list*.txt"):
        file.write_text("".join(line for line in file.read_text().splitlines(True) if broken.stem not in line))
    dataset = UCF101(small_tree)
    clips, faults = dataset.available()
    assert len(clips) == 8 and not faults
    assert dataset.account() == ["not used: 1 videos are in no list of split 1: Rowing/v_Rowing_g02_c01.avi"]


def test_clips_whose_names_tell_no_group_are_groups_of_their_own(tmp_path):
    names = ["Left", "Right"]
    files = {name: [f"{name}/{k:03d}.mp4" for k in range(4)] for name in names}
    root = tree(
        tmp_path,
        names,
        train=[f"{file} {n}" for n, name in enumerate(names, 1) for file in files[name][:2]],
        test=[file for name in names for file in files[name][2:]],
    )
    for file in (file for of_class in files.values() for file in of_class):
        (root / "UCF-101" / file).touch()
    groups = [clip.group for clip in UCF101(root).clips("test")]
    assert groups == ["Left/002", "Left/003", "Right/002", "Right/003"]


def test_accents_are_the_same_however_the_file_system_writes_them(tmp_path):
    root = tree(tmp_path, ["Caf\u00e9", "Right"])
    (root / "UCF-101" / "Caf\u00e9").rename(root / "UCF-101" / "Cafe\u0301")
    assert UCF101(root).classes == ["Caf\u00e9", "Right"]


def test_the_trees_that_once_lost_clips(odd_cases):
    assert len(UCF101(odd_cases / "trees" / "spaces").classes) == 4
    assert len(UCF101(odd_cases / "trees" / "bom").clips("train")) == 6
    assert [clip.path.suffix for clip in UCF101(odd_cases / "trees" / "mixed_ext").clips("test")][-1] == ".mp4"
    with pytest.raises(ValueError, match="2 clips are listed twice"):
        UCF101(odd_cases / "trees" / "leak").clips("train")


def test_clips_are_measured_as_they_decode(small_tree):
    for rate, size in ((12.0, None), (None, None), (25.0, (24, 32))):
        dataset = UCF101(small_tree, frame_rate=rate, frame_size=size)
        clip = dataset.clips("test")[0]
        frames = dataset.decode(clip)
        assert dataset.measure(clip) == (len(frames), frames.shape[1:3])
