"""Learning rates and random draws of a training over its epochs, its interruption and its processes."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.batches import FlowPairBatch, FlowStackBatch
from lightning_modules.callbacks import EpochSeed
from lightning_modules.cli import main

EPOCHS, STEPS, RATE = 4, 3, 0.1
CLASSIFICATION = "lightning_modules.flow_classification.FlowClassification"
FINETUNING = "lightning_modules.flow_finetuning.FlowFinetuning"


class Weighted(nn.Module):
    """One weight: a classifier of flow stacks, and an estimator of frame pairs."""

    differentiable = True

    def __init__(self, *, num_classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, given: Tensor) -> Tensor:
        if given.ndim == 4:
            return self.weight * given.mean((2, 3))[:, :2]
        return self.weight * given[:, 1:, :2]


class Batches(pl.LightningDataModule):
    """Three batches an epoch."""

    num_classes = 2

    def __init__(self, *, pairs: bool) -> None:
        super().__init__()
        stack = FlowStackBatch(torch.ones(2, 2, 4, 4), torch.tensor([0, 1]), torch.tensor([0, 1]))
        pair = FlowPairBatch(torch.ones(2, 2, 3, 8, 8), torch.ones(2, 1, 2, 8, 8))
        self.batch = pair if pairs else stack

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * STEPS, batch_size=None)


class Rates(pl.Callback):
    """Appends the rate of each step to rates.txt; the environment says before which epoch the training dies."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == int(os.environ.get("KILLED_BEFORE", EPOCHS)):
            raise RuntimeError("killed")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        with (Path(trainer.default_root_dir) / "rates.txt").open("a") as file:
            file.write(f"{trainer.optimizers[0].param_groups[0]['lr']!r}\n")


def config(system: str, periods: int, **options: str) -> dict:
    pairs = system == FINETUNING
    network = {"estimator" if pairs else "classifier": {"class_path": "test_schedule.Weighted"}}
    cosine = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": periods}}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": RATE}}
    return {
        "seed_everything": 0,
        "model": {"class_path": system, "init_args": {**network, "optimizer": sgd, "lr_scheduler": cosine, **options}},
        "data": {"class_path": "test_schedule.Batches", "init_args": {"pairs": pairs}},
        "trainer": {
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "test_schedule.Rates"}],
        },
    }


@pytest.fixture
def as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above can be imported by name; what the command line leaves in the environment is taken back."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("FLOWFOOL_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])


def cosine(count: int, periods: int) -> list[float]:
    return [RATE * (1 + math.cos(math.pi * k / periods)) / 2 for k in range(count)]


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
@pytest.mark.parametrize(
    ("system", "interval"),
    [(CLASSIFICATION, None), (FINETUNING, None), (CLASSIFICATION, "step")],
    ids=["classification by epoch", "finetuning by epoch", "classification by step"],
)
def test_the_rate_of_a_killed_and_resumed_training_follows_its_schedule(
    system: str, interval: str | None, tmp_path: Path, as_a_command: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a cosine over the training, by epochs unless the module is told to count steps."""
    if interval is None:
        expected = [rate for rate in cosine(EPOCHS, EPOCHS) for _ in range(STEPS)]
        written = config(system, EPOCHS)
    else:
        expected = cosine(EPOCHS * STEPS, EPOCHS * STEPS)
        written = config(system, EPOCHS * STEPS, lr_interval=interval)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
    command = ["fit", f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}/run"]
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as during, pytest.raises(RuntimeError, match="killed"):
        during.setenv("KILLED_BEFORE", "2")
        main(command)
    main(command)
    rates = [float(line) for line in (tmp_path / "run" / "rates.txt").read_text().split()]
    assert rates == pytest.approx(expected, rel=1e-6)


class Draws(pl.Callback):
    """Writes what each process draws in each epoch: the items it is given, and a number at each step."""

    def __init__(self) -> None:
        self.drawn: list[dict[str, list[float]]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.drawn.append({"items": [], "noise": [], "numbers": []})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        item, noise = batch.squeeze().tolist()
        for name, value in (("items", item), ("noise", noise), ("numbers", float(torch.rand(())))):
            self.drawn[-1][name].append(value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (Path(trainer.default_root_dir) / f"{trainer.global_rank}.json").write_text(json.dumps(self.drawn))


class Noisy(torch.utils.data.Dataset[Tensor]):
    """Items that are disturbed at each access, as augmentation does."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack([torch.tensor(float(index)), torch.rand(())])


class Fits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight - batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_processes_share_the_items_and_draw_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same random numbers in both, a step would see each augmentation twice."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[EpochSeed(), Draws()],
    )
    trainer.fit(Fits(), DataLoader(Noisy(), shuffle=True))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(drawn) for drawn in ranks] == [2, 2]
    for epoch, (first, second) in enumerate(zip(*ranks, strict=True)):
        assert sorted(first["items"] + second["items"]) == list(range(8))
        for kind in ("noise", "numbers"):
            common = set(first[kind]) & set(second[kind])
            assert not common, f"epoch {epoch}: both processes drew {sorted(common)} ({kind})"
    noises = [value for drawn in ranks for epoch in drawn for value in epoch["noise"]]
    assert len(set(noises)) == len(noises), "an epoch repeats the numbers of another"
