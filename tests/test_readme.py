"""The README's examples run as they stand, and its commands give options that there are."""

import re
import shlex
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml

from lightning_modules.cli import FlowFoolCLI

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
COMMANDS = re.findall(r"^make (.*)", README.replace("\\\n", " "), re.M)
TRAININGS = {"train-flownet2": "FLOWNET2_ARGS", "train-classifier": "CLASSIFIER_ARGS"}


def test_both_kinds_of_model_have_an_example():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs_in_under_20_lines_without_a_trainer(block, capsys):
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) < 20 and "Trainer" not in block
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"__name__": "example"}
        exec(compile(block, "README.md", "exec"), names)
    result, frames, labels = names["result"], names["frames"], names["labels"]
    assert result.adversarial.shape == (2, *frames.shape)
    assert result.attacked.all() and (result.frames_perturbed > 0).all()
    distance = (result.adversarial - frames).abs().flatten(1).amax(1)
    assert (distance <= torch.tensor([0.005, 0.035]) + 1e-6).all()
    assert len(labels) == len(frames) and capsys.readouterr().out.startswith("tensor(")


def variables(command: str) -> dict[str, str]:
    """What a command line of make sets."""
    return dict(word.split("=", 1) for word in shlex.split(command, comments=True) if "=" in word)


@pytest.fixture
def parsed(tmp_path, monkeypatch, capsys):
    """The whole config of a step as make runs it."""
    for name in ("RUN", "UCF101", "FLOWNET2"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])
    monkeypatch.setenv("FLOW", "tvl1")
    monkeypatch.setenv("FLOW_YAML", "../flow/tvl1.yaml")

    def parse(subcommand: str, step: str, given: dict[str, str], arguments: str) -> dict:
        path = ROOT / "configs" / given.get("PRESET", "quickstart") / f"{step}.yaml"
        options = [*shlex.split(given.get(arguments, "")), "--print_config"]
        with pytest.raises(SystemExit) as stop:
            FlowFoolCLI([subcommand, f"--config={path}", *options])
        assert not stop.value.code
        return yaml.safe_load(capsys.readouterr().out)

    return parse


def test_the_commands_are_found():
    given = [variables(command) for command in COMMANDS]
    assert sum("DEVICES" in one for one in given) >= 2 and sum("SWEEP_ARGS" in one for one in given) >= 1
    assert sum("FLOWNET2_ARGS" in one for one in given) >= 3 and sum("CLASSIFIER_ARGS" in one for one in given) >= 2


@pytest.mark.parametrize("step", TRAININGS)
@pytest.mark.parametrize("command", [c for c in COMMANDS if {*TRAININGS.values(), "DEVICES"} & variables(c).keys()])
def test_a_training_of_the_readme_parses_ends_its_schedule_and_is_shared_evenly(command, step, parsed):
    given = variables(command)
    config = parsed("fit", step, given, TRAININGS[step])
    schedule = config["model"]["init_args"]["lr_scheduler"]
    if schedule["class_path"].endswith("CosineAnnealingLR"):
        assert schedule["init_args"]["T_max"] == config["trainer"]["max_epochs"]
    option = resolve_name(config["data"]["class_path"]).step_option
    assert config["data"]["init_args"][option] % int(given.get("DEVICES", 1)) == 0


@pytest.mark.parametrize("step", TRAININGS)
@pytest.mark.parametrize("preset", ["quickstart", "small"])
def test_two_processes_share_the_steps_of_a_preset_that_trains_in_one(preset, step, parsed):
    config = parsed("fit", step, {"PRESET": preset}, TRAININGS[step])
    assert config["trainer"]["devices"] == 1
    assert config["data"]["init_args"][resolve_name(config["data"]["class_path"]).step_option] % 2 == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if "SWEEP_ARGS" in variables(c)])
def test_a_sweep_of_the_readme_parses(command, parsed):
    parsed("test", "attack-sweep", variables(command), "SWEEP_ARGS")
