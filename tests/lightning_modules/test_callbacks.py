import json
from pathlib import Path
from typing import ClassVar

import cv2
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import flow_to_image

from datamodules.batches import FlowPairBatch
from datamodules.flow_store import FlowStore, store_manifest
from lightning_modules.callbacks import EpochSeed, FinalWeights
from lightning_modules.checkpoints import CheckpointError, check_trained_with, read_entry
from lightning_modules.flow.raft import RAFT
from lightning_modules.flow_finetuning import FlowFinetuning
from lightning_modules.flow_pictures import FlowPictures, draw
from lightning_modules.run_folder import RunFolder, WholeCheckpoints, whole_file

STOPPING = {"class_path": "EarlyStopping", "init_args": {"patience": 2}}
PICTURES = {"class_path": "lightning_modules.flow_pictures.FlowPictures"}
BEFORE = {
    "seed_everything": 0,
    "model": {"class_path": "M", "init_args": {"depth": 18, "checkpoint": None}},
    "data": {"class_path": "D", "init_args": {"root": "videos", "num_workers": 2}},
    "trainer": {"max_epochs": 3, "devices": 1, "callbacks": [STOPPING]},
}


def started(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.config.write_text(yaml.safe_dump(BEFORE))
    torch.save({}, run.final)
    return run


def changed(*path: str | int, to: object) -> dict:
    config = json.loads(json.dumps(BEFORE))
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return config


@pytest.mark.parametrize(
    "config",
    [
        BEFORE,
        changed("trainer", "devices", to=8),
        changed("trainer", "logger", to={"class_path": "WandbLogger"}),
        changed("data", "init_args", "num_workers", to=0),
        changed("data", "init_args", "root", to="./x/../videos"),
        changed("trainer", "callbacks", to=[PICTURES, STOPPING]),
    ],
)
def test_what_does_not_decide_the_weights_may_change(tmp_path: Path, config: dict) -> None:
    started(tmp_path).check(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("model", "init_args", "depth", to=34), r"model\.init_args\.depth: 18 there, 34 now"),
        (changed("model", "init_args", "checkpoint", to="w.ckpt"), r"checkpoint: not set there, 'w\.ckpt' now"),
        (changed("seed_everything", to=1), r"seed_everything: 0 there, 1 now"),
        (changed("data", "init_args", "root", to="others"), r"data\.init_args\.root: 'videos' there, 'others' now"),
        (changed("trainer", "callbacks", 0, "init_args", "patience", to=9), r"callbacks\[0\]\.init_args\.patience: 2"),
    ],
)
def test_another_config_is_refused_by_key_and_both_values(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        started(tmp_path).check(config)
    assert str(tmp_path) in str(error.value) and "remove this one" in str(error.value)


def test_a_folder_without_weights_takes_any_config(tmp_path: Path) -> None:
    run = started(tmp_path)
    run.final.unlink()
    run.check(changed("seed_everything", to=1))


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "last.ckpt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "last.ckpt").read_text() == "before"
    WholeCheckpoints().save_checkpoint({"a": 1}, tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True) == {"a": 1}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


class Drawn(pl.Callback):
    """What training draws from the global generator: the order of the data, and a number at each batch."""

    def __init__(self) -> None:
        self.numbers: dict[int, list[float]] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.numbers.setdefault(trainer.current_epoch, []).extend([float(batch[0]), float(torch.rand(()))])


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/error", (self.weight - batch).abs().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noisy(Dataset[Tensor]):
    """Numbers that are disturbed at each access, as augmentation does."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return index + torch.rand(())


def fit(
    folder: Path, epochs: int, *callbacks: pl.Callback, resume: Path | None = None, num_workers: int = 0
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    loaders = DataLoader(Noisy(), shuffle=True, num_workers=num_workers), DataLoader(torch.arange(6.0))
    trainer.fit(Plain(), *loaders, ckpt_path=resume, weights_only=True)
    return trainer


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


@pytest.mark.parametrize(("epochs_before", "num_workers"), [(1, 0), (2, 0), (3, 0), (2, 1)])
def test_a_resumed_training_draws_what_the_whole_one_draws(
    tmp_path: Path, seeded: None, epochs_before: int, num_workers: int
) -> None:
    whole, first, second = Drawn(), Drawn(), Drawn()
    fit(tmp_path, 4, EpochSeed(), whole, num_workers=num_workers)
    torch.manual_seed(123)
    trainer = fit(tmp_path, epochs_before, EpochSeed(), first, num_workers=num_workers)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.manual_seed(456)
    fit(tmp_path, 4, EpochSeed(), second, resume=tmp_path / "x.ckpt", num_workers=num_workers)
    assert {**first.numbers, **second.numbers} == whole.numbers
    assert set(second.numbers) == set(range(epochs_before, 4))
    assert len({tuple(numbers) for numbers in whole.numbers.values()}) == 4


def test_without_a_seed_nothing_is_seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    runs = Drawn(), Drawn()
    for run in runs:
        fit(tmp_path, 1, EpochSeed(), run)
    assert runs[0].numbers != runs[1].numbers


def test_a_finished_training_leaves_metrics_and_weights(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 2, FinalWeights())
    run = RunFolder(tmp_path)
    assert json.loads(run.metrics.read_text()) == {
        "epoch": 1,
        "global_step": 12,
        "val/error": pytest.approx(trainer.callback_metrics["val/error"].item()),
    }
    saved = torch.load(run.final, weights_only=True)
    assert saved["classes"] is None
    assert torch.equal(saved["state_dict"]["weight"], trainer.lightning_module.weight.detach())


class Clips(pl.LightningDataModule):
    """Data with classes and a flow store."""

    classes: ClassVar[list[str]] = ["left", "right"]

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.store = FlowStore(store, store_manifest({"algorithm": "tvl1", "tau": 0.25}, {}))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Noisy())


class Estimates(Plain):
    @property
    def trained(self) -> nn.Module:
        return RAFT(size="small", size_rule="resize")


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "final.ckpt"])
def test_every_checkpoint_tells_what_its_weights_do_not_show(tmp_path: Path, name: str) -> None:
    """So that `check_trained_with` and ModelUnderAttack refuse last.ckpt for what they refuse final.ckpt."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[FinalWeights(), ModelCheckpoint(tmp_path / "checkpoints", filename="last")],
    )
    trainer.fit(Estimates(), datamodule=Clips(tmp_path / "store"))
    assert read_entry(tmp_path / name, "classes") == ["left", "right"]
    assert read_entry(tmp_path / name, "flow") == {"algorithm": "tvl1", "tau": 0.25}
    assert read_entry(tmp_path / name, "settings")["algorithm"] == "raft"
    with pytest.raises(CheckpointError, match=rf"{tmp_path / name} was trained with size_rule 'resize', but 'pad' is"):
        check_trained_with(tmp_path / name, {"size_rule": "pad"})


class Fails(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module) -> None:
        raise RuntimeError("out of memory")


def test_a_failed_training_does_not_look_finished(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, 2, FinalWeights(), Fails())
    assert not RunFolder(tmp_path).final.exists() and not RunFolder(tmp_path).metrics.exists()


def test_flows_of_a_picture_share_one_scale() -> None:
    """Half the target's vector must look paler than the target: drawn alone it would look the same."""
    target = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    picture = draw(torch.rand(1, 3, 8, 8), target / 2, target)
    estimated, true, difference = (picture[:, 6, 2 + 10 * column + 4] for column in (1, 2, 3))
    assert torch.equal(true, flow_to_image(target)[0, :, 4, 4])
    assert not torch.equal(estimated, true)
    assert torch.equal(flow_to_image(target / 2)[0, :, 4, 4], true)
    expected = flow_to_image(torch.cat((target / 2, target, -target / 2)))[:, :, 4, 4]
    assert torch.equal(torch.stack((estimated, true, difference)), expected)


class Still(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, frames: Tensor) -> Tensor:
        return self.weight * frames[:, 1:, :2]


def test_pictures_lie_in_the_run_folder(tmp_path: Path) -> None:
    module = FlowFinetuning(estimator=Still(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    batch = FlowPairBatch(torch.rand(3, 2, 3, 8, 10), torch.randn(3, 1, 2, 8, 10))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[FlowPictures(pairs=2, every_n_epochs=2)],
    )
    loader = DataLoader([batch, batch], batch_size=None)
    trainer.fit(module, loader, loader)
    pictures = sorted(RunFolder(tmp_path).pictures.iterdir())
    assert [picture.name for picture in pictures] == ["epoch-001.png", "epoch-003.png"]
    shown = torch.from_numpy(cv2.imread(str(pictures[0]))).flip(2).permute(2, 0, 1)
    assert shown.shape == (3, 2 + 2 * 10, 2 + 4 * 12)
    assert torch.equal(shown[:, 2:10, 2:12], (batch.frames[0, 0] * 255).round().to(torch.uint8))
