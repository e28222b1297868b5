import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules.batches import FlowPairBatch
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow_finetuning import FlowFinetuning


class Constant(nn.Module):
    """The same learned vector everywhere."""

    differentiable = True

    def __init__(self, u: float, v: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor([u, v]))

    def forward(self, frames: Tensor) -> Tensor:
        batch, steps, _, height, width = frames.shape
        return self.vector.view(1, 1, 2, 1, 1).expand(batch, steps - 1, 2, height, width)


class Parts(nn.Module):
    """An estimator with a batch norm in each of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, frames: Tensor) -> Tensor:
        return self.second(self.first(frames.flatten(1, 2)))[:, None]


class Blind(nn.Module):
    differentiable = False


def finetuning(estimator: nn.Module, **options) -> FlowFinetuning:
    return FlowFinetuning(estimator=estimator, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **options)


def pairs(count: int, size: int = 8, seed: int = 0) -> FlowPairBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(count, 2, 3, size, size, generator=generator)
    return FlowPairBatch(frames, torch.randn(count, 1, 2, size, size, generator=generator))


def trainer(folder, **options) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **options)


def test_errors_in_pixels_by_hand(tmp_path) -> None:
    """Target (3, 4) everywhere in one pair and (0, 0) in the other, estimate (3, 0): errors 4 and 3, zero's 5 and 0."""
    flow = torch.zeros(2, 1, 2, 6, 6)
    flow[0, :, 0], flow[0, :, 1] = 3.0, 4.0
    loader = DataLoader([FlowPairBatch(torch.zeros(2, 2, 3, 6, 6), flow)], batch_size=None)
    for stage in ("val", "test"):
        run = trainer(tmp_path)
        evaluate = run.validate if stage == "val" else run.test
        (logged,) = evaluate(finetuning(Constant(3.0, 0.0)), loader, verbose=False)
        assert logged == pytest.approx(
            {f"{stage}/epe": 3.5, f"{stage}/epe_zero": 2.5, f"{stage}/epe_start": 3.5, f"{stage}/loss": 7 / 4}
        )


def test_pairs_weigh_the_same_whatever_their_batch(tmp_path) -> None:
    batches = [pairs(1, seed=1), pairs(4, seed=2)]
    whole = FlowPairBatch(*(torch.cat(columns) for columns in zip(*batches, strict=True)))
    module = finetuning(Constant(0.3, -0.2))
    split, joined = (
        trainer(tmp_path).validate(module, DataLoader(data, batch_size=None), verbose=False)[0]
        for data in (batches, [whole])
    )
    assert split == pytest.approx(joined)


def test_the_loss_of_several_scales_is_nvidias_and_of_one_is_l1() -> None:
    torch.manual_seed(0)
    batch = pairs(2, size=64)
    multi = finetuning(FlowNet2Estimator(variant="FlowNet2S", width=0.05))
    flows = multi.estimator.training_flows(batch.frames)
    weights = (0.32, 0.16, 0.08, 0.04, 0.02)
    expected = sum(
        weight * (flow - F.avg_pool2d(0.05 * batch.flow[:, 0], 4 * 2**scale)).abs().mean()
        for scale, (weight, flow) in enumerate(zip(weights, flows, strict=True))
    )
    multi.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.testing.assert_close(multi.training_step(batch, 0), expected)

    single = finetuning(Constant(1.0, 2.0))
    single.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    torch.testing.assert_close(single.training_step(batch, 0), (single(batch.frames) - batch.flow).abs().mean())


def test_training_finds_the_true_flow(tmp_path) -> None:
    flow = torch.tensor([1.5, -0.5]).view(1, 1, 2, 1, 1).expand(4, 1, 2, 6, 6)
    batch = FlowPairBatch(torch.rand(4, 2, 3, 6, 6), flow)
    module = FlowFinetuning(estimator=Constant(0.0, 0.0), optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    trainer(tmp_path, max_epochs=80).fit(module, DataLoader([batch], batch_size=None))
    torch.testing.assert_close(module.estimator.vector.detach(), torch.tensor([1.5, -0.5]), atol=0.1, rtol=0)


def test_the_error_before_the_training_stays_beside_the_others(tmp_path) -> None:
    """Target (3, 4), start (3, 0): error 4 at the start, and still in the record when training has changed the rest."""
    flow = torch.tensor([3.0, 4.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 6, 6)
    loader = DataLoader([FlowPairBatch(torch.zeros(1, 2, 3, 6, 6), flow)], batch_size=None)
    module = finetuning(Constant(3.0, 0.0))
    run = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=1)
    run.fit(module, loader, loader)
    assert run.callback_metrics["val/epe_start"].item() == pytest.approx(4)
    assert run.callback_metrics["val/epe"].item() < 3.9
    resumed = finetuning(Constant(3.0, 0.0))
    resumed.load_state_dict(module.state_dict())
    (logged,) = trainer(tmp_path).validate(resumed, loader, verbose=False)
    assert logged["val/epe_start"] == pytest.approx(4)
    flow = torch.tensor([3.0, 0.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 6, 6)
    other = DataLoader([FlowPairBatch(torch.zeros(1, 2, 3, 6, 6), flow)], batch_size=None)
    (logged,) = trainer(tmp_path).test(resumed, other, verbose=False)
    assert logged["test/epe_start"] == pytest.approx(0) and logged["test/epe"] > 0.1


def test_frozen_parts_keep_weights_and_statistics(tmp_path) -> None:
    torch.manual_seed(0)
    module = finetuning(Parts(), freeze=["first"])
    before = {name: value.clone() for name, value in module.estimator.state_dict().items()}
    trainer(tmp_path, max_epochs=1).fit(module, DataLoader([pairs(3)], batch_size=None))
    changed = {name for name, value in module.estimator.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"second"}
    assert "second.0.running_mean" in changed


def test_a_prefix_ends_at_a_dot_and_unknown_ones_are_told_the_parts() -> None:
    with pytest.raises(ValueError, match=r"'fir' names no parameter of Parts; its parts are first, second"):
        finetuning(Parts(), freeze=["fir"])
    with pytest.raises(ValueError, match=r"'flownets_1'.*network\.flownetc, network\.flownets_1"):
        finetuning(FlowNet2Estimator(variant="FlowNet2CS", width=0.05), freeze=["flownets_1"])
    with pytest.raises(ValueError, match="leaves no parameter of Parts to train"):
        finetuning(Parts(), freeze=["first", "second"])


def test_an_estimator_without_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="Blind has no gradient"):
        finetuning(Blind())
