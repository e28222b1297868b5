"""A system that sees motion, without training: moving textures, least-squares flow, the class nearest to the mean flow.

`python toy_sweep.py OUTPUT [--devices N] [--seconds S]` sweeps it in a process of its own, S seconds a video at least.
With `--odd-seconds S` every second video takes S seconds more, with `--patience S` a collective of Lightning's gives up
after S seconds; `--fail attack` and `--fail report` raise an error in the last process's or the first one's work.
`--gain G` sets the scale of the logits, `--loss L` what the attacks climb.
"""

import argparse
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from attacks.sweep_callback import SweepCallback

CLASSES = ["Right", "Down", "Left", "Up"]
EPSILONS = (0.005, 0.025)
SIZE, FRAMES = 20, 5


class ToyClip(NamedTuple):
    path: Path
    name: str
    label: int
    group: str


class ToyVideo(NamedTuple):
    frames: Tensor
    label: Tensor
    clip: Tensor


class ToyFlow(nn.Module):
    """Least-squares flow of a square window (Lucas and Kanade)."""

    def __init__(self, window: int = 5) -> None:
        super().__init__()
        self.window = window

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = first.mean(1, keepdim=True), second.mean(1, keepdim=True)
        x = (first.roll(-1, 3) - first.roll(1, 3)) / 2
        y = (first.roll(-1, 2) - first.roll(1, 2)) / 2
        t = second - first
        xx, yy, xy, xt, yt = (self._mean(product) for product in (x * x, y * y, x * y, x * t, y * t))
        determinant = xx * yy - xy * xy + 1e-6
        return torch.cat([(xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant], 1)

    def _mean(self, values: Tensor) -> Tensor:
        box = values.new_full((1, 1, self.window, self.window), 1 / self.window**2)
        return F.conv2d(values, box, padding=self.window // 2)


class ToySystem(pl.LightningModule):
    """A victim: frames -> flow -> class by the direction of the mean flow."""

    pairwise = True

    def __init__(self, window: int = 5, gain: float = 20.0, differentiable: bool = True) -> None:
        super().__init__()
        self.estimator = ToyFlow(window)
        self.differentiable = differentiable
        angle = torch.arange(len(CLASSES)) * (2 * math.pi / len(CLASSES))
        self.direction = nn.Parameter(gain * torch.stack([angle.cos(), angle.sin()]))

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        flow = self.estimator(first, second)
        return flow if self.differentiable else flow.detach()

    def classify(self, flow: Tensor) -> Tensor:
        return flow.mean((1, 3, 4)) @ self.direction

    def forward(self, frames: Tensor) -> Tensor:
        flow = self.estimate_flow(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        return self.classify(flow.unflatten(0, (len(frames), -1)))

    def test_step(self, batch: ToyVideo, batch_idx: int) -> None:
        accuracy = (self(batch.frames).argmax(1) == batch.label).float().mean()
        self.log("test/accuracy", accuracy, batch_size=1, sync_dist=True)


def moving_texture(label: int, seed: int, stacks: int) -> Tensor:
    """(stacks, FRAMES, 3, SIZE, SIZE), 8-bit values: a smooth texture that moves half a pixel a frame, and noise."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(6, 4, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle, speed = label * math.pi / 2, 0.15 + 0.4 * float(torch.rand((), generator=generator))
    video = torch.zeros(stacks * FRAMES, SIZE, SIZE)
    for n in range(len(video)):
        moved_x, moved_y = x - n * speed * math.cos(angle), y - n * speed * math.sin(angle)
        for a, b, phase, height in waves:
            video[n] += height * torch.sin(0.5 * a * moved_x + 0.5 * b * moved_y + 3 * phase)
    video = 0.5 + 0.08 * video + 0.01 * torch.randn(video.shape, generator=generator)
    frames = (video.clamp(0, 1) * 255).round().div(255).unflatten(0, (stacks, FRAMES))
    return frames[:, :, None].expand(-1, -1, 3, -1, -1).contiguous()


class ToyVideos(Dataset):
    def __init__(self, clips: list[ToyClip], seconds: float, odd_seconds: float) -> None:
        self.clips, self.seconds, self.odd_seconds = clips, seconds, odd_seconds

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ToyVideo:
        time.sleep(self.seconds + index % 2 * self.odd_seconds)
        label = self.clips[index].label
        frames = moving_texture(label, seed=index, stacks=2 + index % 3)
        return ToyVideo(frames, torch.tensor(label), torch.tensor(index))


class ToyData(pl.LightningDataModule):
    classes = CLASSES

    def __init__(self, videos: int = 11, seconds: float = 0.0, odd_seconds: float = 0.0) -> None:
        super().__init__()
        self.videos, self.seconds, self.odd_seconds = videos, seconds, odd_seconds

    @property
    def settings(self) -> dict[str, Any]:
        return {"size": SIZE, "frames": FRAMES}

    def clips(self, subset: str) -> list[ToyClip]:
        names = [(i, CLASSES[i % 4], i // 4) for i in range(self.videos)]
        return [ToyClip(Path(f"v{i}.avi"), f"{c}/v_{c}_g{g:02}_c01", i % 4, f"{c}_g{g:02}") for i, c, g in names]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(ToyVideos(self.clips("test"), self.seconds, self.odd_seconds), batch_size=None)


def targets() -> dict[str, nn.Module]:
    return {"tvl1": ToySystem(window=3, differentiable=False), "farneback": ToySystem(window=7, differentiable=False)}


class Impatient(pl.Callback):
    """From the start of the sweep on, not from that of the processes, which takes its time."""

    def __init__(self, seconds: float) -> None:
        self.patience = timedelta(seconds=seconds)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from torch.distributed.distributed_c10d import _set_pg_timeout

        trainer.strategy.barrier()
        _set_pg_timeout(self.patience)


class FailingSweep(SweepCallback):
    """Raises in one process alone: the last one, as it attacks, or the first one, as it reports."""

    def __init__(self, where: str | None, **options: Any) -> None:
        super().__init__(**options)
        self.where = where

    def on_test_batch_end(self, trainer: pl.Trainer, *arguments: Any, **options: Any) -> None:
        if self.where == "attack" and trainer.global_rank == trainer.world_size - 1:
            raise OSError("no space left for records")
        super().on_test_batch_end(trainer, *arguments, **options)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.where == "report" and trainer.is_global_zero:
            self.store.merge = self.no_space  # type: ignore[method-assign]
        super().on_test_end(trainer, pl_module)

    def no_space(self) -> Path:
        raise OSError("no space left for the report")


def run(
    output: Path,
    *,
    devices: int = 1,
    seconds: float = 0.0,
    odd_seconds: float = 0.0,
    patience: float | None = None,
    fail: str | None = None,
    gain: float = 20.0,
    videos: int = 11,
    limit: int | None = None,
    **options: Any,
) -> None:
    """One whole sweep on the CPU; `options` are the callback's, but for `logger` and `inference_mode`.

    One clip goes through the media of realisability: encoding them takes longer than attacking this toy.
    """
    logger = options.pop("logger", False)
    inference_mode = options.pop("inference_mode", False)
    given = {"epsilons": EPSILONS, "targets": targets(), "output": output, "realise": 1, **options}
    callback = FailingSweep(fail, **given)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        inference_mode=inference_mode,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=logger,
        callbacks=[callback, *([] if patience is None else [Impatient(patience)])],
        limit_test_batches=limit,
    )
    trainer.test(ToySystem(gain=gain), datamodule=ToyData(videos, seconds, odd_seconds), verbose=False)


if __name__ == "__main__":
    # Under its own name, so that the classes in settings.json are called the same in the tests and here.
    import toy_sweep

    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--odd-seconds", type=float, default=0.0)
    parser.add_argument("--patience", type=float)
    parser.add_argument("--fail", choices=["attack", "report"])
    parser.add_argument("--videos", type=int, default=11)
    parser.add_argument("--realise", type=int, default=1)
    parser.add_argument("--gain", type=float, default=20.0)
    parser.add_argument("--loss", default="log-odds")
    torch.set_num_threads(1)
    toy_sweep.run(**vars(parser.parse_args()))
