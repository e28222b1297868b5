"""The systems, data and attacks of a sweep's YAML, made but not run: for commands that ask something else of them."""

import sys
from collections.abc import Sequence
from typing import Any

from attacks.sweep_callback import SweepCallback
from lightning_modules.cli import FlowFoolCLI
from lightning_modules.model_under_attack import ModelUnderAttack


class AttackedSystems(FlowFoolCLI):
    """`--config configs/<preset>/attack-sweep.yaml` and what overrides it, as `test` takes them.

    Raises:
        ValueError: the config has no SweepCallback, which names the other systems.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        # A logger would start a run of its own.
        super().__init__([*(sys.argv[1:] if args is None else args), "--trainer.logger=false"], run=False)
        found = [callback for callback in self.trainer.callbacks if isinstance(callback, SweepCallback)]  # type: ignore[attr-defined]
        if not found:
            raise ValueError(
                "the config has no attacks.sweep_callback.SweepCallback, which names the systems: give "
                "--config configs/<preset>/attack-sweep.yaml"
            )
        self.callback = found[0]
        self.data: Any = self.datamodule
        self.data.prepare_data()
        for system in self.systems.values():
            system.to(self.trainer.strategy.root_device)
            system.check_classes(self.data.classes)

    @property
    def systems(self) -> dict[str, ModelUnderAttack]:
        """Name -> system, the white box first."""
        return {self.callback.sweep.system: self.model, **self.callback.targets}  # type: ignore[dict-item]
