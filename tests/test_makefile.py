"""`make` with names that hold spaces and signs: each step is given them whole, goes on where it stopped, or refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["my runs", "my runs #2", "mine (2)", 'it\'s "mine"', "a: b", "a = b", " two  spaces", "[a]", "été & co"]
AS_TARGETS = [name for name in NAMES if "[" not in name and not name.startswith(" ")]

# Writes down what it is called with, and leaves what a training or a sweep does.
RECORDER = """#!{python} -S
import json, os, pathlib, sys
given = {{name: os.environ.get(name) for name in ("RUN", "UCF101", "FLOWNET2", "TRUE_FLOW", "FLOW", "FLOW_YAML")}}
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], given]), file=log)
folder = [word.partition("=")[2] for word in sys.argv if word.startswith("--trainer.default_root_dir=")]
if folder and ("fit" in sys.argv or folder[0].endswith("attack-sweep")):
    folder = pathlib.Path(folder[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "summary.txt") if folder.name == "attack-sweep" else ("final.ckpt",):
        (folder / name).touch()
"""


class Made:
    """Calls of make in which python only writes down its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv, self.log = folder, folder / "venv", folder / "log"
        (self.venv / "bin").mkdir(parents=True)
        python = self.venv / "bin" / "python"
        python.write_text(RECORDER.format(python=sys.executable, log=str(self.log)))
        python.chmod(0o755)
        (self.venv / "installed").touch()

    def __call__(self, *arguments: str) -> list[tuple[list[str], dict[str, str]]]:
        """What was called, in its order: the words after `python -m`, and the variables."""
        self.log.write_text("")
        result = make(*arguments, f"VENV={self.venv}")
        assert result.returncode == 0, result.stdout + result.stderr
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(words[1:], variables) for words, variables in calls]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    alone = {"PATH": os.environ["PATH"]}  # without what a make around the tests was given
    return subprocess.run(["make", *arguments], cwd=ROOT, env=alone, capture_output=True, encoding="utf-8", check=False)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "my set (2) #1, it's.yaml"
    path.write_text("class_path: datamodules.ucf101.UCF101\ninit_args: {root: elsewhere}\n")
    return path


def folder_of(words: list[str]) -> str:
    (found,) = [word.partition("=")[2] for word in words if word.startswith("--trainer.default_root_dir=")]
    return found


def after(option: str, words: list[str]) -> str:
    return words[words.index(option) + 1]


STEPS = ["flownet2", "classifiers/flownet2", "classifiers/tvl1", "classifiers/farneback", "attack-sweep"]


@pytest.mark.parametrize("name", AS_TARGETS)
def test_a_run_folder_of_any_name_is_filled_and_left_alone_when_done(name, made):
    run = made.folder / name / "quickstart"
    given = ["attack-sweep", f"RUNS={made.folder / name}", f"UCF101={name}"]
    calls = made(*given)
    assert [folder_of(words) for words, _ in calls] == [str(run / step) for step in STEPS]
    assert {(variables["RUN"], variables["UCF101"]) for _, variables in calls} == {(str(run), name.strip(" "))}
    assert [variables["FLOW"] for _, variables in calls[1:4]] == ["flownet2", "tvl1", "farneback"]
    assert made(*given) == []
    (run / "classifiers" / "tvl1" / "final.ckpt").unlink()
    (run / "attack-sweep" / "results.json").unlink()
    assert [folder_of(words) for words, _ in made(*given)] == [str(run / STEPS[2]), str(run / STEPS[4])]
    assert [folder_of(words) for words, _ in made(*given, 'SWEEP_ARGS="--trainer.logger=false"')] == [
        str(run / STEPS[4])
    ]
    assert made("clean", *given[1:]) == [] and not run.exists() and run.parent.is_dir()


@pytest.mark.parametrize("name", AS_TARGETS)
def test_every_other_target_is_given_the_run_folder_whole(name, made):
    run = made.folder / name / "quickstart"
    runs = f"RUNS={made.folder / name}"
    made("attack-sweep", runs)
    for verb in ("flow", "verify", "repair"):
        ((words, _),) = made(f"{verb}-tvl1", runs)
        assert after("--store", words) == str(run / "flow" / "tvl1")
    assert folder_of(made("evaluate-flownet2", runs)[0][0]) == str(run / "flownet2")
    (paths, _), (report, _) = made("check-paths", runs)
    assert after("--stores", paths) == str(run / "flow") and after("--sweep", paths) == str(run / "attack-sweep")
    assert report == ["attacks", "report", str(run)] == made("report", runs)[0][0]
    ((words, _),) = made("export-clips", runs)
    assert after("--sweep", words) == str(run / "attack-sweep") and after("--output", words) == str(run / "clips")
    assert after("--exported", made("evaluate-clips", runs)[0][0]) == str(run / "clips")
    assert made("wandb-workspace", runs)[0][0][1] == str(run / "attack-sweep")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_targets_arrive_whole(name, made):
    runs = f"RUNS={made.folder}"
    given = name.lstrip(" ")  # make drops these itself
    ((words, variables),) = made("import-flow", f"FROM={name}", f"UCF101={name}", runs)
    assert after("--source", words) == given == variables["UCF101"]
    calls = made("evaluate-flownet2", f"TRUE_FLOW={name}", f"FLOWNET2={name}", runs)
    assert len(calls) == 3 and {v["TRUE_FLOW"] for _, v in calls} == {v["FLOWNET2"] for _, v in calls} == {given}
    assert made("report", f"SWEEP={name}", runs)[0][0] == ["attacks", "report", given]
    assert made("bench-extraction", f"UCF101={name}")[0][0] == [given]


def test_sweeps_are_quoted_as_for_the_shell(made):
    ((words, _),) = made("compare", "SWEEPS='my runs/small' runs/other \"it's\" 'a: b'", "COMPARISON=my page #1")
    assert words[:4] == ["attacks", "compare", "my runs/small", "runs/other"]
    assert set(words[4:]) == {"--output=my page #1", "--more+=it's", "--more+=a: b"}
    ((words, _),) = made("compare", "SWEEPS=runs/small runs/other")
    assert words == ["attacks", "compare", "runs/small", "runs/other", "--output=runs/comparison"]
    told = make("compare", "SWEEPS=runs/small", f"VENV={made.venv}")
    assert told.returncode != 0 and 'compare: give at least two sweeps, SWEEPS="DIR DIR"' in told.stderr


def test_a_dataset_of_ones_own_replaces_the_presets_in_every_target(made, dataset):
    given = [f"DATASET={dataset}", f"RUNS={made.folder / 'my runs'}"]
    commands = ["data", "import-flow", *(f"{verb}-tvl1" for verb in ("flow", "verify", "repair"))]
    for target in commands:
        ((words, _),) = made(target, *given, "FROM=images")
        assert after("--dataset", words) == str(dataset)
        ((words, _),) = made(target, given[1], "FROM=images")
        assert after("--dataset", words) == "configs/quickstart/dataset.yaml"
    option = f"--data.init_args.dataset={dataset}"
    calls = made("attack-sweep", *given, "SWEEP_ARGS=--data.init_args.dataset.init_args.split=2")
    assert len(calls) == 5 and all(option in words for words, _ in calls)
    sweep = calls[-1][0]  # a single key after the file
    assert sweep.index(option) < sweep.index("--data.init_args.dataset.init_args.split=2")
    again = [*given, "SWEEP_ARGS=--data.init_args.dataset.init_args.split=2"]
    for target in ("check-paths", "export-clips", "evaluate-clips", "evaluate-flownet2"):
        words = made(target, *again)[0][0]
        assert option in words
    assert made("attack-sweep", *again) == []
    with dataset.open("a") as file:
        file.write("# another one\n")
    assert len(made("attack-sweep", *again)) == 5
    assert "DATASET=YAML" in make("help").stdout


@pytest.mark.parametrize(
    "variable", ["RUNS", "UCF101", "FLOWNET2", "TRUE_FLOW", "DATASET", "FROM", "SWEEP", "SWEEPS", "COMPARISON"]
)
def test_a_dollar_is_refused_by_the_name_of_the_variable(variable):
    told = make("-n", "data", f"{variable}=a$b")
    assert told.returncode != 0 and f"{variable}=a$b: make cannot take $ in a name; give another name" in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize("name", ["50%", "a;b", "a|b", "a\\b", "a*", "a?", "[a]", "-a", "~/runs"])
def test_what_make_cannot_have_in_a_target_is_refused(name):
    told = make("-n", "data", f"RUNS={name}")
    assert told.returncode != 0 and f"RUNS={name}: make cannot take " in told.stderr and told.stdout == ""


def test_a_dataset_that_is_not_there_is_told_before_any_step():
    told = make("-n", "attack-sweep", "DATASET=no such.yaml")
    assert told.returncode != 0 and "DATASET=no such.yaml: no such file" in told.stderr and told.stdout == ""


@pytest.mark.slow
def test_the_embedded_dataset_is_rendered_in_such_a_folder(tmp_path):
    """The command itself, not the recorder."""
    runs = tmp_path / "my runs: (2) #1"
    arguments = "DATA_ARGS=--dataset.groups=3 --dataset.test_groups=1 --decode=false"
    installed = ["-o", f"{sys.prefix}/installed", f"VENV={sys.prefix}"]
    result = make("data", f"RUNS={runs}", arguments, *installed)
    assert result.returncode == 0, result.stderr
    assert len(list((runs / "quickstart" / "data" / "UCF-101").glob("*/*.avi"))) == 8 * 3 * 2
