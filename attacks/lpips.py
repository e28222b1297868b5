"""LPIPS (Zhang et al. 2018) of adversarial frames, where AlexNet's weights are at hand: nothing is downloaded here."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights


class Lpips:
    """Distance of frames, 0 where they are equal; torchmetrics' network and weights of the differences.

    Args:
        alexnet: torchvision's weights of AlexNet, the file that `AlexNet_Weights.DEFAULT.url` names.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: it holds other weights.
    """

    def __init__(self, alexnet: Path) -> None:
        url = AlexNet_Weights.DEFAULT.url
        if not alexnet.is_file():
            raise FileNotFoundError(f"{alexnet}: no such file; LPIPS needs torchvision's AlexNet weights, {url}")
        before = torch.hub.get_dir()
        with tempfile.TemporaryDirectory() as hub:
            # torchvision downloads what its hub folder lacks, so it gets a folder that has it.
            (Path(hub) / "checkpoints").mkdir()
            (Path(hub) / "checkpoints" / Path(url).name).symlink_to(alexnet.resolve())
            torch.hub.set_dir(hub)
            try:
                self.metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
            finally:
                torch.hub.set_dir(before)

    @torch.no_grad()
    def __call__(self, clean: Tensor, adversarial: Tensor) -> float | None:
        """Mean over the perturbed frames of one stack, both (T, 3, H, W) in [0, 1]; None where none is perturbed."""
        perturbed = (clean != adversarial).flatten(1).any(1)
        if not perturbed.any():
            return None
        self.metric.reset()
        self.metric.to(clean.device).update(clean[perturbed], adversarial[perturbed])
        return round(float(self.metric.compute()), 6)
