"""Every shipped experiment parses, instantiates and, at the paper's full size, takes real steps."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule

from datamodules import yaml_environment
from lightning_modules.cli import FlowFoolCLI, main

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = sorted(path.parent.name for path in CONFIGS.glob("*/attack-sweep.yaml"))
STEPS = {"train-flownet2": "fit", "train-classifier": "fit", "attack-sweep": "test"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The variables that make gives, in a folder of their own."""
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("UCF101", str(tmp_path / "videos"))
    monkeypatch.setenv("FLOWNET2", str(tmp_path / "FlowNet2_checkpoint.pth.tar"))
    monkeypatch.setenv("FLOW", "tvl1")
    monkeypatch.setenv("FLOW_YAML", "../flow/tvl1.yaml")
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def test_every_preset_has_every_step():
    assert {"quickstart", "small", "paper"} <= set(PRESETS)
    for preset in PRESETS:
        assert {path.stem for path in (CONFIGS / preset).glob("*.yaml")} >= {*STEPS, "dataset", "flownet2"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_experiment_parses(run, preset, step, capsys):
    with pytest.raises(SystemExit) as stop:
        FlowFoolCLI([STEPS[step], f"--config={CONFIGS / preset / step}.yaml", "--print_config"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "class_path" in printed and "${" not in printed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_is_part_of_an_experiment(path):
    """None lies about unused: each is an experiment, or is named by one or by the Makefile."""
    if path.stem in STEPS:
        return
    texts = [other.read_text() for other in CONFIGS.glob("*/*.yaml") if other != path]
    texts.append((CONFIGS.parent / "Makefile").read_text())
    assert any(path.name in text or path.stem in text for text in texts)


def test_a_variable_that_is_not_set_is_named(run, monkeypatch):
    monkeypatch.delenv("UCF101")
    yaml_environment.install()
    text = (CONFIGS / "paper" / "dataset.yaml").read_text()
    with pytest.raises(yaml_environment.UnsetVariableError, match=r"\$\{UCF101\} is not set; .*make … UCF101=DIR"):
        yaml_environment.load(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attack-sweep", "PRESET=medium"], "PRESET=medium: no such preset; there are: "),
        (["-n", "train-classifiers", "PYTHON=python2"], "train-classifier.yaml"),
    ],
)
def test_make(arguments, message, tmp_path):
    result = subprocess.run(
        ["make", *arguments, f"RUNS={tmp_path}"], cwd=CONFIGS.parent, capture_output=True, text=True, check=False
    )
    assert message in result.stdout + result.stderr


def steps_of_make(folder: Path, *arguments: str) -> list[str]:
    """The commands of Python that make would run in an empty folder, each from its module on."""
    given = ["make", "-n", *arguments, f"RUNS={folder}", f"VENV={folder}"]
    (folder / "installed").touch()
    alone = {"PATH": os.environ["PATH"]}  # without what a make around the tests was given
    result = subprocess.run(given, cwd=CONFIGS.parent, env=alone, capture_output=True, encoding="utf-8", check=True)
    return [line.partition("/bin/python -m ")[2] for line in result.stdout.splitlines() if "/bin/python -m " in line]


def trained_in(steps: list[str], folder: Path) -> list[str]:
    """Where the steps train or attack, in their order."""
    return [re.findall(rf"root_dir='{folder}/\w+/([^']+)'", step)[0] for step in steps]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train-classifiers", "FLOWS=imported", "PRESET=paper", "UCF101=/data"], ["classifiers/imported"]),
        (["train-classifiers", "FLOWS=tvl1 raft"], ["classifiers/tvl1", "classifiers/raft"]),
        (["train-classifiers", "FLOWS=flownet2"], ["flownet2", "classifiers/flownet2"]),
        (
            ["attack-sweep"],
            ["flownet2", "classifiers/flownet2", "classifiers/tvl1", "classifiers/farneback", "attack-sweep"],
        ),
    ],
)
def test_make_trains_what_a_step_needs_and_nothing_else(arguments, expected, tmp_path):
    steps = steps_of_make(tmp_path, *arguments)
    assert trained_in(steps, tmp_path) == expected
    for step, place in zip(steps, expected, strict=True):
        config = place if place == "attack-sweep" else f"train-{place.split('/')[0].removesuffix('s')}"
        assert f"/{config}.yaml" in step


def test_devices_reach_every_step_that_can_use_them(tmp_path):
    on = {"DEVICES=3", "NODES=2"}
    for target in ("attack-sweep", "evaluate-flownet2"):
        steps = steps_of_make(tmp_path, target, "TRUE_FLOW=/pairs", *on)
        assert len(steps) >= 3 and all("--trainer.devices=3 --trainer.num_nodes=2" in step for step in steps)
    for target in ("flow", "repair"):
        assert "--workers=3" in steps_of_make(tmp_path, f"{target}-flownet2", *on)[-1]
        assert "--workers" not in steps_of_make(tmp_path, f"{target}-flownet2")[-1]
        assert "--workers" not in steps_of_make(tmp_path, f"{target}-tvl1", *on)[-1]  # takes all cores


@pytest.mark.parametrize("step", STEPS)
def test_missing_videos_end_as_one_message(run, monkeypatch, step):
    monkeypatch.setenv("UCF101", str(run / "absent"))
    monkeypatch.chdir(CONFIGS / "small")
    arguments = [STEPS[step], f"--config={step}.yaml", f"--trainer.default_root_dir={run / step}"]
    if step == "attack-sweep":  # without the trained networks it would stop for them
        arguments += ["--model.init_args.estimator=../flow/tvl1.yaml"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert "absent: no such folder; it should hold UCF-101's class folders" in str(stop.value.code)


def real_frames(root: Path, count: int) -> torch.Tensor:
    """Frames (1, count, 3, 240, 320) of a clip of UCF-101."""
    from datamodules.flow_precompute import to_frames
    from datamodules.video_decode import decode_video

    clip = min((root / "UCF-101").glob("*/*.avi"))
    images = decode_video(clip, max_frames=count)
    assert images.shape == (count, 240, 320, 3) and images.dtype == np.uint8
    return to_frames(images)[None]


def model_of(step: str, scratch: Path, *, num_classes: int | None = None) -> LightningModule:
    """The model of a step of the paper's preset as the command line makes it, without data and without a download."""
    yaml_environment.install()
    parser = ArgumentParser(parser_mode=yaml_environment.MODE)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model", fail_untyped=False)
    model = yaml_environment.load((CONFIGS / "paper" / f"{step}.yaml").read_text())["model"]
    if num_classes is not None:
        assert model["init_args"]["classifier"]["init_args"].pop("imagenet") is True
        model["init_args"]["num_classes"] = num_classes
    text = yaml.safe_dump({"model": model})
    for name in set(re.findall(r"[\w./]+\.yaml", text)):
        text = text.replace(name, str(CONFIGS / "paper" / name))
    config = scratch / "model.yaml"
    config.write_text(text)
    return parser.instantiate_classes(parser.parse_args([f"--config={config}"])).model


@pytest.mark.slow
def test_the_paper_at_full_size(ucf101_root, run):
    """FlowNet2 (162.5 M parameters) and ResNet-152 (58 M): a training step of each, and an attack step on the whole."""
    from attacks.one_shot import OneShot
    from datamodules.batches import FlowPairBatch, FlowStackBatch
    from lightning_modules.flow.flownet2 import FlowNet2Estimator
    from lightning_modules.model_under_attack import ModelUnderAttack

    frames = real_frames(ucf101_root, 11)
    weights = FlowNet2Estimator(variant="FlowNet2").network.state_dict()
    torch.save({"epoch": 1, "state_dict": weights, "best_EPE": 1.0}, os.environ["FLOWNET2"])
    (run / "run" / "flownet2").mkdir(parents=True)
    torch.save({"state_dict": weights}, run / "run" / "flownet2" / "final.ckpt")

    tuning = model_of("train-flownet2", run)
    assert round(sum(p.numel() for p in tuning.estimator.parameters()) / 1e6, 1) == 162.5
    before = tuning.estimator.network.flownetfusion.predict_flow0.weight.detach().clone()
    optimizer = tuning.configure_optimizers()["optimizer"]
    tuning.log = lambda *_, **__: None
    loss = tuning.training_step(FlowPairBatch(frames[:, :2], torch.zeros(1, 1, 2, 240, 320)), 0)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(tuning.estimator.network.flownetfusion.predict_flow0.weight, before)
    del tuning, optimizer

    training = model_of("train-classifier", run, num_classes=101)
    assert round(sum(p.numel() for p in training.classifier.parameters()) / 1e6) == 58
    optimizer = training.configure_optimizers()["optimizer"]
    training.log = lambda *_, **__: None
    before = training.classifier.network.conv1.weight.detach().clone()
    loss = training.training_step(
        FlowStackBatch(torch.randn(2, 20, 224, 224), torch.tensor([3, 7]), torch.tensor([0, 1])), 0
    )
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(training.classifier.network.conv1.weight, before)
    classes = [f"class {k}" for k in range(101)]
    folder = run / "run" / "classifiers" / "flownet2"
    folder.mkdir(parents=True)
    torch.save({"state_dict": training.classifier.state_dict(), "classes": classes}, folder / "final.ckpt")
    del training, optimizer

    victim = model_of("attack-sweep", run)
    assert isinstance(victim, ModelUnderAttack)
    label = victim(frames).argmax(1)
    result = OneShot()(victim, frames, label, (0.01,))
    moved = (result.adversarial[0] - frames).abs()
    assert moved.max() <= 0.01 + 1e-6 and (moved.flatten(2).mean(2) > 0.005).all()
    assert result.attacked.all()
