"""Durability: what is killed leaves whole clips or none, and the merged file does not tell who wrote what."""

import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attacks.examples import Example, load_examples, save_example
from attacks.realisability import merge_rows, rows_path, save_rows
from attacks.records import Cost, Record, RecordStore, read_records
from attacks.settings import check_settings, write_settings
from attacks.whole_file import append_lines, whole_lines, write_whole


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


def written(folder: Path, *, older: bool) -> list[bytes]:
    """The lines of a file with all clips; an older one's closing lines have no checksum."""
    store = RecordStore(folder)
    for clip in CLIPS:
        store.append(clip, rows(clip))
    lines = (folder / "records-rank0.jsonl").read_bytes().splitlines(keepends=True)
    for place in range(3, len(lines), 4) if older else ():
        closing = json.loads(lines[place])
        lines[place] = json.dumps({key: closing[key] for key in ("clip_complete", "rows", "costs")}).encode() + b"\n"
    return lines


def nothing(line: bytes) -> bytes:
    return b""


def torn(line: bytes) -> bytes:
    return line[: len(line) // 2] + b"\n"


def run_into_the_next(line: bytes) -> bytes:
    return line[: len(line) // 2]


def zeroed(line: bytes) -> bytes:
    return bytes(len(line) - 1) + b"\n"


def zeroed_to_its_end(line: bytes) -> bytes:
    return bytes(len(line))


@pytest.mark.parametrize("older", [False, True], ids=["checksum", "older"])
@pytest.mark.parametrize("damage", [nothing, torn, run_into_the_next, zeroed, zeroed_to_its_end])
@pytest.mark.parametrize("place", [4, 5, 6, 7], ids=["first row", "row", "last row", "closing line"])
def test_a_clip_with_a_damaged_line_is_named_and_made_again(
    place: int, damage: Callable[[bytes], bytes], older: bool, tmp_path: Path
) -> None:
    lines = written(tmp_path / "whole", older=older)
    expected = RecordStore(tmp_path / "whole").merge().read_bytes()
    lines[place] = damage(lines[place])
    path = tmp_path / "damaged" / "records-rank0.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(lines))
    # A closing line that runs on takes the first row of the next clip with it.
    lost = CLIPS[1:3] if place == 7 and damage in (run_into_the_next, zeroed_to_its_end) else CLIPS[1:2]
    with pytest.warns(UserWarning, match=r"records-rank0\.jsonl, lines \d+ to \d+: damaged rows") as warned:
        store = RecordStore(path.parent)
    assert [clip for clip in CLIPS if any(clip in str(warning.message) for warning in warned)] == lost
    assert store.done == set(CLIPS) - set(lost)
    assert {record.clip for record in read_records(store.merge())} == store.done
    for clip in lost:
        store.append(clip, rows(clip))
    assert store.merge().read_bytes() == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was made again: nothing is left to say
        assert RecordStore(path.parent).done == set(CLIPS)
    assert store.costs() == {}


def test_rows_of_another_clip_are_no_rows_of_this_one(tmp_path: Path) -> None:
    lines = written(tmp_path, older=True)
    lines[5] = lines[1]
    (tmp_path / "records-rank0.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="damaged rows"):
        assert RecordStore(tmp_path).done == set(CLIPS) - {CLIPS[1]}


def test_a_digit_that_changed_is_seen(tmp_path: Path) -> None:
    lines = written(tmp_path, older=False)
    lines[5] = lines[5].replace(b'"epsilon": 0.005', b'"epsilon": 0.015')
    (tmp_path / "records-rank0.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="damaged rows"):
        assert RecordStore(tmp_path).done == set(CLIPS) - {CLIPS[1]}


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RecordStore(tmp_path).append(CLIPS[0], [rows(CLIPS[0])[0]._replace(confidence=float("nan"))])
    assert RecordStore(tmp_path).done == set()


def test_clips_whose_names_differ_in_hyphens_and_slashes_have_files_of_their_own(tmp_path: Path) -> None:
    long = "Klasse/" + "ä" * 122  # the class and the name together do not fit a file's name
    clips = [
        f"{long}1",
        f"{long}2",
        "a/b",
        "a--b",
        "a-/b",
        "a/-b",
        "a---b",
        "a%2D%2Db",
        "a/-/b",
        "a-b",
        "a//b",
        "a----b",
        "a-/-b",
    ]
    files = {clip: rows_path(tmp_path, clip) for clip in clips}
    assert len(set(files.values())) == len(clips)
    assert files["a/b"].name == "a--b.json" and files["a-b"].name == "a-b.json"  # as earlier sweeps have them
    for clip in clips:
        save_rows(tmp_path, clip, [{"clip": clip, "attack": "x", "target": "t", "epsilon": 0.1, "stack": 0}])
    assert [row["clip"] for row in json.loads(merge_rows(tmp_path, clips).read_text())] == sorted(clips)
    arrays = {"frames": np.zeros((2, 1, 1, 3), np.uint8), "adversarial": {}, "frame": {}, "frame_at": {}}
    for clip in clips:
        save_example(tmp_path, Example(clip=clip, stack=0, epsilon=0.1, epsilons=[0.1], **arrays))
    assert sorted(example.clip for example in load_examples(tmp_path)) == sorted(clips)


def test_rows_of_another_clip_under_an_earlier_name_do_not_count(tmp_path: Path) -> None:
    save_rows(tmp_path, "a/b", [{"clip": "a--b", "attack": "x", "target": "t", "epsilon": 0.1, "stack": 0}])
    with pytest.raises(FileNotFoundError, match=r"a--b\.json: damaged, or of another clip than a/b"):
        merge_rows(tmp_path, ["a/b"])


def write_again_and_again(path: Path, text: str) -> None:
    for _ in range(300):
        write_whole(path, text)


def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, texts = tmp_path / "settings.json", ["a" * 50_000, "b" * 100_000]
    writers = [multiprocessing.Process(target=write_again_and_again, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= set(texts)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    """Not what a living process, or one of another machine, may be writing."""
    program = (
        "import os, sys; from pathlib import Path; from attacks.whole_file import appearing\n"
        "with appearing(Path(sys.argv[1])) as part: part.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for name in ("costs[1].json", "other.json"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], cwd=Path(__file__).parents[2])
    (left,) = tmp_path.glob(".costs*.part")
    alive = left.with_name(re.sub(r"-\d+\.", f"-{os.getppid()}.", left.name))
    elsewhere = left.with_name(re.sub(r"\.\w+-(\d+)\.", r".elsewhere-\1.", left.name))
    for part in (alive, elsewhere):
        part.write_text("half")
    write_whole(tmp_path / "costs[1].json", "whole")
    assert not left.exists() and alive.exists() and elsewhere.exists()
    assert len(list(tmp_path.glob(".other.json.*.part"))) == 1
    os.utime(elsewhere, (0, 0))
    write_whole(tmp_path / "costs[1].json", "whole")
    assert not elsewhere.exists() and (tmp_path / "costs[1].json").read_text() == "whole"


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


def test_options_that_decide_the_costs_are_part_of_a_sweep(tmp_path: Path) -> None:
    """Records count pairs; a folder of an earlier version, which did not store these options, is taken as it is."""
    settings = {"epsilons": [0.1], "engine": {"batch_size": 8}}
    write_settings(tmp_path, settings)
    with pytest.raises(ValueError, match=r"engine\.batch_size is 8 there and 4 now"):
        check_settings(tmp_path, {"epsilons": [0.1], "engine": {"batch_size": 4}})
    (tmp_path / "settings.json").write_text('{"epsilons": [0.1]}')
    check_settings(tmp_path, settings)


def test_a_folder_that_only_one_process_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="one folder that all of them see"):
        check_settings(tmp_path, {})
