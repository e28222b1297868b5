"""The confusion matrix by hand, in one process and in two, and what a training's offline W&B run holds."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import FlowPairBatch, FlowStackBatch
from lightning_modules.confusion import ConfusionMatrix, draw
from lightning_modules.flow_classification import FlowClassification
from lightning_modules.flow_finetuning import FlowFinetuning
from lightning_modules.flow_pictures import FlowPictures
from lightning_modules.run_folder import RunFolder

OfflineRun = runpy.run_path(str(Path(__file__).parents[1] / "attacks" / "wandb_offline.py"))["OfflineRun"]
CLASSES = ["left", "right", "still"]
SAID = [(0, 0), (0, 1), (0, 0), (1, 1), (2, 1), (2, 1), (2, 2)]
"""class, prediction"""
COUNTS = [[2, 1, 0], [0, 1, 0], [0, 2, 1]]


class GivenLogits(nn.Module):
    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, flow: Tensor) -> Tensor:
        return self.weight * flow.mean((2, 3))


class Given(Dataset[FlowStackBatch]):
    def __len__(self) -> int:
        return len(SAID)

    def __getitem__(self, index: int) -> FlowStackBatch:
        label, said = SAID[index]
        flow = 9 * torch.eye(3)[said].view(3, 1, 1).expand(3, 4, 4)
        return FlowStackBatch(flow, torch.tensor(label), torch.tensor(index))


class Data(pl.LightningDataModule):
    classes = CLASSES

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Given(), batch_size=4)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Given(), batch_size=3)


class Kept(pl.Callback):
    """The counts of each validation."""

    def __init__(self) -> None:
        self.counts: list[list[list[int]]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.counts.append(pl_module.confusion.compute().tolist())


def trainer(folder: Path, *callbacks: pl.Callback, **options: object) -> pl.Trainer:
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": False,
            **quiet,
            **options,
        },
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def classification() -> FlowClassification:
    return FlowClassification(
        classifier=GivenLogits, num_classes=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    )


def test_counts_by_hand_at_each_validation(tmp_path: Path) -> None:
    """The rows are the classes; the sanity check, and the epoch before, are not counted in."""
    kept = Kept()
    trainer(tmp_path, kept, ConfusionMatrix()).fit(classification(), datamodule=Data())
    assert kept.counts[1:] == [COUNTS, COUNTS]
    pictures = sorted(path.name for path in RunFolder(tmp_path).pictures.iterdir())
    assert pictures == ["confusion-epoch-000.png", "confusion-epoch-001.png"]


def test_two_processes_count_each_stack_once(tmp_path: Path) -> None:
    """Seven stacks over two processes: one is dealt twice."""
    fitted = trainer(tmp_path, ConfusionMatrix(), devices=2, strategy="ddp_fork", max_epochs=1)
    module = classification()
    module.on_validation_end = lambda: torch.save(module.confusion.compute(), tmp_path / "counts.pt")  # type: ignore[method-assign]
    fitted.validate(module, datamodule=Data(), verbose=False)
    assert torch.load(tmp_path / "counts.pt", weights_only=True).tolist() == COUNTS


def test_the_picture_is_darker_where_more_were_counted(tmp_path: Path) -> None:
    draw(torch.tensor([[0, 8], [3, 1]]), ["a", "b"], tmp_path / "p.png")
    picture = cv2.imread(str(tmp_path / "p.png"), cv2.IMREAD_GRAYSCALE)
    values, counts = np.unique(picture, return_counts=True)
    filled = sorted(values[np.argsort(counts)[-4:]])  # the four cells (and the paper, white as the empty one)
    assert filled[0] == 0 and filled[-1] == 255
    draw(torch.eye(101, dtype=torch.int64), [f"class {i}" for i in range(101)], tmp_path / "large.png")
    assert min(cv2.imread(str(tmp_path / "large.png")).shape[:2]) > 2000


def test_another_module_is_refused(tmp_path: Path) -> None:
    module = FlowFinetuning(estimator=Still(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.raises(TypeError, match="this is FlowFinetuning"):
        trainer(tmp_path, ConfusionMatrix()).fit(module, *2 * [pairs()])


class Still(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, frames: Tensor) -> Tensor:
        return self.weight * frames[:, 1:, :2]


def pairs() -> DataLoader:
    batch = FlowPairBatch(torch.rand(3, 2, 3, 8, 10), torch.randn(3, 1, 2, 8, 10))
    return DataLoader([batch, batch], batch_size=None)


def test_the_offline_runs_of_trainings_hold_what_their_panels_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "offline", "SILENT": "true", "RUN_GROUP": "quickstart"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    runs = {}
    for name in ("flownet2", "classifier-tvl1"):
        logger = WandbLogger(project="toy", name=name, save_dir=tmp_path / name)
        (tmp_path / name).mkdir()
        if name == "flownet2":
            module = FlowFinetuning(estimator=Still(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
            trainer(tmp_path / name, FlowPictures(pairs=2), logger=logger).fit(module, pairs(), pairs())
        else:
            trainer(tmp_path / name, ConfusionMatrix(), logger=logger).fit(classification(), datamodule=Data())
        wandb.finish()
        runs[name] = OfflineRun(tmp_path / name)
    flow, classifier = runs.values()
    assert flow.group == classifier.group == "quickstart"
    assert flow.names() >= {"train/loss", "val/loss", "val/epe", "val/epe_zero", "val/epe_start", "val/flow"}
    accuracies = {"train/loss", "train/accuracy", "val/loss", "val/stack_accuracy", "val/video_accuracy"}
    assert classifier.names() >= accuracies | {"val/confusion", "val/confusion_chart_table"}
    columns, rows = classifier.table("val/confusion_chart_table")
    assert columns == ["Actual", "Predicted", "nPredictions"]
    assert rows == [[CLASSES[i], CLASSES[j], COUNTS[i][j]] for i in range(3) for j in range(3)]
    for run, name in ((flow, "val/flow"), (classifier, "val/confusion")):
        (picture,) = run.media[name]["filenames"]
        assert (run.files / picture).stat().st_size > 0
