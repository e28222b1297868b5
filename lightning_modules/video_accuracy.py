"""Stack-level and video-level top-1 (sections 4 and 5.2), each stack counted once however many processes count."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class VideoAccuracy(Metric):
    """Share of videos whose mean class probability over their stacks is highest for the right class."""

    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]
    clips: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("probabilities", "labels", "clips"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor, clips: Tensor) -> None:
        """Softmax (S, C) of stacks, their labels (S,) and the index of the clip that each belongs to (S,)."""
        self.probabilities.append(probabilities)
        self.labels.append(labels)
        self.clips.append(clips)

    def compute(self) -> Tensor:
        """Scalar; NaN where nothing was counted."""
        return video_accuracy(dim_zero_cat(self.probabilities), dim_zero_cat(self.labels), dim_zero_cat(self.clips))


def video_accuracy(probabilities: Tensor, labels: Tensor, clips: Tensor) -> Tensor:
    """The same as a function of all stacks at once."""
    _, video = torch.unique(clips, return_inverse=True)
    videos = int(video.max()) + 1 if len(video) else 0
    # A sum ranks as the mean does; in float64 its order, and so that of the stacks, decides nothing.
    total = torch.zeros(videos, probabilities.shape[1], dtype=torch.float64).index_add_(
        0, video.cpu(), probabilities.cpu().double()
    )
    label = labels.new_zeros(videos).scatter_(0, video, labels).cpu()
    return (total.argmax(1) == label).float().mean().to(probabilities.device)


def counted_once(loader: DataLoader | None, batch_index: int, size: int) -> Tensor:
    """Which rows (size,) of a batch count: all but those that a DistributedSampler added so that processes are even.

    It deals out the dataset in order and fills up from the start, so an index past the end is a repetition. A batch of
    one dataset item may have several rows; they count together.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        return torch.ones(size, dtype=torch.bool)
    per_batch = getattr(loader, "batch_size", None) or 1
    items = min(per_batch, size)
    dealt = sampler.rank + sampler.num_replicas * (batch_index * per_batch + torch.arange(items))
    return (dealt < len(sampler.dataset)).repeat_interleave(size // items)  # type: ignore[arg-type]
