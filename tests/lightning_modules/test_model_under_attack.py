import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from datamodules import flow_codec
from datamodules.batches import VideoBatch
from lightning_modules import model_under_attack, prediction_paths
from lightning_modules.classifiers.resnet import ResNet
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.raft import RAFT
from lightning_modules.model_under_attack import ModelUnderAttack

FRAMES = 4


class SmoothFlow(nn.Module):
    """A small differentiable estimator of pairs; no kinks, so that finite differences are exact to their order."""

    differentiable = True

    def __init__(self, scale: float = 3.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 2, 3, padding=1)
        self.scale = scale

    def forward(self, frames: Tensor) -> Tensor:
        pairs = torch.cat((frames[:, :-1], frames[:, 1:]), 2)
        flow = self.scale * torch.tanh(self.convolution(pairs.flatten(0, 1)))
        return flow.unflatten(0, pairs.shape[:2])

    @property
    def settings(self) -> dict:
        return {"algorithm": "smooth", "scale": self.scale}


class Differences(nn.Module):
    """A black box: no gradient."""

    differentiable = False

    def forward(self, frames: Tensor) -> Tensor:
        return (frames[:, 1:] - frames[:, :-1]).detach()[:, :, :2].sign()


class SmoothClassifier(nn.Module):
    def __init__(self, *, num_classes: int, channels: int = 2 * (FRAMES - 1)) -> None:
        super().__init__()
        features = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(0.5), nn.Flatten())
        self.layers = features.append(nn.LazyLinear(num_classes))

    def forward(self, flow: Tensor) -> Tensor:
        return self.layers(flow)


def system(**options) -> ModelUnderAttack:
    torch.manual_seed(0)
    classifier = SmoothClassifier(num_classes=3)
    classifier(torch.randn(8, 6, 8, 8))
    options = {"estimator": SmoothFlow(), "classifier": classifier, "crop": 8, **options}
    return ModelUnderAttack(**options)


def frames(batch: int = 2, size: tuple[int, int] = (10, 12), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, FRAMES, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_gradient_of_the_whole_system_against_finite_differences() -> None:
    assert torch.autograd.gradcheck(system().double(), frames(1, dtype=torch.float64).requires_grad_(), atol=1e-7)


def test_gradient_of_flownet2_and_resnet_against_finite_differences() -> None:
    """Real networks, along random directions; their kinks are far apart on this scale."""
    torch.manual_seed(0)
    model = ModelUnderAttack(
        estimator=FlowNet2Estimator(variant="FlowNet2S", width=0.06),
        classifier=ResNet(num_classes=3, depth=18, stack_length=FRAMES - 1),
        crop=56,
    ).double()
    clip, label = frames(1, (64, 64), torch.float64).requires_grad_(), torch.tensor([1])
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(clip), label), clip)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = torch.randn(clip.shape, generator=generator, dtype=torch.float64)
        step = 1e-7 * direction
        ahead, behind = (F.cross_entropy(model((clip + s).detach()), label) for s in (step, -step))
        torch.testing.assert_close((ahead - behind) / 2e-7, (gradient * direction).sum(), rtol=1e-4, atol=1e-9)


def test_gradient_of_a_frame_is_the_sum_of_its_two_paths() -> None:
    """Eq. 1: frame n reaches the class through flow n-1 and flow n, the first and the last frame through one."""
    model, clip, label = system(), frames(), torch.tensor([0, 2])
    clip.requires_grad_()
    (whole,) = torch.autograd.grad(F.cross_entropy(model(clip), label, reduction="sum"), clip)

    first, second = clip.detach()[:, :-1].clone().requires_grad_(), clip.detach()[:, 1:].clone().requires_grad_()
    flow = model.estimate_flow(first.flatten(0, 1), second.flatten(0, 1)).unflatten(0, first.shape[:2])
    as_first, as_second = torch.autograd.grad(
        F.cross_entropy(model.classify(flow), label, reduction="sum"), (first, second)
    )
    paths = torch.zeros_like(whole)
    paths[:, :-1] += as_first
    paths[:, 1:] += as_second
    torch.testing.assert_close(paths, whole)
    assert as_first.abs().amax((0, 2, 3, 4)).min() > 0 and as_second.abs().amax((0, 2, 3, 4)).min() > 0


def test_pairs_and_whole_stacks_agree() -> None:
    model, clip = system(), frames()
    flow = model.estimate_flow(clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1)).unflatten(0, (2, FRAMES - 1))
    torch.testing.assert_close(model.classify(flow), model(clip))


class KeepsItsInput(nn.Module):
    def forward(self, flow: Tensor) -> Tensor:
        self.seen = flow
        return flow.flatten(1)


def test_what_the_classifier_sees_is_the_clipped_centre_in_u_v_order() -> None:
    classifier = KeepsItsInput()
    model = system(classifier=classifier, crop=4)
    flow = 15 * torch.randn(2, 3, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    model.classify(flow)
    seen = classifier.seen.unflatten(1, (3, 2))
    assert torch.equal(seen, flow[..., 1:5, 2:6].clamp(-20, 20))


def test_eight_bits_are_the_codecs_and_their_gradient_is_straight_through() -> None:
    classifier = KeepsItsInput()
    model = system(classifier=classifier, crop=64, eight_bit=True)
    levels = torch.arange(-20.3, 20.3, 40.6 / (3 * 2 * 64 * 64)).double()
    halves = flow_codec.decode(np.arange(255, dtype=np.uint8)).astype(np.float64) + 20 / 255  # ties of the rounding
    flow = torch.cat((levels, torch.from_numpy(halves)))[-3 * 2 * 64 * 64 :].float().reshape(1, 3, 2, 64, 64)
    flow.requires_grad_()
    output = model.classify(flow)
    stored = flow_codec.decode(flow_codec.encode(flow.detach().numpy()))
    assert np.array_equal(classifier.seen.detach().numpy().reshape(stored.shape), stored)

    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (rounded,) = torch.autograd.grad((weight * output).sum(), flow)
    (clipped,) = torch.autograd.grad((weight * system(classifier=classifier, crop=64).classify(flow)).sum(), flow)
    assert torch.equal(rounded, clipped)
    assert (rounded == 0).any() and (rounded != 0).any()


def test_it_stays_frozen_and_in_eval_mode() -> None:
    model, clip = system(), frames()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(clip)
    assert torch.equal(model.train()(clip), expected)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_differentiable_is_the_estimators() -> None:
    assert system().differentiable
    assert not system(estimator=Differences()).differentiable


def test_a_crop_larger_than_the_frame_names_both() -> None:
    with pytest.raises(ValueError, match=r"32.*10×12"):
        system(crop=32)(frames())


def checkpoint(path: Path, classes: list[str] | None, *, prefix: str = "") -> dict[str, Tensor]:
    classifier = ResNet(num_classes=3, depth=18, stack_length=FRAMES - 1)
    state = classifier.state_dict()
    content = {"state_dict": {prefix + key: value for key, value in state.items()}}
    torch.save(content if classes is None else {**content, "classes": classes}, path)
    return state


def resnet18(*, num_classes: int) -> ResNet:
    return ResNet(num_classes=num_classes, depth=18, stack_length=FRAMES - 1)


@pytest.mark.parametrize("prefix", ["", "classifier."])
def test_weights_and_classes_come_from_the_checkpoint(tmp_path: Path, prefix: str) -> None:
    state = checkpoint(tmp_path / "final.ckpt", ["a", "b", "c"], prefix=prefix)
    model = system(classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt")
    assert model.classes == ["a", "b", "c"]
    assert all(torch.equal(value, state[name]) for name, value in model.classifier.state_dict().items())


def test_settings_tell_systems_apart(tmp_path: Path) -> None:
    checkpoint(tmp_path / "one.ckpt", ["a", "b", "c"])
    checkpoint(tmp_path / "two.ckpt", ["a", "b", "c"])
    one, again, two, rounded = (
        system(classifier=resnet18, classifier_checkpoint=tmp_path / f"{name}.ckpt", eight_bit=eight_bit).settings
        for name, eight_bit in (("one", False), ("one", False), ("two", False), ("one", True))
    )
    assert one == again
    assert one != rounded
    assert one["classifier"]["weights_sha256"] != two["classifier"]["weights_sha256"]
    assert one["estimator"] == {"algorithm": "smooth", "scale": 3.0}


def test_settings_tell_the_gradients_of_one_flow_apart() -> None:
    """A store's manifest does not name them, as its flow is the same; the records of a sweep are not."""
    torch.manual_seed(0)
    whole, stopped = RAFT(size="small"), RAFT(size="small", whole_gradient=False)
    stopped.load_state_dict(whole.state_dict())
    assert whole.settings == stopped.settings
    assert system(estimator=whole).settings["estimator"]["whole_gradient"] is True
    assert system(estimator=stopped).settings["estimator"]["whole_gradient"] is False


def test_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "classes": ["a", "b", "c"]}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt does not fit ResNet"):
        system(classifier=resnet18, classifier_checkpoint=tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        system(classifier=resnet18, classifier_checkpoint=tmp_path / "none.ckpt")


def test_a_classifier_of_other_flow_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "final.ckpt", ["a", "b", "c"])
    content = torch.load(tmp_path / "final.ckpt", weights_only=True)
    torch.save({**content, "flow": SmoothFlow(2.0).settings}, tmp_path / "final.ckpt")
    with pytest.raises(ValueError, match=r"final\.ckpt was trained on other flow .*scale: 2\.0 there, 3\.0 asked for"):
        system(classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt")
    system(estimator=SmoothFlow(2.0), classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt")


def test_classes_must_be_known_and_the_datasets(tmp_path: Path) -> None:
    checkpoint(tmp_path / "foreign.ckpt", None)
    with pytest.raises(ValueError, match=r"foreign\.ckpt stores none.*num_classes"):
        system(classifier=resnet18, classifier_checkpoint=tmp_path / "foreign.ckpt")
    assert system(classifier=resnet18, classifier_checkpoint=tmp_path / "foreign.ckpt", num_classes=3).classes is None

    checkpoint(tmp_path / "final.ckpt", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"final\.ckpt was trained on 3 classes \(a, b, c\), but the dataset has 4"):
        system(classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt", num_classes=4)
    model = system(classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt")
    model.check_classes(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"final\.ckpt.*class 1 is 'b' there and 'x' here"):
        model.check_classes(["a", "x", "c"])
    with pytest.raises(ValueError, match=r"final\.ckpt.*3 there \(a, b, c\), 2 here \(a, b\)"):
        model.check_classes(["a", "b"])


class Videos(Dataset[VideoBatch]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> VideoBatch:
        generator = torch.Generator().manual_seed(index)
        clip = torch.rand(index % 3 + 1, FRAMES, 3, 10, 12, generator=generator)
        return VideoBatch(clip, torch.tensor(index % 3), torch.tensor(index))


class Data(pl.LightningDataModule):
    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.classes = classes

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Videos(), batch_size=None)


def trainer(folder: Path, **options) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


@pytest.mark.parametrize("options", [{"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}])
def test_clean_accuracies_in_one_process_and_in_two(tmp_path: Path, options: dict) -> None:
    """Five videos over two processes: one is dealt twice."""
    model, videos = system(), [Videos()[index] for index in range(5)]
    with torch.no_grad():
        probabilities = [model(video.frames).softmax(1) for video in videos]
    stacks = torch.cat([p.argmax(1) == v.label for p, v in zip(probabilities, videos, strict=True)]).float().mean()
    whole = sum(int(p.mean(0).argmax() == v.label) for p, v in zip(probabilities, videos, strict=True)) / 5
    (logged,) = trainer(tmp_path, **options).test(model, Data(["a", "b", "c"]), verbose=False)
    assert logged == pytest.approx({"test/stack_accuracy": stacks.item(), "test/video_accuracy": whole})


def test_a_trainer_checks_the_classes(tmp_path: Path) -> None:
    checkpoint(tmp_path / "final.ckpt", ["a", "b", "c"])
    model = system(classifier=resnet18, classifier_checkpoint=tmp_path / "final.ckpt")
    with pytest.raises(ValueError, match="class 2 is 'c' there and 'z' here"):
        trainer(tmp_path, devices=1).test(model, Data(["a", "b", "z"]), verbose=False)


def test_bfloat16_changes_little_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    parts = {
        "estimator": FlowNet2Estimator(variant="FlowNet2S", width=0.125),
        "classifier": ResNet(num_classes=3, depth=18, stack_length=FRAMES - 1),
        "crop": 32,
    }
    exact, fast = ModelUnderAttack(**parts), ModelUnderAttack(**parts, precision="bfloat16")
    dtypes = []
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    clip = frames(size=(64, 64)).requires_grad_()
    logits, expected = fast(clip), exact(clip)
    assert logits.dtype == torch.float32
    assert set(dtypes[: len(dtypes) // 2]) == {torch.bfloat16, torch.float32}
    assert 0 < (logits - expected).norm() < 0.1 * expected.norm()
    flow = fast.estimate_flow(clip[:, 0], clip[:, 1])
    assert flow.dtype == torch.float32 and fast.classify(flow[:, None].expand(-1, 3, -1, -1, -1)).dtype == torch.float32
    gradient, wanted = (torch.autograd.grad(out.logsumexp(1).sum(), clip)[0].sign() for out in (logits, expected))
    assert 0.8 < (gradient == wanted).float().mean() < 1
    assert (exact.settings["precision"], fast.settings["precision"]) == ("float32", "bfloat16")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert (exact.settings["precision"], fast.settings["precision"]) == ("tf32", "bfloat16, tf32")


def in_bfloat16(classifier: nn.Module, estimator: nn.Module | None = None, crop: int = 32) -> ModelUnderAttack:
    torch.manual_seed(0)
    return ModelUnderAttack(estimator=estimator or SmoothFlow(), classifier=classifier, crop=crop, precision="bfloat16")


def resnet_near_16() -> ResNet:
    torch.manual_seed(0)
    network = ResNet(num_classes=50, depth=18, stack_length=FRAMES - 1)
    nn.init.constant_(network.network.fc[1].bias, 16.0)
    return network


def test_the_last_layer_computes_in_float32_where_the_rest_is_bfloat16() -> None:
    """Beside float64 from the same features. In bfloat16 these logits are 0.125 apart, and up to 0.06 wrong."""
    classifier = resnet_near_16()
    model, last, features = in_bfloat16(classifier), classifier.network.fc[1], []
    last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].detach()))
    clip = frames(8, (40, 40)).requires_grad_()
    logits = model(clip)
    assert features[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
    exact = F.linear(features[0].double(), last.weight.double(), last.bias.double())
    assert 10 < exact.mean() < 22
    assert (logits - exact).abs().max() < 1e-3
    assert len(logits.unique()) > 0.9 * logits.numel()
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), clip)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.7  # the crop and its border


def test_the_last_layers_gradient_is_of_what_it_computes() -> None:
    classifier = resnet_near_16()
    model = in_bfloat16(classifier)
    flow = torch.randn(2, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with_features: list[Tensor] = []
    classifier.network.fc[1].register_forward_pre_hook(lambda module, inputs: with_features.append(inputs[0]))
    logits = model.classify(flow)
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), with_features[0])
    torch.testing.assert_close(gradient.float(), classifier.network.fc[1].weight[3].bfloat16().float().expand(2, -1))


def test_float32_last_layer_survives_copies_threads_and_errors() -> None:
    classifier = resnet_near_16()
    keys = list(classifier.state_dict())
    model, clip = in_bfloat16(classifier), frames(2, (40, 40))
    again = in_bfloat16(classifier, model.estimator)  # the classifier is part of two systems
    assert list(classifier.state_dict()) == keys
    expected = model(clip)
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(clip), expected)
    with pytest.raises(RuntimeError):
        model.classify(torch.zeros(2, 3, 2, 32, 32, device="meta"))
    with ThreadPoolExecutor(3) as threads:
        assert all(torch.equal(logits, expected) for logits in threads.map(model, [clip] * 6))
    assert not torch.is_autocast_enabled("cpu")
    assert model.double()(clip.double()).dtype == torch.float64


def test_float32_last_layer_takes_no_hook_twice() -> None:
    classifier = resnet_near_16()
    for _ in range(3):
        in_bfloat16(classifier)
    assert len(classifier.network.fc[1]._forward_hooks) == 1
    model, clip = in_bfloat16(classifier), frames(1, (40, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a Trainer's
        assert len(model(clip).unique()) > 45


def test_float32_last_layer_in_a_compiled_classifier() -> None:
    classifier = resnet_near_16()
    clip, plain = frames(1, (40, 40)), in_bfloat16(classifier)
    compiled = in_bfloat16(torch.compile(copy.deepcopy(classifier), backend="eager", fullgraph=True))
    assert torch.equal(compiled(clip), plain(clip))


class HeadFirst(nn.Module):
    """Its last registered layer is not the one that gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, flow: Tensor) -> Tensor:
        return self.head(self.body(flow))


def test_logits_in_bfloat16_are_told_once(recwarn: pytest.WarningsRecorder) -> None:
    model_under_attack._warn_of_coarse_logits.cache_clear()
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(6 * 8 * 8, 3)))
    model, clip = in_bfloat16(HeadFirst(), crop=8), frames()
    for system_ in (model, model, in_bfloat16(scripted, crop=8)):
        logits = system_(clip)
        assert logits.dtype == torch.float32 and torch.equal(logits, logits.bfloat16().float())
    told = [str(warning.message) for warning in recwarn if "0.125 apart" in str(warning.message)]
    assert len(told) == 2 and "HeadFirst" in told[0] and "precision: float32" in told[0]


def test_slow_bfloat16_is_told_once(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    def told(native: bool) -> list[str]:
        recwarn.clear()
        model_under_attack._warn_of_slow_bfloat16.cache_clear()
        monkeypatch.setattr(model_under_attack, "has_bf16_units", lambda device: native)
        monkeypatch.setattr(model_under_attack, "processor_name", lambda device: f"Old {device}")
        system()(frames())
        for model in (system(precision="bfloat16"), system(precision="bfloat16")):
            model(frames())
        return [str(warning.message) for warning in recwarn if "bfloat16 units" in str(warning.message)]

    assert told(native=True) == []
    (message,) = told(native=False)
    assert message.startswith("precision=bfloat16 on Old cpu") and "`precision: float32`" in message
    model_under_attack._warn_of_slow_bfloat16.cache_clear()


def test_pairs_and_whole_stacks_have_one_precision() -> None:
    """An attack's step estimates pairs, its clean pass whole stacks: their flow must be the same network's."""
    torch.manual_seed(0)
    estimator, seen = FlowNet2Estimator(variant="FlowNet2S", width=0.125), KeepsItsInput()
    clip = frames(1, (64, 64))
    stacked, paired = {}, {}
    for precision in ("float32", "bfloat16"):
        model = ModelUnderAttack(estimator=estimator, classifier=seen, crop=64, precision=precision)
        model(clip)
        stacked[precision] = seen.seen.unflatten(1, (-1, 2))[0]
        paired[precision] = torch.cat([model.estimate_flow(clip[:, n], clip[:, n + 1]) for n in range(FRAMES - 1)])
        assert paired[precision].abs().max() < 20  # nothing is clipped
    apart = (paired["bfloat16"] - paired["float32"]).norm()
    assert 1e-3 < apart / paired["float32"].norm() < 0.1
    for precision in ("float32", "bfloat16"):  # kernels may round otherwise for another batch
        assert (stacked[precision] - paired[precision]).norm() < 0.3 * apart


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match=r"'float16'.*float32 or bfloat16"):
        system(precision="float16")


class OwnForward(ModelUnderAttack):
    def forward(self, frames: Tensor) -> Tensor:
        return super().forward(frames.round(decimals=2))


@pytest.mark.filterwarnings("ignore:.*does not say `pairwise`")
def test_paths_of_a_system_with_its_own_forward_are_refused() -> None:
    plain = system()
    own = object.__new__(OwnForward)
    own.__dict__ = dict(plain.__dict__)
    with pytest.raises(ValueError, match=r"OwnForward is attacked through its own forward.*`pairwise = True` in OwnF"):
        prediction_paths._estimate(own, frames())
    assert prediction_paths._estimate(plain, frames()).shape[:2] == (2, FRAMES - 1)
