"""The accuracies that a sweep leaves: those of a plain test, whatever was killed, without a pass for finished clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attacks.attack import Attack
from attacks.one_shot import OneShot
from attacks.realisability import rows_path
from attacks.sweep import Sweep
from attacks.sweep_callback import SweepCallback
from datamodules.frame_stacks import FrameStacks
from datamodules.video_dataset import Clip
from lightning_modules.model_under_attack import ModelUnderAttack

LENGTH = 4


class Differences(nn.Module):
    """Flow of pairs; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    @property
    def settings(self) -> dict:
        return {"algorithm": "differences"}

    def forward(self, frames: Tensor) -> Tensor:
        self.calls += 1
        return 10 * (frames[:, 1:] - frames[:, :-1])[:, :, :2]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2 * (LENGTH - 1) * 64, 3)

    def forward(self, flow: Tensor) -> Tensor:
        return self.layer(flow.flatten(1))


class Clips:
    """Five clips of one to three stacks, of noise."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        self.settings = {"name": "noise"}
        self.decoded: list[str] = []

    def clips(self, subset: str) -> list[Clip]:
        names = [f"v_{index}_g01_c01" for index in range(5)]
        return [Clip(Path(f"{name}.avi"), name, index % 3, name) for index, name in enumerate(names)]

    def prepare(self) -> None: ...

    def measure(self, clip: Clip) -> tuple[int, tuple[int, int]]:
        return LENGTH * (int(clip.name.split("_")[1]) % 3 + 1), (8, 8)

    def decode(self, clip: Clip) -> np.ndarray:
        self.decoded.append(clip.name)
        index = int(clip.name.split("_")[1])
        shape = (LENGTH * (index % 3 + 1), 8, 8, 3)
        return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def system() -> ModelUnderAttack:
    torch.manual_seed(2)
    return ModelUnderAttack(estimator=Differences(), classifier=Linear(), crop=8)


def test(
    folder: Path, *, sweep: bool = True, limit: int | None = None, realise: int = 1, **options: Any
) -> tuple[dict, int, list[str]]:
    """Metrics, passes of the estimator and the clips that were decoded."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    attacks: dict[str, Attack] = {"one_shot": OneShot()}
    callback = SweepCallback(epsilons=[0.01], attacks=attacks, examples=0, realise=realise, output=folder)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        inference_mode=False,
        callbacks=[callback] if sweep else [],
        limit_test_batches=limit,
        **{"devices": 1, **quiet, **options},
    )
    model, clips = system(), Clips()
    data = FrameStacks(clips, stack_length=LENGTH, num_workers=0)  # type: ignore[arg-type]
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    return metrics, model.estimator.calls, clips.decoded


test.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of a test without a sweep."""
    metrics, passes, decoded = test(tmp_path_factory.mktemp("plain"), sweep=False)
    assert passes == 1 + 2 + 3 + 1 + 2 and len(decoded) == 5
    assert 0 < metrics["test/stack_accuracy"] < 1 and 0 < metrics["test/video_accuracy"] < 1
    return metrics


def test_a_sweep_gives_the_accuracies_and_makes_the_clean_pass_once(
    plain: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sweep, "video", counting_passes(Sweep.video, inside := []))
    metrics, passes, _ = test(tmp_path)
    assert metrics == pytest.approx(plain)
    assert passes == sum(inside)


def counting_passes(video: Any, inside: list[int]) -> Any:
    def counted(self: Sweep, white_box: ModelUnderAttack, *arguments: Any, **options: Any) -> Any:
        before = white_box.estimator.calls
        swept = video(self, white_box, *arguments, **options)
        inside.append(white_box.estimator.calls - before)
        return swept

    return counted


def test_a_finished_clip_is_neither_estimated_nor_decoded(plain: dict, tmp_path: Path) -> None:
    test(tmp_path, limit=3)
    metrics, passes, decoded = test(tmp_path)
    assert metrics == pytest.approx(plain)
    assert passes > 0 and decoded == ["v_3_g01_c01", "v_4_g01_c01"]
    metrics, passes, decoded = test(tmp_path)
    assert metrics == pytest.approx(plain)
    assert passes == 0 and decoded == []
    rows_path(tmp_path, "v_0_g01_c01").unlink()
    metrics, passes, decoded = test(tmp_path)
    assert metrics == pytest.approx(plain)
    assert passes > 0 and decoded == ["v_0_g01_c01"]
    assert rows_path(tmp_path, "v_0_g01_c01").is_file()


def test_a_limited_run_gives_the_accuracies_of_its_clips(tmp_path: Path) -> None:
    expected, *_ = test(tmp_path / "plain", sweep=False, limit=2)
    test(tmp_path / "sweep")
    metrics, *_ = test(tmp_path / "sweep", limit=2)
    assert metrics == pytest.approx(expected)


def test_two_processes_give_the_same(plain: dict, tmp_path: Path) -> None:
    for _ in range(2):
        metrics, *_ = test(tmp_path, devices=2, strategy="ddp_fork")
        assert metrics == pytest.approx(plain)


class Overflowing(Linear):
    """Its logits are NaN for stacks whose first pixel moves to the right, or for all of them."""

    everywhere = False

    def forward(self, flow: Tensor) -> Tensor:
        lost = flow.flatten(1)[:, :1] > (-torch.inf if self.everywhere else 0)
        return torch.where(lost, torch.nan, super().forward(flow))


def test_stacks_without_a_verdict_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, clips = system(), Clips()
    stacks_right: list[bool] = []
    videos_right: list[bool] = []
    for clip in clips.clips("test"):
        frames = torch.from_numpy(clips.decode(clip) / np.float32(255)).permute(0, 3, 1, 2).unflatten(0, (-1, LENGTH))
        lost = sound.estimator(frames).flatten(1)[:, 0] > 0
        logits = sound(frames)
        stacks_right += (logits.argmax(1) == clip.label)[~lost].tolist()
        if not lost.any():
            videos_right.append(int(logits.softmax(1).mean(0).argmax()) == clip.label)
    assert 0 < len(stacks_right) < 9 and any(stacks_right) and 0 < len(videos_right) < 5
    monkeypatch.setitem(globals(), "Linear", Overflowing)
    metrics, *_ = test(tmp_path / "some", realise=0)
    assert metrics["test/stack_accuracy"] == pytest.approx(np.mean(stacks_right))
    assert metrics["test/video_accuracy"] == pytest.approx(np.mean(videos_right))
    monkeypatch.setattr(Overflowing, "everywhere", True)
    metrics, *_ = test(tmp_path / "none", realise=0, limit=1)
    assert metrics == {}


class OwnStep(ModelUnderAttack):
    """Has a test_step of its own, which needs the frames of every clip."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        assert len(batch.frames)


class MoreThanTheStep(ModelUnderAttack):
    """Adds to the test_step that it inherits."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.log("test/stacks", float(len(batch.frames)), reduce_fx="sum", batch_size=1)


def test_a_test_step_that_calls_its_parents_gives_the_accuracies_itself(
    plain: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ModelUnderAttack", MoreThanTheStep)
    for _ in range(2):
        metrics, *_ = test(tmp_path)
        assert metrics == pytest.approx({**plain, "test/stacks": 1 + 2 + 3 + 1 + 2})


def test_a_test_step_of_ones_own_gets_every_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ModelUnderAttack", OwnStep)
    for _ in range(2):
        metrics, _, decoded = test(tmp_path)
        assert metrics == {} and len(decoded) == 5
