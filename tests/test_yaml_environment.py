"""YAMLs on the command line: variables arrive as they are, and a YAML that is given replaces what it names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datamodules import yaml_environment
from datamodules.__main__ import main as datamodules_main
from lightning_modules.cli import FlowFoolCLI
from lightning_modules.cli import main as lightning_main

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = [
    "videos #2",
    "#2",
    "videos: new",
    'it\'s "mine"',
    "{videos",
    "{videos: new}",
    "[videos]",
    "videos  ",
    "007",
    "2020-01-01",
    "null",
    "~",
    "yes",
    "- videos",
    "&videos",
    "???",
    "a\\b",
]


@pytest.fixture(autouse=True)
def variables(tmp_path, monkeypatch):
    """Those that make gives, none of them from outside, and a folder to work in."""
    for name in ("RUN", "UCF101", "FLOWNET2", "TRUE_FLOW"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("FLOW", "tvl1")
    monkeypatch.setenv("FLOW_YAML", "../flow/tvl1.yaml")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parsed(capsys):
    """What a command line makes of its YAMLs: `parsed("fit", step, *options)`, `parsed("data", *options)`."""

    def parse(command: str, *arguments: str) -> dict:
        run = FlowFoolCLI if command in ("fit", "test") else datamodules_main
        with pytest.raises(SystemExit) as stop:
            run([command, *arguments, "--print_config"])
        assert not stop.value.code, stop.value.code
        return yaml.safe_load(capsys.readouterr().out)

    return parse


def written(name: str, class_path: str, **init_args: object) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump({"class_path": class_path, "init_args": init_args}))
    return Path(name)


def other_dataset(name: str = "other.yaml", **init_args: object) -> Path:
    """A YAML without `allow_missing` and `frame_size`, which the small preset's has."""
    return written(name, "datamodules.ucf101.UCF101", **{"root": "elsewhere", "split": 3, **init_args})


FIT = f"--config={CONFIGS / 'paper' / 'train-flownet2.yaml'}"
SWEEP = f"--config={CONFIGS / 'small' / 'attack-sweep.yaml'}"
DATASET = f"--dataset={CONFIGS / 'small' / 'dataset.yaml'}"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_arrives_as_it_is(name, parsed, monkeypatch):
    for variable in ("RUN", "UCF101", "FLOWNET2", "TRUE_FLOW"):
        monkeypatch.setenv(variable, name)
    config = parsed("fit", FIT)
    arguments = config["data"]["init_args"]
    assert Path(config["model"]["init_args"]["estimator"]["init_args"]["checkpoint"]) == Path(name)
    assert Path(arguments["dataset"]["init_args"]["root"]) == Path(name)
    assert Path(arguments["store"]) == Path(name) / "flow" / "tvl1"
    assert Path(config["trainer"]["logger"]["init_args"]["save_dir"]) == Path(name)
    true_flow = parsed("fit", FIT, f"--data={CONFIGS / 'data' / 'true_flow.yaml'}")
    assert Path(true_flow["data"]["init_args"]["root"]) == Path(name)
    assert Path(parsed("data", DATASET)["dataset"]["init_args"]["root"]) == Path(name)


@pytest.mark.parametrize("name", [*NAMES, "1e3"])  # jsonargparse prints 1000.0 for 1e3, but gives the class 1e3
def test_the_dataset_is_given_the_name_as_it_is(name, monkeypatch):
    monkeypatch.setenv("UCF101", name)
    with pytest.raises(SystemExit) as stop:
        datamodules_main(["data", DATASET])
    assert str(stop.value.code).startswith(f"\nError: {name}: no such folder")


def test_the_former_spelling_means_the_same(parsed):
    dataset = other_dataset(root="${UCF101}", lists="${UCF101}/lists of ${FLOW}")
    found = parsed("data", f"--dataset={dataset}")["dataset"]["init_args"]
    assert found["root"] == os.environ["UCF101"] and found["lists"] == f"{os.environ['UCF101']}/lists of tvl1"


def test_a_variable_between_braces_is_told_how_it_is_quoted():
    Path("dataset.yaml").write_text("{class_path: datamodules.ucf101.UCF101, init_args: {root: ${UCF101}}}")
    with pytest.raises(SystemExit, match=r'needs quotes: \{root: "\$\{oc.env:RUN\}"\}'):
        datamodules_main(["data", "--dataset=dataset.yaml"])


def test_a_default_and_a_reference_within_the_yaml(parsed, monkeypatch):
    monkeypatch.delenv("UCF101")
    dataset = other_dataset(root="${oc.env:UCF101,videos}", lists="${.root}/lists")
    found = parsed("data", f"--dataset={dataset}")["dataset"]["init_args"]
    assert (found["root"], found["lists"]) == ("videos", "videos/lists")
    other_dataset(lists="${.rooot}/lists")
    with pytest.raises(SystemExit, match=r"Error: a YAML's \$\{…\}: .*rooot"):
        datamodules_main(["data", f"--dataset={dataset}"])


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (datamodules_main, ["data", DATASET]),
        (lightning_main, ["test", SWEEP]),
    ],
)
def test_an_unset_or_empty_variable_is_one_message(command, arguments, value, monkeypatch, capsys):
    monkeypatch.delenv("UCF101")
    if value is not None:  # make exports all of its variables
        monkeypatch.setenv("UCF101", value)
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    told = "Error: ${UCF101} is not set; it is the folder that holds UCF-101/ and ucfTrainTestlist/: make … UCF101=DIR"
    assert str(stop.value.code) == told and capsys.readouterr().err == ""


def test_names_in_a_yaml_are_relative_to_it(parsed):
    other_dataset("mine/data sets/dataset.yaml")
    written("mine/flow.yaml", "lightning_modules.flow.farneback.Farneback")
    Path("mine/overlay.yaml").write_text(
        "data: {init_args: {dataset: data sets/dataset.yaml, estimator: flow.yaml}}\ntrainer: {max_epochs: 1}"
    )
    config = parsed("fit", FIT, "--config=mine/overlay.yaml")["data"]["init_args"]
    assert config["dataset"]["init_args"]["split"] == 3
    assert config["estimator"]["class_path"] == "lightning_modules.flow.farneback.Farneback"


def replaced(dataset: dict, **changed: object) -> bool:
    """Whether a parsed dataset is `other_dataset`, whole: nothing of the small preset's is left."""
    expected = {"root": "elsewhere", "split": 3, "allow_missing": False, "frame_size": None, **changed}
    return {key: dataset["init_args"][key] for key in expected} == expected


def test_a_yaml_given_for_a_component_replaces_it(parsed):
    option = f"--data.init_args.dataset={other_dataset()}"
    assert replaced(parsed("test", SWEEP, option)["data"]["init_args"]["dataset"])
    assert replaced(parsed("data", DATASET, "--dataset=other.yaml")["dataset"])
    data = written("data.yaml", "datamodules.frame_stacks.FrameStacks", dataset="other.yaml")
    config = parsed("test", SWEEP, f"--data={data}")["data"]["init_args"]
    assert replaced(config["dataset"]) and config["max_clips"] is None  # 20 in the preset


def test_a_yaml_in_a_second_config_replaces_too(parsed):
    other_dataset()
    Path("overlay.yaml").write_text("data: {init_args: {dataset: other.yaml}}")
    config = parsed("test", SWEEP, "--config=overlay.yaml")["data"]["init_args"]
    assert replaced(config["dataset"]) and config["max_clips"] == 20


def test_a_network_is_replaced(parsed):
    classifier = written("classifier.yaml", "lightning_modules.classifiers.resnet.ResNet", depth=50)
    config = parsed("test", SWEEP, f"--model.init_args.classifier={classifier}")["model"]["init_args"]
    given = config["classifier"]["init_args"]
    assert given["depth"] == 50 and given["subtract_mean"] is False  # true in the preset
    assert config["crop"] == 88
    estimator = written("flownet2.yaml", "lightning_modules.flow.flownet2.FlowNet2Estimator", variant="FlowNet2C")
    config = parsed("test", SWEEP, f"--model.init_args.estimator={estimator}")["model"]["init_args"]["estimator"]
    assert config["init_args"]["variant"] == "FlowNet2C" and config["init_args"]["checkpoint"] is None
    model = written(
        "model.yaml", "lightning_modules.model_under_attack.ModelUnderAttack",
        estimator="flownet2.yaml", classifier="classifier.yaml",
    )  # fmt: skip
    config = parsed("test", SWEEP, f"--model={model}")["model"]["init_args"]
    assert config["classifier_checkpoint"] is None and config["estimator"]["init_args"]["checkpoint"] is None
    command = ["extract", DATASET, "--store=flow", f"--estimator={CONFIGS / 'small' / 'flownet2.yaml'}"]
    config = parsed(*command, "--estimator=flownet2.yaml")["estimator"]["init_args"]
    assert config["variant"] == "FlowNet2C" and config["checkpoint"] is None


def test_single_options_after_a_yaml_change_that_key_only(parsed):
    other = f"--data.init_args.dataset={other_dataset(frame_size=[60, 80])}"
    config = parsed("test", SWEEP, other, "--data.init_args.dataset.init_args.split=2", "--data.init_args.max_clips=3")
    assert replaced(config["data"]["init_args"]["dataset"], split=2, frame_size=[60, 80])
    assert config["data"]["init_args"]["max_clips"] == 3 and config["data"]["init_args"]["max_stacks"] == 2
    small = parsed("test", SWEEP, "--data.init_args.dataset.init_args.split=2")["data"]["init_args"]["dataset"]
    assert small["init_args"]["split"] == 2 and small["init_args"]["frame_size"] == [96, 128]
    Path("overlay.yaml").write_text("data: {init_args: {dataset: {init_args: {split: 2}}}}")
    assert parsed("test", SWEEP, "--config=overlay.yaml")["data"]["init_args"]["dataset"] == small
    assert replaced(
        parsed("data", DATASET, "--dataset=other.yaml", "--dataset.split=2")["dataset"], split=2, frame_size=[60, 80]
    )


@pytest.mark.parametrize("spelling", ["dataset.init_args.frame_size", "dataset.frame_size"])
@pytest.mark.parametrize(("text", "value"), [("null", None), ("[60, 80]", [60, 80])])
def test_a_nested_option_can_be_null(spelling, text, value, parsed):
    config = parsed("test", SWEEP, f"--data.init_args.{spelling}={text}")["data"]["init_args"]["dataset"]
    assert config["init_args"]["frame_size"] == value and config["init_args"]["allow_missing"] is True
    config = parsed("data", DATASET, f"--{spelling}={text}")["dataset"]["init_args"]
    assert config["frame_size"] == value and config["allow_missing"] is True


PLAIN = """
from pathlib import Path
from jsonargparse import ArgumentParser
class Dataset:
    def __init__(self, split: int = 1, size: int | None = 2): ...
class Data:
    def __init__(self, dataset: Dataset): ...
Path("one.yaml").write_text("{class_path: __main__.Dataset, init_args: {split: 3, size: 4}}")
Path("two.yaml").write_text("{class_path: __main__.Dataset, init_args: {split: 5}}")
parser = ArgumentParser(exit_on_error=False)
parser.add_subclass_arguments(Data, "data")
given = ["--data=Data", "--data.init_args.dataset=one.yaml"]
print(parser.parse_args([*given, "--data.init_args.dataset=two.yaml"]).data.init_args.dataset.init_args.size)
try:
    parser.parse_args([*given, "--data.init_args.dataset.init_args.size=null"])
    print("accepted")
except Exception as error:
    print("refused")
"""


def test_jsonargparse_still_needs_both_overrides():
    """Where this fails, jsonargparse has learned it: remove `_let_yamls_replace` (4) or `_keep_null` (refused)."""
    found = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["4", "refused"]


def test_installing_twice_wraps_once():
    from jsonargparse import _typehints

    yaml_environment.install()
    before = _typehints.ActionTypeHint._check_type, _typehints.adapt_class_type
    yaml_environment.install()
    assert (_typehints.ActionTypeHint._check_type, _typehints.adapt_class_type) == before
