"""The folder that a training leaves: what is where, and whether a config may go on in it.

config.yaml   checkpoints/last.ckpt   pictures/   metrics.json   final.ckpt
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.plugins.io import TorchCheckpointIO

NEUTRAL_KEYS = {
    # `mixed_precision` chooses trainer.precision, which is compared.
    "": {"config", "checkpoint", "ckpt_path", "weights_only", "mixed_precision"},
    "trainer": {
        "accelerator", "devices", "num_nodes", "strategy", "logger", "log_every_n_steps", "profiler",
        "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "barebones",
        "enable_autolog_hparams", "detect_anomaly", "num_sanity_val_steps", "model_registry",
    },
    "data.init_args": {"num_workers", "extraction_workers"},
}  # fmt: skip
"""Keys of a config, by the section that they stand in, that do not decide the weights a training ends with."""

NEUTRAL_CALLBACKS = (
    "FlowPictures", "ConfusionMatrix", "ProgressBar", "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary",
)  # fmt: skip

PRECISIONS = {"None": "32-true", "64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Other names of the Trainer's precisions."""


class RunFolder:
    """`trainer.default_root_dir` of a training."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.metrics = self.path / "metrics.json"
        self.final = self.path / "final.ckpt"

    @property
    def last_checkpoint(self) -> Path | None:
        """Where an interrupted training goes on: the newest of `last.ckpt` and what Lightning saves for SLURM."""
        saved = [
            path for path in (self.checkpoints / "last.ckpt", *self.path.glob("hpc_ckpt_*.ckpt")) if path.is_file()
        ]
        return max(saved, key=lambda path: path.stat().st_mtime, default=None)

    @property
    def started(self) -> bool:
        """Whether it holds weights."""
        return self.final.is_file() or self.last_checkpoint is not None

    @property
    def precision(self) -> str | None:
        """The Trainer's precision of the training in it; None where none has begun."""
        if not self.started or not self.config.is_file():
            return None
        return _precision(yaml.safe_load(self.config.read_text()))

    def check(self, config: dict[str, Any]) -> None:
        """Raises:
        ValueError: the folder holds weights that were trained with another config; names every key that differs.
        """
        if not self.started or not self.config.is_file():
            return
        before, now = (_decisive(c) for c in (yaml.safe_load(self.config.read_text()), config))
        changed = [
            f"  {key}: {_shown(before, key)} there, {_shown(now, key)} now"
            for key in sorted(before.keys() | now.keys())
            if not _same(before.get(key), now.get(key))
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a training with another config:\n" + "\n".join(changed) + "\n"
                "Train in another folder (RUNS=… of make, or --trainer.default_root_dir), remove this one to train "
                "anew, or go back to its config"
            )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, whenever the process dies.

    Lightning writes to the system's temporary folder and moves the file, which on another file system is a copy that
    can be cut off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        with whole_file(Path(path)) as partial:
            torch.save(checkpoint, partial)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place to write what becomes `path` in one step when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted key of everything that decides the result."""
    return {**dict(_leaves(config)), "trainer.precision": _precision(config)}


def _precision(config: dict[str, Any]) -> str:
    named = str((config.get("trainer") or {}).get("precision"))
    return PRECISIONS.get(named, named)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a config that decides the result; what is not set is left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in NEUTRAL_KEYS.get(key, ()):
                yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        decisive = [item for item in value if not str(item.get("class_path", "")).endswith(NEUTRAL_CALLBACKS)]
        for index, item in enumerate(decisive):
            yield from _leaves(item, f"{key}[{index}]")
    elif value is not None:
        yield key, value


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, str) and isinstance(now, str):
        return before == now or Path(before).resolve() == Path(now).resolve()
    return before == now


def _shown(leaves: dict[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"
