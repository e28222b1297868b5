"""`mixed_precision: auto`: by the machine, overridden, and kept by a training that goes on."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import trainer_precision
from lightning_modules.cli import FlowFoolCLI, main
from lightning_modules.trainer_precision import choose_precision

CONFIGS = Path(__file__).parents[2] / "configs"


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.weight - batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ones(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2)


CONFIG = {
    "mixed_precision": "auto",
    "model": {"class_path": "test_trainer_precision.Line"},
    "data": {"class_path": "test_trainer_precision.Ones"},
    "trainer": {
        **{"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False},
        **{"enable_progress_bar": False, "enable_model_summary": False},
    },
}


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(trainer_precision, "processor_name", lambda device: f"processor of {device}")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "line.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path / "line.yaml"


def machine(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    monkeypatch.setattr(trainer_precision, "has_bf16_units", lambda device: native)


def fit(config: Path, folder: Path, *options: str) -> None:
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", *options])


def recorded(folder: Path) -> str:
    return yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"]


def half_done(folder: Path) -> None:
    """As a training that was killed after its last epoch."""
    (folder / "final.ckpt").unlink()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("precision: ")]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="pytorch_lightning.utilities.rank_zero")
    return caplog


@pytest.mark.parametrize(
    ("native", "chosen", "other"), [(True, "bf16-mixed", "32-true"), (False, "32-true", "bf16-mixed")]
)
def test_the_machine_decides_and_one_line_tells(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, native, chosen, other
) -> None:
    machine(monkeypatch, native=native)
    fit(config, tmp_path / "run")
    assert recorded(tmp_path / "run") == chosen
    (line,) = told(log)
    assert line.startswith(f"precision: {chosen} (processor of cpu: with")
    assert line.endswith(f"--trainer.precision={other} overrides")
    assert ("without" in line) is not native


@pytest.mark.parametrize("native", [True, False])
def test_the_trainers_option_overrides(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, native: bool
) -> None:
    machine(monkeypatch, native=native)
    for given in ("32-true", "bf16-mixed"):
        fit(config, tmp_path / given, f"--trainer.precision={given}")
        assert recorded(tmp_path / given) == given
        assert told(log)[-1].startswith(f"precision: {given}, as trainer.precision says (processor of cpu")
        fit(
            config,
            tmp_path / "none",
            f"--trainer.precision={given}",
            "--mixed_precision=null",
            "--trainer.fast_dev_run=1",
        )
    assert len(told(log)) == 2  # nothing is told where nothing is chosen


@pytest.mark.parametrize("began_native", [True, False])
def test_a_training_goes_on_in_its_precision_on_another_machine(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, began_native: bool
) -> None:
    machine(monkeypatch, native=began_native)
    fit(config, tmp_path / "run")
    half_done(tmp_path / "run")
    machine(monkeypatch, native=not began_native)
    log.clear()
    fit(config, tmp_path / "run")
    precision = "bf16-mixed" if began_native else "32-true"
    assert recorded(tmp_path / "run") == precision
    (line,) = told(log)
    assert line.startswith(f"precision: {precision}, as the training in {tmp_path / 'run'} began (processor of cpu")
    assert ("slow here. To train in float32, begin in another folder" in line) is began_native

    half_done(tmp_path / "run")
    other = "32-true" if began_native else "bf16-mixed"
    with pytest.raises(SystemExit, match=f"trainer.precision: '{precision}' there, '{other}' now"):
        fit(config, tmp_path / "run", f"--trainer.precision={other}")


@pytest.mark.parametrize("before", ["bf16-mixed", None])
def test_folders_from_before_this_option_go_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    machine(monkeypatch, native=before is None)
    fit(config, tmp_path / "run", "--mixed_precision=null", *([f"--trainer.precision={before}"] if before else []))
    path = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    written.pop("mixed_precision", None)
    assert written["trainer"].get("precision") == before
    path.write_text(yaml.safe_dump(written))
    half_done(tmp_path / "run")
    fit(config, tmp_path / "run")
    assert recorded(tmp_path / "run") == (before or "32-true")
    half_done(tmp_path / "run")
    if before is None:  # and the same, called by its name
        fit(config, tmp_path / "run", "--trainer.precision=32")


def test_a_folder_without_weights_decides_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"trainer": {"precision": "bf16-mixed"}}))
    machine(monkeypatch, native=False)
    fit(config, tmp_path / "run")
    assert recorded(tmp_path / "run") == "32-true"


def on_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: int, mps: bool = False) -> None:
    monkeypatch.setattr(trainer_precision.XLAAccelerator, "is_available", staticmethod(lambda: False))
    monkeypatch.setattr(trainer_precision.MPSAccelerator, "is_available", staticmethod(lambda: mps))
    monkeypatch.setattr(trainer_precision.CUDAAccelerator, "is_available", staticmethod(lambda: bool(capabilities)))
    monkeypatch.setattr(trainer_precision.CUDAAccelerator, "auto_device_count", staticmethod(lambda: len(capabilities)))
    parse = staticmethod(lambda devices: devices if isinstance(devices, list) else list(range(int(devices))))
    monkeypatch.setattr(trainer_precision.CUDAAccelerator, "parse_devices", parse)
    monkeypatch.setattr(
        trainer_precision,
        "has_bf16_units",
        lambda device: capabilities[device.index] >= 8 if device.type == "cuda" else True,
    )


@pytest.mark.parametrize(
    ("capabilities", "accelerator", "devices", "expected"),
    [
        ((9,), "auto", 1, "bf16-mixed"),
        ((7,), "auto", "auto", "32-true"),
        ((9, 7), "gpu", "auto", "32-true"),
        ((9, 7), "cuda", 1, "bf16-mixed"),
        ((9, 7), "cuda", [1], "32-true"),
        ((9,), "cuda", 4, "bf16-mixed"),  # torchrun: each process sees its own
        ((7,), "cpu", 1, "bf16-mixed"),
        ((), "auto", 1, "bf16-mixed"),
        ((9,), "tpu", 1, "32-true"),
    ],
)
def test_only_the_devices_in_use_are_asked(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[int, ...], accelerator: str, devices: Any, expected: str
) -> None:
    on_gpus(monkeypatch, *capabilities)
    assert choose_precision(None, accelerator=accelerator, devices=devices, folder=None)[0] == expected


def test_apples_gpus_train_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(monkeypatch, mps=True)
    assert choose_precision(None, accelerator="auto", devices=1, folder=None)[0] == "32-true"


def test_the_small_preset_needs_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN", "UCF101", "FLOW"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("FLOW_YAML", "../flow/tvl1.yaml")
    chosen = {}

    class Chosen(FlowFoolCLI):
        def before_instantiate_classes(self) -> None:
            super().before_instantiate_classes()
            chosen[native] = self.config.fit.trainer.precision
            raise KeyboardInterrupt

    for native in (True, False):
        machine(monkeypatch, native=native)
        with pytest.raises(KeyboardInterrupt):
            Chosen(["fit", f"--config={CONFIGS}/small/train-classifier.yaml", f"--trainer.default_root_dir={tmp_path}"])
    assert chosen == {True: "bf16-mixed", False: "32-true"}


def test_no_preset_fixes_a_low_precision() -> None:
    for path in CONFIGS.glob("*/*.yaml"):
        for name in ("bf16", "bfloat16", "16-"):
            assert f"precision: {name}" not in path.read_text(), path


@pytest.mark.slow
def test_processes_that_differ_are_refused(config: Path, tmp_path: Path) -> None:
    """Two machines of one run, each with its own choice."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lightning_modules", "fit", "--config", str(config), "--trainer.strategy=ddp"]
    command += ["--trainer.num_nodes=2", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    processes = [
        subprocess.Popen(
            [*command, f"--trainer.precision={precision}"],
            env={
                **{**os.environ, "PYTHONPATH": paths, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                **{"NODE_RANK": str(rank), "LOCAL_RANK": "0"},
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, precision in enumerate(("bf16-mixed", "32-true"))
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    for rank, error in enumerate(errors):
        assert f"Error: process {rank} on " in error and "process 0 in bf16-mixed" in error, error
        assert "--trainer.precision=32-true" in error
