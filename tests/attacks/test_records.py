"""Durability: what is killed leaves whole clips or none, and the merged file does not tell who wrote what."""

import json
import random
from pathlib import Path

import pytest

from attacks.records import Cost, Record, RecordStore, read_records
from attacks.settings import check_settings, write_settings
from attacks.whole_file import append_lines, whole_lines


def rows(clip: str, count: int = 3) -> list[Record]:
    draw = random.Random(clip)
    return [
        Record(
            level="stack",
            clip=clip,
            group=clip[:-4],
            stack=stack,
            label=1,
            system="flownet2",
            target="tvl1",
            attack="one_shot",
            epsilon=0.005,
            clean_prediction=1,
            clean_confidence=draw.random(),
            prediction=draw.randrange(3),
            confidence=draw.random(),
            attacked=True,
            success=draw.random() < 0.5,
            correct=True,
            correct_8bit=None,
            frames_perturbed=2,
            frame_order=[4, 1],
            stacks_perturbed=None,
            margin=draw.gauss(0, 1),
            steps=[[4, 1, draw.random(), 2.5], [1, 0, draw.random(), -0.5]],
            pair_forwards=4,
            pair_backwards=0,
        )
        for stack in range(count)
    ]


CLIPS = [f"Bowling/v_Bowling_g0{g}_c0{c}" for g in (1, 2) for c in (1, 2, 3)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for clip in reversed(CLIPS):
        store.append(clip, rows(clip))
    assert list(read_records(store.merge())) == [row for clip in sorted(CLIPS) for row in rows(clip)]
    assert RecordStore(tmp_path).done == set(CLIPS)


def test_a_file_cut_anywhere_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = RecordStore(tmp_path / "whole")
    for clip in CLIPS:
        whole.append(clip, rows(clip))
    expected = whole.merge().read_bytes()
    written = (tmp_path / "whole" / "records-rank0.jsonl").read_bytes()
    ends = [place + 1 for place in range(len(written)) if written[place : place + 1] == b"\n"]
    closed = ends[3::4]  # three rows and a closing line a clip
    cuts = {0, *ends, *(end - 1 for end in ends), *random.Random(0).sample(range(len(written)), 25)}
    for cut in sorted(cuts):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "records-rank0.jsonl").write_bytes(written[:cut])
        store = RecordStore(folder)
        assert store.done == set(CLIPS[: sum(end <= cut for end in closed)]), cut
        for clip in CLIPS:
            if clip not in store.done:
                store.append(clip, rows(clip))
        assert store.merge().read_bytes() == expected, cut


def test_lines_cut_anywhere_go_on_with_a_fresh_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert whole_lines(path) == []
    for cut in range(len("one\ntwo\n") + 1):
        path.write_text("one\ntwo\n"[:cut])
        whole = ["one", "two"][: (cut >= 4) + (cut >= 8)]
        assert whole_lines(path) == whole, cut
        append_lines(path, ["three", "four"])
        assert whole_lines(path) == [*whole, "three", "four"], cut


def test_the_torn_clip_of_another_process_is_not_counted(tmp_path: Path) -> None:
    other = RecordStore(tmp_path, rank=1)
    other.append(CLIPS[0], rows(CLIPS[0]))
    path = tmp_path / "records-rank1.jsonl"
    path.write_bytes(path.read_bytes() + json.dumps(rows(CLIPS[1])[0]._asdict()).encode() + b"\n")
    store = RecordStore(tmp_path, rank=0)  # the run goes on with one process; nobody repairs rank 1's file
    assert store.done == {CLIPS[0]}
    store.append(CLIPS[1], rows(CLIPS[1]))
    assert list(read_records(store.merge())) == [*rows(CLIPS[0]), *rows(CLIPS[1])]


def test_merged_bytes_do_not_depend_on_who_wrote(tmp_path: Path) -> None:
    one = RecordStore(tmp_path / "one")
    for clip in CLIPS:
        one.append(clip, rows(clip))
    three = [RecordStore(tmp_path / "three", rank=rank) for rank in range(3)]
    for place, clip in enumerate(reversed(CLIPS)):
        three[place % 3].append(clip, rows(clip))
    three[1].append(CLIPS[0], rows(CLIPS[0]))  # the sampler's padding: the clip was another process's
    assert three[0].merge().read_bytes() == one.merge().read_bytes()


def test_costs_count_each_clip_once(tmp_path: Path) -> None:
    first, second = RecordStore(tmp_path, rank=0), RecordStore(tmp_path, rank=1)
    first.append(CLIPS[0], rows(CLIPS[0]), {"one_shot/tvl1": Cost(1.5, 20, 3), "clean/tvl1": Cost(1, 10, 10)})
    second.append(CLIPS[1], rows(CLIPS[1]), {"one_shot/tvl1": Cost(2, 7, 1)})
    second.append(CLIPS[0], rows(CLIPS[0]), {"one_shot/tvl1": Cost(50, 20, 3)})
    assert first.costs() == {"clean/tvl1": Cost(1, 10, 10), "one_shot/tvl1": Cost(3.5, 27, 4)}


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(rows(CLIPS[0])[0]._asdict()) + '\n{"clip": "Bowling"}\n')
    with pytest.raises(ValueError, match=r"records\.jsonl, line 2: not a record"):
        list(read_records(path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_records(tmp_path / "nowhere.jsonl"))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"epsilons": [0.005, 0.01], "attacks": {"noise": {"seed": 0}}, "dataset": {"split": 1, "size": None}}
    write_settings(tmp_path, settings)
    check_settings(tmp_path, settings)
    write_settings(tmp_path, {"epsilons": []})  # the first sweep's stay
    check_settings(tmp_path, settings)
    changed = {"epsilons": [0.005], "attacks": {"noise": {"seed": 3}, "mine": {"steps": 2}}, "dataset": {"split": 1}}
    with pytest.raises(ValueError) as error:
        check_settings(tmp_path, changed)
    message = str(error.value)
    assert "epsilons is [0.005, 0.01] there and [0.005] now" in message
    assert "attacks.noise.seed is 0 there and 3 now" in message
    assert "attacks.mine.steps is absent there and 2 now" in message
    assert "dataset.size is null there and absent now" in message
    assert "dataset.split" not in message
    assert str(tmp_path) in message


def test_a_folder_that_only_one_process_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="one folder that all of them see"):
        check_settings(tmp_path, {})
