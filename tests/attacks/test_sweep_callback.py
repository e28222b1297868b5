"""Whole sweeps of a toy system by a Trainer: killed, resumed, in two processes, repeated, refused, and in W&B."""

import gc
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

from attacks.one_shot import OneShot
from attacks.records import NO_GRADIENT, RecordStore, read_records
from attacks.report.results import CONTROLS
from attacks.sweep import Sweep
from attacks.sweep_callback import EPSILONS, SweepCallback

SCRIPT = Path(__file__).with_name("toy_sweep.py")
toy = SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="toy_sweep"))
DERIVED = [
    "records.jsonl",
    "realisability.json",
    "results.json",
    "tables.txt",
    "tables/table1.csv",
    "tables/table2.csv",
    "settings.json",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep in one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    toy.run(folder)
    return folder


def start(folder: Path, *options: str) -> subprocess.Popen:
    """The same sweep in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), *options],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(timeout=180) == 0, (folder.parent / f"{folder.name}.log").read_text()[-3000:]


def kill_midway(process: subprocess.Popen, folder: Path) -> int:
    """SIGKILL at a random moment once something is written; how many clips were complete."""
    for _ in range(1800):
        if process.poll() is not None or any(p.stat().st_size for p in folder.glob("records-rank*.jsonl")):
            break
        time.sleep(0.1)
    time.sleep(random.SystemRandom().uniform(0, 1))
    assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()[-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "records.jsonl").exists(), "it was killed too late to test anything"
    return sum(path.read_bytes().count(b"clip_complete") for path in folder.glob("records-rank*.jsonl"))


def assert_same(folder: Path, whole: Path) -> None:
    for name in DERIVED:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    examples = [sorted(path.name for path in (root / "examples").iterdir()) for root in (folder, whole)]
    assert examples[0] == examples[1]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_equal_one(processes: int, whole: Path, tmp_path: Path) -> None:
    """11 videos on two or three processes: the sampler gives one of them twice."""
    folder = tmp_path / "several"
    finish(start(folder, "--devices", str(processes)), folder)
    assert_same(folder, whole)
    counts = [path.read_bytes().count(b"clip_complete") for path in folder.glob("records-rank*.jsonl")]
    assert counts == [12 // processes] * processes


def test_a_killed_sweep_resumes_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    done = kill_midway(start(folder, "--seconds", "0.3"), folder)
    assert 1 <= done < 11
    toy.run(folder)
    assert_same(folder, whole)
    assert (folder / "records-rank0.jsonl").read_bytes().count(b"clip_complete") == 11


@pytest.mark.slow
def test_a_process_with_little_to_do_waits_for_the_others(tmp_path: Path) -> None:
    """Lightning's own collectives give up after two seconds here, as they do after half an hour; one process takes
    eight seconds longer than the other."""
    folder = tmp_path / "uneven"
    options = ["--devices", "2", "--videos", "4", "--realise", "0", "--odd-seconds", "4", "--patience", "2"]
    finish(start(folder, *options), folder)
    assert len({record.clip for record in read_records(folder / "records.jsonl")}) == 4


@pytest.mark.parametrize(
    ("where", "error"),
    [
        pytest.param("attack", "no space left for records", marks=pytest.mark.slow),
        ("report", "no space left for the report"),
    ],
)
def test_an_error_in_one_process_ends_all(where: str, error: str, tmp_path: Path) -> None:
    folder = tmp_path / "failing"
    process = start(folder, "--devices", "2", "--videos", "4", "--realise", "0", "--fail", where)
    try:
        assert process.wait(timeout=60) != 0
        for _ in range(150):  # Lightning looks after its processes every five seconds
            if not alive(process.pid):
                break
            time.sleep(0.1)
        assert not alive(process.pid), "a process waits for one that has failed"
        log = (tmp_path / "failing.log").read_text()
        assert f"OSError: {error}" in log
        if where == "report":
            assert f"RuntimeError: the first process failed, and this one ends with it: OSError: {error}" in log
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def alive(group: int) -> bool:
    """Whether a process of this group lives."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(line.split()[0] == str(group) and line.split()[1][0] != "Z" for line in found.splitlines())


@pytest.mark.slow
def test_two_processes_killed_one_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    done = kill_midway(start(folder, "--devices", "2", "--seconds", "0.5"), folder)
    assert 1 <= done < 12
    toy.run(folder)
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments(whole: Path, tmp_path: Path) -> None:
    """While it starts, attacks or reports; a sweep that gets through is compared, and the next kills hit a new one."""
    draw = random.SystemRandom()
    kills, folder, killed_at = 0, tmp_path / "0", []
    while kills < 20:
        before = written(folder)
        process = start(folder, "--seconds", "0.2")
        if draw.random() < 0.75:
            while process.poll() is None and written(folder) == before:
                time.sleep(0.02)
        time.sleep(draw.uniform(0, 2.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            killed_at.append(written(folder))
        else:
            finish(process, folder)
            assert_same(folder, whole)
            folder = tmp_path / str(kills)
    assert len(set(killed_at)) > 5, killed_at
    toy.run(folder)
    assert_same(folder, whole)


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("records-rank*.jsonl"))


@pytest.mark.slow
def test_memory_stays_flat_over_300_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept results would be a third of a MB a stack."""
    stacks, after = 0, {}
    append = RecordStore.append

    def measured(self: RecordStore, clip: str, records: Any, costs: Any) -> None:
        nonlocal stacks
        append(self, clip, records, costs)
        stacks += len({record.stack for record in records if record.stack is not None})
        after[stacks] = resident_megabytes()

    monkeypatch.setattr(RecordStore, "append", measured)
    toy.run(tmp_path, videos=100)
    assert max(after) >= 299
    at_100, at_300 = (after[min(after, key=lambda s: abs(s - wanted))] for wanted in (100, 300))
    assert at_300 - at_100 < 15, after


def resident_megabytes() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the resident memory is read from /proc")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_finished_sweep_attacks_nothing_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (whole / name).read_bytes() for name in DERIVED}

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished clip was attacked again")

    monkeypatch.setattr(Sweep, "video", never)
    toy.run(whole)
    assert before == {name: (whole / name).read_bytes() for name in DERIVED}


class Bar(TQDMProgressBar):
    """Remembers what the Trainer's bar said last."""

    said = ""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.said = self.test_progress_bar.desc
        super().on_test_end(trainer, pl_module)


@pytest.mark.slow
def test_the_bar_counts_stacks(tmp_path: Path) -> None:
    for limit, said in ((2, "5 of 5"), (5, "14 of 14")):  # the second run finds two of its videos done
        bar = Bar()
        trainer = pl.Trainer(
            accelerator="cpu",
            inference_mode=False,
            logger=False,
            enable_model_summary=False,
            callbacks=[SweepCallback(epsilons=[0.01], attacks={"one_shot": OneShot()}, output=tmp_path), bar],
            limit_test_batches=limit,
        )
        trainer.test(toy.ToySystem(), datamodule=toy.ToyData(), verbose=False)
        assert bar.said.startswith(f"Attacking stacks: {said}")


def test_clips_and_groups_are_the_datamodules(whole: Path) -> None:
    clips = {clip.name: clip for clip in toy.ToyData().clips("test")}
    records = list(read_records(whole / "records.jsonl"))
    assert {record.clip for record in records} == set(clips)
    for record in records:
        assert (record.label, record.group) == (clips[record.clip].label, clips[record.clip].group)
    stacks = {(record.clip, record.stack) for record in records if record.stack is not None}
    assert len(stacks) == sum(2 + index % 3 for index in range(11))
    costs = json.loads((whole / "costs.json").read_text())
    assert costs["seconds"].keys() >= {"one_shot/tvl1", "clean/flownet2"}
    for what in ("one_shot/tvl1", "iterative_saliency_rg/flownet2", "clean/flownet2"):
        attack, target = what.split("/")
        rows = [r for r in records if (r.attack, r.target) == (attack, target)]
        assert costs["pair_forwards"][what] == sum(r.pair_forwards for r in rows) > 0
        assert costs["pair_backwards"][what] == sum(r.pair_backwards for r in rows)
        pairs = costs["pair_forwards"][what] + costs["pair_backwards"][what]
        assert costs["pairs_per_second"][what] == pytest.approx(pairs / costs["seconds"][what], rel=0.2)


def test_other_settings_are_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"epsilons is \[0\.005, 0\.025\] there and \[0\.005\] now"):
        toy.run(whole, epsilons=[0, 0.005])
    with pytest.raises(ValueError, match=r"systems\.tvl1\.weights_sha256 is "):
        toy.run(whole, targets={**toy.targets(), "tvl1": toy.ToySystem(gain=19.0)})
    with pytest.raises(ValueError, match=r"test_clips is 11 there and 7 now"):
        toy.run(whole, videos=7)


def test_other_batches_are_refused_since_records_count_pairs(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"engine\.batch_size is 8 there and 3 now; engine\.attacks\.one_shot\."):
        toy.run(whole, batch_size=3)
    with pytest.raises(
        ValueError, match=r"engine\.attacks\.iterative_saliency_rg\.retained_pairs is null there and 0 "
    ):
        toy.run(whole, retained_pairs=0)


def test_a_damaged_clip_is_made_again(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    for name in DERIVED[:1] + DERIVED[2:-1]:
        (folder / name).unlink()
    path = folder / "records-rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = bytes(len(lines[len(lines) // 2]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="the sweep makes these clips again"):
        toy.run(folder)
    assert_same(folder, whole)


class Still(OneShot):
    """Finds no gradient."""

    def craft(self, work: Any, *_: Any) -> None:
        work.no_gradient[:] = True


def test_the_console_tells_once_of_rows_that_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = {"one_shot": OneShot(), "still": Still()}
    toy.run(tmp_path, videos=2, realise=0, examples=0, attacks=attacks, transfer=["one_shot"])
    said = capsys.readouterr().out
    assert said.count("Warning: ") == 1
    assert "Warning: 5 of 5 attacked stacks under still, judged by flownet2, had a gradient of zero everywhere" in said
    toy.run(tmp_path / "sound", videos=2, realise=0, examples=0, attacks={"one_shot": OneShot()}, transfer=[])
    assert "says nothing of robustness" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_console_tells_once_whatever_the_number_of_attacks(tmp_path: Path) -> None:
    """Six of the default attacks have no gradient; each would warn, in each call."""
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--videos", "2", "--realise", "0"]
    saturated = ["--gain", "1e6", "--loss", "cross-entropy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, *saturated], env=environment, capture_output=True, text=True, check=True)
    still = {r.attack for r in read_records(tmp_path / "records.jsonl") if r.fault == NO_GRADIENT}
    assert len(still) == 6
    said = (ran.stdout + ran.stderr).splitlines()
    (told,) = (line for line in said if "Warning: " in line and "gradient" in line)
    assert told.startswith("Warning: ") and "had a gradient of zero everywhere" in told


@pytest.mark.slow
def test_more_batches_extend_a_limited_sweep(whole: Path, tmp_path: Path) -> None:
    toy.run(tmp_path, limit=4, examples=2)
    assert "4 of 11 videos" in (tmp_path / "tables.txt").read_text()
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {
        "Right--v_Right_g00_c01.npz",
        "Left--v_Left_g00_c01.npz",
    }
    toy.run(tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


def test_inference_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.inference_mode: false"):
        toy.run(tmp_path, inference_mode=True)


def test_bare_dataloaders_are_refused(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
        callbacks=[SweepCallback(output=tmp_path)],
    )
    with pytest.raises(ValueError, match=r"cannot name the clips.*datamodule"):
        trainer.test(toy.ToySystem(), toy.ToyData().test_dataloader())


def test_epsilon_outside_the_scale_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"ε = 5\.0 is outside"):
        SweepCallback(epsilons=[0.005, 5])


def test_defaults_are_the_papers() -> None:
    sweep = SweepCallback(targets=toy.targets()).sweep
    assert list(sweep.epsilons) == list(EPSILONS)
    papers, orders = list(sweep.attacks)[:3], list(sweep.attacks)[4:]
    assert papers == ["one_shot", "iterative_saliency", "iterative_saliency_rg"] and list(sweep.attacks)[3] == "noise"
    assert tuple(["noise", *orders]) == CONTROLS
    assert [sweep.attacks[name].order for name in orders] == ["random", "first-to-last", "least-salient"]
    assert [sweep.attacks[name].refresh for name in list(sweep.attacks)[1:3]] == [False, True]
    assert list(sweep.transfer) == ["one_shot", "iterative_saliency_rg", "noise"]


def test_targets_are_asked_about_the_classes(tmp_path: Path) -> None:
    class Picky(toy.ToySystem):
        def check_classes(self, classes: list[str]) -> None:
            raise ValueError(f"not trained on {classes}")

    with pytest.raises(ValueError, match=r"not trained on \['Right', 'Down', 'Left', 'Up'\]"):
        toy.run(tmp_path, targets={"tvl1": Picky()})
