"""Each medium's verdict as the system gives it on frames made by hand."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attacks.eight_bit import round_inside_ball, to_bytes, to_frames
from attacks.one_shot import OneShot
from attacks.realisability import MEDIA, merge_rows, realisability, rows_path, save_rows
from attacks.records import read_records
from attacks.video_files import read_video, write_h264, write_lossless

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))


@pytest.fixture(scope="module")
def rows() -> tuple[list[dict], Tensor, Tensor, torch.nn.Module]:
    """Two stacks under one-shot at two ε, through every medium."""
    system, frames, label = toy.ToySystem(), toy.moving_texture(0, seed=2, stacks=2), 0
    result = OneShot()(system, frames, torch.tensor([label, label]), (0.0125, 0.025))
    found = realisability(
        system,
        frames,
        result,
        epsilons=(0.0125, 0.025),
        label=label,
        clip="Right/v",
        first_stack=4,
        attack="one_shot",
        target="flownet2",
        batch_size=3,
    )
    return found, frames, result.adversarial, system


def test_rows_say_what_the_system_says_of_each_medium(rows: tuple, tmp_path: Path) -> None:
    found, frames, adversarial, system = rows
    assert [row["medium"] for row in found] == list(MEDIA) * 4
    assert {(row["epsilon"], row["stack"]) for row in found} == {(e, b) for e in (0.0125, 0.025) for b in (4, 5)}
    by_place = {(row["epsilon"], row["stack"] - 4, row["medium"]): row for row in found}
    for (epsilon, b, medium), row in by_place.items():
        stack = adversarial[[0.0125, 0.025].index(epsilon), b]
        if medium == "8-bit in ball":
            seen = round_inside_ball(frames[b], stack, epsilon)
        elif medium == "ffv1":
            write_lossless(tmp_path / "a.mkv", to_bytes(stack))
            seen = to_frames(read_video(tmp_path / "a.mkv"), stack)
            assert torch.equal(seen, (stack * 255).round() / 255)
        elif medium.startswith("h264"):
            write_h264(tmp_path / "a.mkv", to_bytes(stack), crf=int(medium.split()[-1]))
            seen = to_frames(read_video(tmp_path / "a.mkv"), stack)
        else:
            seen = stack if medium == "float" else (stack * 255).round() / 255
        with torch.no_grad():
            assert row["prediction"] == int(system(seen[None]).argmax())
        assert row["correct"] == (row["prediction"] == row["label"] == 0)


def test_lossless_video_says_what_memory_says(rows: tuple) -> None:
    said = {medium: [row["prediction"] for row in rows[0] if row["medium"] == medium] for medium in MEDIA}
    assert said["ffv1"] == said["8-bit"]


@pytest.mark.slow
def test_a_sweep_leaves_its_rows_and_the_clean_control(tmp_path: Path) -> None:
    toy.run(tmp_path, videos=5, realise=2, examples=1, targets={})
    rows = json.loads((tmp_path / "realisability.json").read_text())
    assert {row["clip"] for row in rows} == {"Right/v_Right_g00_c01", "Left/v_Left_g00_c01"}
    assert {row["target"] for row in rows} == {"flownet2"}
    records = {
        (r.clip, r.stack, r.attack, r.epsilon): r
        for r in read_records(tmp_path / "records.jsonl")
        if r.level == "stack"
    }
    expected = {key for key in records if key[0] in {row["clip"] for row in rows}}
    assert {(row["clip"], row["stack"], row["attack"], row["epsilon"]) for row in rows} == expected
    assert len(rows) == len(expected) * len(MEDIA)
    for row in rows:
        record = records[row["clip"], row["stack"], row["attack"], row["epsilon"]]
        assert row["attacked"] == record.attacked
        if row["medium"] == "float":
            assert (row["prediction"], row["correct"]) == (record.prediction, record.correct)
        if row["medium"] == "8-bit":
            assert row["correct"] == record.correct_8bit
        if row["attack"] == "clean" and row["medium"] in MEDIA[:4]:
            assert row["prediction"] == record.prediction


@pytest.mark.slow
def test_rows_that_are_missing_are_made_without_other_records(tmp_path: Path) -> None:
    toy.run(tmp_path, videos=3, realise=1, targets={})
    before = {name: (tmp_path / name).read_bytes() for name in ("records.jsonl", "realisability.json")}
    rows_path(tmp_path, "Right/v_Right_g00_c01").unlink()
    toy.run(tmp_path, videos=3, realise=1, targets={})
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_the_order_of_a_clips_rows_is_not_that_of_its_portions(tmp_path: Path) -> None:
    rows = [
        {"clip": "a/b", "attack": attack, "target": "t", "epsilon": epsilon, "stack": stack, "medium": medium}
        for stack in (1, 0)
        for attack in ("x", "clean")
        for epsilon in (0.2, 0.1)
        for medium in ("float", "8-bit")
    ]
    save_rows(tmp_path, "a/b", rows)
    (tmp_path / "twice").mkdir()
    save_rows(tmp_path / "twice", "a/b", rows[8:] + rows[:8])
    assert rows_path(tmp_path, "a/b").read_bytes() == rows_path(tmp_path / "twice", "a/b").read_bytes()
    assert json.loads(merge_rows(tmp_path, ["a/b"]).read_text())[0] == rows[14]
    with pytest.raises(FileNotFoundError, match=r"a--c\.json: no such file; the sweep, started again"):
        merge_rows(tmp_path, ["a/b", "a/c"])
