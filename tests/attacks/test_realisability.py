"""Rounding inside the ball as it must be; each medium's verdict as the system gives it on frames made by hand."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.one_shot import OneShot
from attacks.realisability import (
    MEDIA,
    merge_rows,
    realisability,
    round_inside_ball,
    rows_path,
    save_rows,
    to_bytes,
    to_frames,
)
from attacks.records import read_records
from attacks.video_files import read_video, write_h264, write_lossless

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))
EPSILONS = (0.001, 1 / 255, 0.005, 2 / 255, 0.01, 0.02, 0.035, 0.2)


def levels(count: int = 4000) -> Tensor:
    """8-bit values with both ends among them."""
    values = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0))
    values[:100], values[100:200] = 0, 255
    return values.float() / 255


def inside(clean: Tensor, epsilon: float) -> Tensor:
    """Anywhere in the ball, and on its surface as an attack by signs leaves it."""
    generator = torch.Generator().manual_seed(1)
    offset = 2 * torch.rand(clean.shape, generator=generator) - 1
    offset[::2] = offset[::2].sign()
    return (clean + epsilon * offset).clamp(0, 1)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_rounding_inside_the_ball(epsilon: float) -> None:
    clean = levels()
    adversarial = inside(clean, epsilon)
    rounded = round_inside_ball(clean, adversarial, epsilon)
    assert torch.equal(rounded, (rounded * 255).round() / 255), "8-bit"
    assert rounded.min() >= 0 and rounded.max() <= 1
    assert (rounded.double() - clean.double()).abs().max() <= epsilon + 1e-7
    assert torch.equal(round_inside_ball(clean, rounded, epsilon), rounded), "idempotent"
    # No level inside the ball lies nearer: by trying all 256.
    every = torch.arange(256, dtype=torch.float64) / 255
    allowed = (every[None] - clean.double()[:, None]).abs() <= epsilon + 1e-9
    distance = (every[None] - adversarial.double()[:, None]).abs().masked_fill(~allowed, torch.inf)
    assert ((rounded - adversarial).abs().double() <= distance.amin(1) + 1e-6).all()


@pytest.mark.parametrize("epsilon", [0.0005, 0.0019])
def test_below_half_a_level_nothing_is_left(epsilon: float) -> None:
    clean = levels()
    assert torch.equal(round_inside_ball(clean, inside(clean, epsilon), epsilon), clean)


def test_plain_rounding_would_leave_the_ball() -> None:
    """8.925 levels round to 9, which is further than 0.035: the ninth level is not taken."""
    clean = torch.full((4,), 100 / 255)
    adversarial = clean + 0.035
    assert torch.equal((adversarial * 255).round(), torch.full((4,), 109.0))
    assert torch.equal((round_inside_ball(clean, adversarial, 0.035) * 255).round(), torch.full((4,), 108.0))


def test_clean_frames_of_no_8_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="not 8-bit.*`realise: 0`"):
        round_inside_ball(torch.full((3,), 0.3), torch.full((3,), 0.31), 0.01)


def test_bytes_and_frames_are_inverse() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 9, 3), dtype=np.uint8)
    frames = to_frames(images, torch.zeros(()))
    assert frames.shape == (2, 3, 3, 8, 9)
    assert np.array_equal(to_bytes(frames), images)


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
