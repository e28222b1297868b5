"""Reads an offline W&B run back: what `wandb sync` would bring up."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


class OfflineRun:
    """A run that was recorded under `folder`/wandb, its only one."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        self.files = self.path.parent / "files"
        records = _finished(self.path)
        self.group = next(r.run.run_group for r in records if r.HasField("run"))
        self.steps = {r.metric.name: r.metric.step_metric for r in records if r.HasField("metric") and r.metric.name}
        self.artifacts = [r.artifact for r in records if r.HasField("artifact")]
        configs = [r.config for r in records if r.HasField("config")] + [
            r.run.config for r in records if r.HasField("run")
        ]
        self.config = {item.key or item.nested_key[0]: item.value_json for c in configs for item in c.update}
        self.history: list[dict[str, Any]] = []
        self.media: dict[str, dict[str, Any]] = {}
        """name -> what is logged of it: _type, path, …"""
        for record in records:
            if not record.HasField("history"):
                continue
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *field = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if field:
                    self.media.setdefault(name, {})[field[0]] = value
                elif isinstance(value, dict):
                    self.media[name] = value
                else:
                    row[name] = value
            self.history.append(row)

    def points(self, name: str, against: str) -> dict[float, float]:
        """A metric by another one."""
        return {row[against]: row[name] for row in self.history if name in row}

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a logged table."""
        content = json.loads((self.files / self.media[name]["path"]).read_text())
        return content["columns"], content["data"]

    def names(self) -> set[str]:
        """Everything that a panel can show."""
        return {name for row in self.history for name in row} | set(self.media)


def _finished(path: Path, seconds: float = 60) -> list[Any]:
    """The records once the last one is there: W&B's process writes on for a moment after `wandb.finish()`."""
    deadline = time.monotonic() + seconds
    while True:
        records = list(_records(path))
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < deadline, f"{path}: not finished after {seconds:g} s"
        time.sleep(0.1)


def _records(path: Path) -> Iterator[Any]:
    """LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        position += 7
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
