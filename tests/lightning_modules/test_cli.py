"""The command line as a user runs it: in a process of its own, on networks and data of a few hundred numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import FlowStackBatch, VideoBatch
from lightning_modules.cli import FlowFoolCLI, main, set_wandb_mode


class TinyClassifier(nn.Module):
    def __init__(self, *, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3))
        self.last = nn.Linear(width, num_classes)

    def forward(self, flow: Tensor) -> Tensor:
        return self.last(self.layers(flow).mean((2, 3)))


class TinyStacks(Dataset[FlowStackBatch]):
    """Flow whose sign is the class, randomly disturbed at each access in training."""

    def __init__(self, *, count: int, noise: float, seconds: float, channels: int) -> None:
        self.count, self.noise, self.seconds, self.channels = count, noise, seconds, channels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FlowStackBatch:
        time.sleep(self.seconds)
        label = torch.tensor(index // 4 % 2)
        flow = (2.0 * label - 1) * torch.ones(self.channels, 6, 6)
        return FlowStackBatch(flow + self.noise * torch.randn_like(flow), label, torch.tensor(index // 4))


class TinyData(pl.LightningDataModule):
    """`seconds` slows each training item down, so that there is time to kill the training."""

    num_classes = 2

    def __init__(self, *, seconds: float = 0.0, num_workers: int = 0, channels: int = 4) -> None:
        super().__init__()
        self.classes = ["left", "right"]
        self.seconds = 0.0 if "TINY_FAST" in os.environ else seconds
        self.num_workers, self.channels = num_workers, channels

    def train_dataloader(self) -> DataLoader:
        data = TinyStacks(count=24, noise=3.0, seconds=self.seconds, channels=self.channels)
        return DataLoader(data, batch_size=4, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        data = TinyStacks(count=8, noise=0.0, seconds=0.0, channels=self.channels)
        return DataLoader(data, batch_size=3)


CONFIG = {
    "seed_everything": 3,
    "model": {
        "class_path": "lightning_modules.flow_classification.FlowClassification",
        "init_args": {
            "classifier": {"class_path": "test_cli.TinyClassifier"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.StepLR",
                "init_args": {"step_size": 1, "gamma": 0.7},
            },
        },
    },
    "data": {"class_path": "test_cli.TinyData", "init_args": {"seconds": 0.03}},
    "trainer": {
        "max_epochs": 5,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


class TinyFlow(nn.Module):
    differentiable = True

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, frames: Tensor) -> Tensor:
        return self.scale * (frames[:, 1:, :2] - frames[:, :-1, 1:])


class TinyVideos(pl.LightningDataModule):
    """Videos of one stack of three frames."""

    def __init__(self, *, classes: tuple[str, ...] = ("left", "right")) -> None:
        super().__init__()
        self.classes, self.num_classes = list(classes), len(classes)

    def test_dataloader(self) -> DataLoader:
        videos = [VideoBatch(torch.rand(1, 3, 3, 8, 8), torch.tensor(i % 2), torch.tensor(i)) for i in range(4)]
        return DataLoader(videos, batch_size=None)


class Targets(pl.Callback):
    """Black boxes in a callback, as the attack sweep has them; writes what they answer."""

    def __init__(self, *, targets: dict[str, nn.Module]) -> None:
        self.targets = targets

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        answers = {name: list(target(torch.rand(2, 3, 3, 8, 8)).shape) for name, target in self.targets.items()}
        (Path(trainer.default_root_dir) / "answers.json").write_text(json.dumps(answers))


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line leaves in the process is taken back; the classes above can be imported by name."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "WANDB_MODE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("FLOWFOOL_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def fit(config: Path, folder: Path, *options: str) -> None:
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", *options])


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "final.ckpt", weights_only=True)["state_dict"]


def message(error: pytest.ExceptionInfo[SystemExit]) -> str:
    assert isinstance(error.value.code, str)  # Python prints it and exits with 1
    return error.value.code


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(Path(__file__).parent)
        monkeypatch.setenv("TINY_FAST", "1")
        monkeypatch.setattr(sys, "argv", ["lightning_modules"])
        fit(config, folder)
    return folder


def test_a_training_leaves_its_folder(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "metrics.json", "final.ckpt", "checkpoints/last.ckpt"}
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["epoch"] == 4 and metrics["val/video_accuracy"] == 1.0
    for name in ("final.ckpt", "checkpoints/last.ckpt"):
        assert torch.load(finished / name, weights_only=True)["classes"] == ["left", "right"]


def test_a_killed_training_resumes_to_the_same_weights(
    config: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "lightning_modules", "fit", "--config", str(config)]
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with (tmp_path / "output").open("w") as output:
        killed = subprocess.Popen(
            [*command, f"--trainer.default_root_dir={folder}"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=output,
            stderr=output,
        )
    last = folder / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert killed.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.02)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "final.ckpt").exists()
    epochs_done = torch.load(last, weights_only=True)["epoch"] + 1
    assert 1 <= epochs_done < 5

    monkeypatch.setenv("TINY_FAST", "1")
    capfd.readouterr()
    fit(config, folder)
    resumed, whole = weights(folder), weights(finished)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert (folder / "metrics.json").read_text() == (finished / "metrics.json").read_text()
    assert "Warning" not in capfd.readouterr().err


def test_a_finished_training_does_nothing_more(config: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(SystemExit) as stopped:
        fit(config, finished)
    assert stopped.value.code == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_killed_between_the_last_checkpoint_and_the_end(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "final.ckpt").unlink()
    (tmp_path / "run" / "metrics.json").unlink()
    fit(config, tmp_path / "run")
    assert all(torch.equal(value, weights(finished)[name]) for name, value in weights(tmp_path / "run").items())
    assert (tmp_path / "run" / "metrics.json").read_text() == (finished / "metrics.json").read_text()


def test_another_config_is_refused_and_named(config: Path, finished: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(config, finished, "--model.init_args.classifier.init_args.width=8", "--trainer.devices=2")
    assert f"{finished} holds a training with another config" in message(stopped)
    assert "model.init_args.classifier.init_args.width: 4 there, 8 now" in message(stopped)
    assert "devices" not in message(stopped)


def test_fit_without_a_folder_says_which_option(config: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config)])
    assert "--trainer.default_root_dir" in message(stopped)


def attack_config(tmp_path: Path, checkpoint: Path, *, black_box: Path | None = None, **data: object) -> Path:
    def system(scale: float, checkpoint: Path) -> dict:
        return {
            "class_path": "lightning_modules.model_under_attack.ModelUnderAttack",
            "init_args": {
                "estimator": {"class_path": "test_cli.TinyFlow", "init_args": {"scale": scale}},
                "classifier": {"class_path": "test_cli.TinyClassifier"},
                "classifier_checkpoint": str(checkpoint),
                "crop": 6,
            },
        }

    systems = {"tvl1": system(2.0, black_box or checkpoint), "farneback": system(3.0, checkpoint)}
    targets = {"class_path": "test_cli.Targets", "init_args": {"targets": systems}}
    config = {
        "model": system(1.0, checkpoint),
        "data": {"class_path": "test_cli.TinyVideos", "init_args": data},
        "trainer": {**CONFIG["trainer"], "default_root_dir": str(tmp_path / "sweep"), "callbacks": [targets]},
    }
    (tmp_path / "attack.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "attack.yaml"


def test_systems_in_a_callback_know_their_classes_from_their_checkpoints(finished: Path, tmp_path: Path) -> None:
    main(["test", "--config", str(attack_config(tmp_path, finished / "final.ckpt"))])
    assert json.loads((tmp_path / "sweep" / "answers.json").read_text()) == {"tvl1": [2, 2], "farneback": [2, 2]}
    written = yaml.safe_load((tmp_path / "sweep" / "config.yaml").read_text())
    assert written["model"]["init_args"]["classifier_checkpoint"] == str(finished / "final.ckpt")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(["left", "up"], "class 1 is 'right' there and 'up' here"), (["a", "b", "c"], "2 classes (left, right), but the")],
)
def test_a_classifier_of_other_classes_is_refused(
    finished: Path, tmp_path: Path, classes: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", str(attack_config(tmp_path, finished / "final.ckpt", classes=classes))])
    assert expected in message(stopped) and "final.ckpt" in message(stopped) and "Subtypes" not in message(stopped)


def test_a_test_in_a_trainings_folder_leaves_its_config(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "sweep")
    main(["test", "--config", str(attack_config(tmp_path, finished / "final.ckpt"))])
    assert (tmp_path / "sweep" / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_a_missing_or_wrong_checkpoint_is_one_message(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", str(attack_config(tmp_path, tmp_path / "none.ckpt"))])
    assert f"no checkpoint at {tmp_path / 'none.ckpt'}" in message(stopped)
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", str(attack_config(tmp_path, finished / "final.ckpt", black_box=tmp_path / "b.ckpt"))])
    assert message(stopped).strip().startswith(f"Error: no checkpoint at {tmp_path / 'b.ckpt'}")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "classes": ["left", "right"]}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", str(attack_config(tmp_path, tmp_path / "other.ckpt"))])
    assert f"{tmp_path / 'other.ckpt'} does not fit TinyClassifier" in message(stopped)
    monkeypatch.setenv("FLOWFOOL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="does not fit TinyClassifier"):
        main(["test", "--config", str(attack_config(tmp_path, tmp_path / "other.ckpt"))])


def test_a_defect_keeps_its_traceback(config: Path, tmp_path: Path) -> None:
    """Seven channels meet a network for four inside torch: no user can mend that."""
    with pytest.raises(RuntimeError, match="channels"):
        fit(config, tmp_path / "run", "--data.init_args.channels=7")


def test_float32_is_true_unless_asked_otherwise(config: Path, tmp_path: Path) -> None:
    for option, precision in ((), "highest"), (("--allow_tf32=true",), "high"):
        fit(config, tmp_path / precision, "--trainer.fast_dev_run=true", *option)
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "high")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    assert list(tmp_path.iterdir()) == []  # fast_dev_run leaves nothing


@pytest.mark.parametrize(
    ("options", "bar"),
    [
        (["--trainer.enable_progress_bar=true"], "TQDMProgressBar"),
        (["--trainer.enable_progress_bar=false"], "NoneType"),
        (["--trainer.enable_progress_bar=true", "--trainer.callbacks=RichProgressBar"], "RichProgressBar"),
    ],
)
def test_the_users_progress_bar_is_the_one(config: Path, options: list[str], bar: str) -> None:
    cli = FlowFoolCLI(["fit", "--config", str(config), "--trainer.fast_dev_run=1", *options])
    assert type(cli.trainer.progress_bar_callback).__name__ == bar


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", None),
        ({"WANDB_MODE": "online"}, "", "online"),
        ({}, "machine api.wandb.ai login user password key", None),
        ({}, "machine example.org login user password key", "offline"),
        ({"WANDB_BASE_URL": "https://example.org"}, "machine example.org login user password key", None),
        ({}, "not a netrc file", "offline"),
    ],
)
def test_wandb_is_offline_without_a_key(
    environment: dict[str, str], netrc: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **environment}.items():
        monkeypatch.setenv(name, value)
    set_wandb_mode()
    assert os.environ.get("WANDB_MODE") == mode


def test_a_training_with_wandb_needs_no_network(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TINY_FAST", "1")
    artifacts = []
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda run, artifact: artifacts.append(artifact))
    logger = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"save_dir": str(tmp_path)}}
    (tmp_path / "logger.yaml").write_text(yaml.safe_dump(logger))
    fit(config, tmp_path / "a run", f"--trainer.logger={tmp_path / 'logger.yaml'}", "--trainer.max_epochs=1")
    run = wandb.run
    try:
        assert run.offline
        assert run.config["model"]["init_args"]["classifier"]["class_path"] == "test_cli.TinyClassifier"
        assert run.summary["val/video_accuracy"] == 1.0
    finally:
        run.finish()
    (artifact,) = artifacts
    assert list(artifact.manifest.entries) == ["final.ckpt"]
    assert artifact.metadata["val/video_accuracy"] == 1.0
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
