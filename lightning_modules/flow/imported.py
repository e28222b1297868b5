"""Flow that was computed elsewhere and imported into a store: it can be read, not estimated."""

from typing import Any

from torch import Tensor, nn


class ImportedFlow(nn.Module):
    """Stands for the algorithm of an imported store, so that classifiers can be trained on it.

    Args:
        algorithm: what computed it, for the manifest.
    """

    differentiable = False

    def __init__(self, *, algorithm: str) -> None:
        super().__init__()
        self.algorithm = algorithm

    def forward(self, frames: Tensor) -> Tensor:
        """Raises ValueError."""
        raise ValueError(f"{self.algorithm} flow was imported and cannot be computed here: import what is missing")

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"algorithm": self.algorithm, "imported": True}
