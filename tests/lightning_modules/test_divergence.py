"""A training that diverges stops, says why, and leaves nothing that looks finished; its network computes no flow."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.flow_precompute import NetworkError, precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.synthetic import EmbeddedDataset
from lightning_modules.callbacks import FinalWeights
from lightning_modules.cli import FlowFoolCLI, main
from lightning_modules.divergence import FiniteTraining
from lightning_modules.run_folder import RunFolder


class Diverging(pl.LightningModule):
    """The loss is `value` at the given steps, of the given process; the weight moves by 1 at each other step.

    With `in_gradient` the loss is finite and its gradient is not.
    """

    def __init__(
        self, *, lr: float = 1.0, value: float = torch.nan, steps: tuple[int, ...] = (3,), in_gradient: bool = False,
        process: int = 0, validates: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.lr, self.value, self.steps, self.in_gradient = lr, value, steps, in_gradient
        self.process, self.validates = process, validates

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step not in self.steps or self.global_rank != self.process:
            return self.weight
        return (self.weight * 0).sqrt() if self.in_gradient else self.weight * self.value

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/error", torch.tensor(self.validates))
        self.log("val/finite", torch.tensor(1.5))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Numbers(pl.LightningDataModule):
    """Two steps an epoch in each of two processes, four in one."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(4.0))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(2.0))


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.delenv("FLOWFOOL_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])


def config(folder: Path, **trainer: object) -> Path:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    content = {
        "seed_everything": 0,
        "model": {"class_path": "test_divergence.Diverging"},
        "data": {"class_path": "test_divergence.Numbers"},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "limit_train_batches": 2, **quiet, **trainer},
    }
    path = folder / "diverging.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(config: Path, folder: Path, *options: str) -> None:
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={folder}", *options])


def refused(config: Path, folder: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        fit(config, folder, *options)
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("value", "shown"), [(".nan", "nan"), (".inf", "-inf"), ("-1.0e+39", "inf")])
def test_the_first_loss_that_is_not_finite_stops_the_training(tmp_path: Path, value: str, shown: str) -> None:
    message = refused(config(tmp_path), tmp_path / "run", f"--model.init_args.value={value}")
    assert re.search(rf"Error: epoch 1, step 3: the training loss is {shown}\. .*without final\.ckpt", message)
    assert files(tmp_path / "run") == {"config.yaml", "checkpoints/last.ckpt"}
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"], last["state_dict"]["weight"]) == (0, 2, -2.0)


def test_the_advice_leads_to_no_other_error(tmp_path: Path) -> None:
    """Each option that the message names, in another folder and in this one after it was removed."""
    path, run = config(tmp_path), tmp_path / "classifiers" / "farneback"
    RunFolder(run.parent / "tvl1").checkpoints.mkdir(parents=True)
    torch.save({}, RunFolder(run.parent / "tvl1").final)
    message = refused(path, run)
    assert (
        f"after removing {run}, " in message
        and "or in another folder" in message
        and "(make gives the change to tvl1, too" in message
    )
    options = [option.rstrip(",") for option in re.findall(r"--trainer\.(?!default_root_dir)\S+", message)]
    assert options == ["--trainer.gradient_clip_val=1"] and "a learning rate below 1 " in message
    assert "holds a training with another config" in refused(path, run, *options)  # why it says so
    healthy = "--model.init_args.steps=[]"
    fit(path, tmp_path / "other", healthy, *options)
    run.rename(tmp_path / "removed")
    fit(path, run, healthy, "--model.init_args.lr=0.5")
    assert RunFolder(run).final.is_file()


def test_before_the_first_checkpoint_nothing_need_be_removed(tmp_path: Path) -> None:
    message = refused(config(tmp_path, precision="bf16-mixed"), tmp_path / "run", "--model.init_args.steps=[1]")
    assert "epoch 0, step 1" in message and "removing" not in message and "--trainer.precision=32-true" in message
    fit(config(tmp_path), tmp_path / "run", "--model.init_args.steps=[]", "--trainer.precision=32-true")


def test_at_the_first_step_no_learning_rate_is_to_blame(tmp_path: Path) -> None:
    message = refused(config(tmp_path), tmp_path / "run", "--model.init_args.steps=[0]")
    assert "epoch 0, step 0" in message and "look at the data" in message and "rate" not in message


def test_a_gradient_that_is_not_finite_leaves_no_checkpoint_either(tmp_path: Path) -> None:
    """In the last step of all, no loss shows it."""
    options = "--model.init_args.in_gradient=true", "--model.init_args.steps=[5]"
    message = refused(config(tmp_path), tmp_path / "run", *options)
    assert "epoch 2, step 6: weights are not finite (weight)" in message
    assert files(tmp_path / "run") == {"config.yaml", "checkpoints/last.ckpt"}
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_checkpoints_within_an_epoch_hold_finite_weights(tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=2, devices=1, default_root_dir=tmp_path, callbacks=[keeps, FiniteTraining(), FinalWeights()], **quiet
    )
    with pytest.raises(FloatingPointError, match=r"epoch 0, step 3: weights are not finite"):
        trainer.fit(Diverging(steps=(2,), in_gradient=True), datamodule=Numbers())
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["step=1.ckpt", "step=2.ckpt"]


@pytest.mark.timeout(120)
def test_two_processes_stop_together(tmp_path: Path) -> None:
    """The loss of the second alone is not finite; neither waits for the other until a barrier times out."""
    command = config(tmp_path, devices=2, strategy="ddp_fork")
    message = refused(command, tmp_path / "run", "--model.init_args.process=1", "--trainer.max_epochs=5")
    assert "epoch 1, step 3: the training loss of process 1 is nan" in message and "Traceback (most" not in message
    assert files(tmp_path / "run") == {"config.yaml", "checkpoints/last.ckpt"}


def test_a_mask_of_minus_infinity_is_no_divergence(tmp_path: Path) -> None:
    fit(config(tmp_path), tmp_path / "run", "--model.init_args.steps=[]")
    assert torch.load(tmp_path / "run" / "final.ckpt", weights_only=True)["state_dict"]["mask"][0, 1] == -torch.inf


def test_metrics_are_json_whatever_they_are(tmp_path: Path) -> None:
    for value in ("nan", "inf"):
        run = tmp_path / value
        fit(config(tmp_path), run, "--model.init_args.steps=[]", f"--model.init_args.validates=.{value}")

        def no_json(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        metrics = json.loads((run / "metrics.json").read_text(), parse_constant=no_json)
        assert metrics == {"epoch": 2, "global_step": 6, "val/error": None, "val/finite": 1.5}


def test_the_command_line_installs_it_by_itself(tmp_path: Path) -> None:
    cli = FlowFoolCLI(["fit", "--config", str(config(tmp_path)), "--trainer.fast_dev_run=1",
                       "--trainer.callbacks=LearningRateMonitor", "--trainer.logger=true"])  # fmt: skip
    assert any(isinstance(callback, FiniteTraining) for callback in cli.trainer.callbacks)


class Network(nn.Module):
    """A flow network whose flow is its weight, or not finite from the given call on."""

    differentiable = True
    settings = {"algorithm": "network"}  # noqa: RUF012

    def __init__(self, *, weight: float = 1.0, fails_at: int = 99, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.fails_at, self.checkpoint, self.calls = fails_at, checkpoint, 0

    def forward(self, frames: Tensor) -> Tensor:
        flow = self.weight + 0 * (frames[:, 1:, :2] - frames[:, :-1, :2])
        self.calls += 1
        return flow / (self.calls != self.fails_at)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedDataset:
    folder = tmp_path_factory.mktemp("videos")
    dataset = EmbeddedDataset(folder, groups=3, clips_per_group=1, test_groups=1, frames=12, size=(16, 16))
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("checkpoint", [None, Path("runs/x/final.ckpt")])
def test_weights_that_are_not_finite_are_blamed_and_not_the_videos(
    videos: EmbeddedDataset, tmp_path: Path, workers: int, checkpoint: Path | None
) -> None:
    network = Network(weight=torch.nan, checkpoint=checkpoint)
    store = FlowStore(tmp_path / "store", store_manifest(network.settings, videos.frame_settings))
    named = f"Network with the weights of {checkpoint} has" if checkpoint else "Network has"
    with pytest.raises(NetworkError, match=rf"{named} weights that are not finite, weight first") as error:
        precompute(videos, videos.clips("test"), network, store, workers=workers)
    assert ".avi" not in str(error.value) and not os.path.exists(store.folder)


def test_flow_that_is_not_finite_is_blamed_on_the_network(videos: EmbeddedDataset, tmp_path: Path) -> None:
    """Finite weights can overflow; the first clip stops the extraction, what was finished stays."""
    network, clips = Network(fails_at=2, checkpoint=Path("runs/x/final.ckpt")), videos.clips("test")
    store = FlowStore(tmp_path / "store", store_manifest(network.settings, videos.frame_settings))
    with pytest.raises(NetworkError, match=r"^Network with the weights of runs/x/final\.ckpt gives flow that is not"):
        precompute(videos, clips, network, store, workers=1)
    assert [store.has(clip) for clip in clips[:3]] == [True, False, False]
