import math

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.batches import FlowStackBatch
from lightning_modules.flow_classification import FlowClassification
from lightning_modules.video_accuracy import VideoAccuracy, counted_once, video_accuracy


class GivenLogits(nn.Module):
    """A classifier whose logits are the means of the first channels of its input."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, flow: Tensor) -> Tensor:
        return self.weight * flow.mean((2, 3))[:, : self.num_classes]


# probabilities of three classes, label, clip
STACKS = [
    ([0.90, 0.05, 0.05], 0, 0),
    ([0.30, 0.40, 0.30], 0, 0),  # wrong alone, right in the mean of its clip
    ([0.10, 0.60, 0.30], 1, 1),
    ([0.10, 0.30, 0.60], 1, 1),
    ([0.45, 0.10, 0.45 + 1e-6], 1, 1),  # two of three wrong, and the mean as well: (0.217, 0.333, 0.45)
    ([0.10, 0.10, 0.80], 2, 2),
    ([0.60, 0.40, 0.00 + 1e-6], 1, 3),
]
STACK_ACCURACY = 3 / 7
VIDEO_ACCURACY = 2 / 4


def columns(order: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    probabilities, labels, clips = zip(*[STACKS[i] for i in order], strict=True)
    return torch.tensor(probabilities), torch.tensor(labels), torch.tensor(clips)


class Given(Dataset[FlowStackBatch]):
    def __len__(self) -> int:
        return len(STACKS)

    def __getitem__(self, index: int) -> FlowStackBatch:
        probabilities, label, clip = STACKS[index]
        flow = torch.tensor(probabilities).log()[:, None, None].expand(3, 4, 4)
        return FlowStackBatch(flow, torch.tensor(label), torch.tensor(clip))


def test_video_accuracy_by_hand_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        order = torch.randperm(len(STACKS), generator=generator).tolist()
        assert video_accuracy(*columns(order)).item() == VIDEO_ACCURACY
    for clip, right in enumerate([1, 0, 1, 0]):
        assert video_accuracy(*columns([i for i, stack in enumerate(STACKS) if stack[2] == clip])).item() == right


def test_no_videos_is_no_number() -> None:
    assert math.isnan(video_accuracy(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0).long()).item())


@pytest.mark.parametrize("processes", [2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_what_a_distributed_sampler_repeats_counts_once(processes: int, batch_size: int) -> None:
    counted = []
    for rank in range(processes):
        sampler = DistributedSampler(Given(), num_replicas=processes, rank=rank, shuffle=False)
        loader = DataLoader(Given(), batch_size=batch_size, sampler=sampler)
        dealt = list(sampler)
        for index, batch in enumerate(loader):
            rows = counted_once(loader, index, len(batch.label))
            counted += [i for i, keep in zip(dealt[index * batch_size :], rows.tolist(), strict=False) if keep]
    assert sorted(counted) == list(range(len(STACKS)))


def test_rows_of_one_item_count_together() -> None:
    class OneItem(Dataset[int]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            return index

    real, repeated = (
        DataLoader(
            OneItem(), batch_size=1, sampler=DistributedSampler(OneItem(), num_replicas=2, rank=r, shuffle=False)
        )
        for r in (0, 1)
    )
    assert counted_once(real, 0, 5).tolist() == [True] * 5
    assert counted_once(repeated, 0, 5).tolist() == [False] * 5


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 2), (2, 2), (2, 3)])
def test_trainer_logs_the_accuracies_in_one_process_and_in_two(devices: int, batch_size: int, tmp_path) -> None:
    """Seven stacks over two processes: one is dealt twice, and clips 0, 1 and 3 lie in both. In batches of three, the
    second process's last is nothing but the repeated stack."""
    torch.manual_seed(0)
    module = FlowClassification(classifier=GivenLogits, num_classes=3, optimizer=torch.optim.SGD)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(Given(), batch_size=batch_size)
    for stage, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        (logged,) = evaluate(module, loader, verbose=False)
        assert logged[f"{stage}/stack_accuracy"] == pytest.approx(STACK_ACCURACY)
        assert logged[f"{stage}/video_accuracy"] == pytest.approx(VIDEO_ACCURACY)
        expected = -sum(math.log(p[label] / sum(p)) for p, label, _ in STACKS) / len(STACKS)
        assert logged[f"{stage}/loss"] == pytest.approx(expected, rel=1e-5)


def test_metric_equals_function_over_batches() -> None:
    metric = VideoAccuracy()
    for order in ([6, 0], [1, 4, 2], [3, 5]):
        metric.update(*columns(order))
    assert metric.compute().item() == VIDEO_ACCURACY


def test_training_loss_smooths_the_labels() -> None:
    module = FlowClassification(classifier=GivenLogits, num_classes=3, optimizer=torch.optim.SGD, label_smoothing=0.3)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = next(iter(DataLoader(Given(), batch_size=7)))
    log_softmax = batch.flow.mean((2, 3)).log_softmax(1)
    expected = -(0.7 * log_softmax.gather(1, batch.label[:, None])[:, 0] + 0.3 * log_softmax.mean(1)).mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected)
