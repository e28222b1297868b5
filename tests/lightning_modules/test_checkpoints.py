import collections
import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from lightning_modules.checkpoints import CheckpointError, load_weights, read_state
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.flownet_networks import VARIANTS

WIDTH = 0.0625


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(2, 3, 3), norm=nn.BatchNorm2d(3)))


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


class Python2Pickler(pickle._Pickler):
    """Writes str as Python 2 did: as byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, text: str) -> None:
        data = text.encode("ascii")
        head = pickle.SHORT_BINSTRING + bytes([len(data)])
        self.write((head if len(data) < 256 else pickle.BINSTRING + struct.pack("<i", len(data))) + data)
        self.memoize(text)

    dispatch[str] = save_byte_string


def python2_pickle() -> ModuleType:
    module = ModuleType("python2_pickle")
    module.Pickler = Python2Pickler
    module.dump = lambda value, file, protocol: Python2Pickler(file, protocol).dump(value)
    return module


def save_as_nvidia(state: dict, path: Path) -> None:
    content = {"epoch": 41, "state_dict": collections.OrderedDict(state), "best_EPE": 1.3172}
    torch.save(content, path, pickle_module=python2_pickle(), pickle_protocol=2, _use_new_zipfile_serialization=False)


def forms(module: nn.Module) -> dict[str, object]:
    state = module.state_dict()
    inside = {f"classifier.{key}": value for key, value in state.items()}
    return {
        "bare": state,
        "nvidia": {"epoch": 3, "state_dict": state, "best_EPE": 0.5},
        "lightning": {"state_dict": inside | {"estimator.w": torch.zeros(1)}, "epoch": 1, "optimizer_states": []},
    }


@pytest.mark.parametrize("form", ["bare", "nvidia", "lightning"])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_form_loads(tmp_path, form, zipped):
    path = tmp_path / "weights.ckpt"
    torch.save(forms(network(1))[form], path, _use_new_zipfile_serialization=zipped)
    module = network(2)
    load_weights(module, path, prefix="classifier.")
    assert same_weights(module, network(1))


def test_batch_norms_of_old_files_need_no_counter(tmp_path):
    state = {key: value for key, value in network(1).state_dict().items() if "num_batches_tracked" not in key}
    torch.save(dict(state), tmp_path / "old.pth")
    module = network(2)
    load_weights(module, tmp_path / "old.pth")
    assert same_weights(module, network(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_in_nvidias_format_loads(tmp_path, variant):
    path = tmp_path / f"{variant}_checkpoint.pth.tar"
    torch.manual_seed(1)
    source = VARIANTS[variant](width=WIDTH)
    save_as_nvidia(source.state_dict(), path)
    assert path.read_bytes()[:2] != b"PK"
    assert same_weights(FlowNet2Estimator(variant=variant, width=WIDTH, checkpoint=path).network, source)


@pytest.mark.parametrize("prefix", ["estimator.network.", "network.", ""])
def test_our_own_fine_tuning_loads_whole_or_as_state_dict(tmp_path, prefix):
    path = tmp_path / "last.ckpt"
    source = FlowNet2Estimator(variant="FlowNet2S", width=WIDTH).network
    torch.save({"state_dict": {prefix + key: value for key, value in source.state_dict().items()}}, path)
    estimator = FlowNet2Estimator(variant="FlowNet2S", width=WIDTH, checkpoint=path)
    assert same_weights(estimator.network, source)
    frames = torch.rand(1, 2, 3, 64, 64)
    torch.testing.assert_close(estimator.network.flow(frames.transpose(1, 2) * 255)[:, None], estimator(frames))


@pytest.mark.parametrize("held", VARIANTS)
def test_the_wrong_variant_is_refused_by_name(tmp_path, held):
    path = tmp_path / "published.pth.tar"
    save_as_nvidia(VARIANTS[held](width=WIDTH).state_dict(), path)
    for wanted in VARIANTS.keys() - {held}:
        with pytest.raises(
            CheckpointError, match=rf"published\.pth\.tar does not fit {wanted}: .* {held}, width 0\.0625"
        ):
            FlowNet2Estimator(variant=wanted, width=WIDTH, checkpoint=path)


def test_the_wrong_width_and_form_are_refused_by_name(tmp_path):
    path = tmp_path / "wide.pth"
    torch.save(VARIANTS["FlowNet2S"](width=0.125, batch_norm=True).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"holds the weights of FlowNet2S, width 0\.125, batch_norm true"):
        FlowNet2Estimator(variant="FlowNet2S", width=0.125, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"of another shape \(\S*conv"):
        FlowNet2Estimator(variant="FlowNet2S", width=0.25, batch_norm=True, checkpoint=path)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path):
    path = tmp_path / "other.pth"
    state = dict(network(1).state_dict())
    state["fc.weight"] = state.pop("norm.weight")
    state["conv.weight"] = torch.zeros(4, 2, 3, 3)
    torch.save(state, path)
    module = network(2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, path)
    for part in (
        "other.pth",
        "1 missing (norm.weight)",
        "1 unexpected (fc.weight)",
        "conv.weight (4, 2, 3, 3) instead of",
    ):
        assert part in str(caught.value)
    assert same_weights(module, network(2))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        load_weights(network(1), tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="a folder"):
        load_weights(network(1), tmp_path)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    whole, old = tmp_path / "whole.ckpt", tmp_path / "old.ckpt"
    torch.save(network(1).state_dict(), whole)
    torch.save(network(1).state_dict(), old, _use_new_zipfile_serialization=False)
    contents = {
        "empty": b"",
        "text": b"<html>please log in</html>\n",
        "bytes": bytes(range(256)) * 20,
        "torn_zip": whole.read_bytes()[:-200],
        "torn_old": old.read_bytes()[:-20],
        "torn_header": old.read_bytes()[:30],
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.ckpt cannot be read"):
            load_weights(network(1), path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "code.ckpt"
    torch.save({"state_dict": {}, "hook": Path.home}, path)
    with pytest.raises(CheckpointError, match=r"code\.ckpt cannot be read"):
        load_weights(network(1), path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}, {"state_dict": {}}, {}])
def test_files_without_a_state_dict_are_named(tmp_path, content):
    path = tmp_path / "something.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"something\.pt holds no state dict"):
        read_state(path)


def test_options_that_weights_do_not_show_are_remembered(tmp_path):
    """What FinalWeights leaves of a fine-tuning; a file that does not say passes."""
    path, trained = tmp_path / "final.ckpt", FlowNet2Estimator(variant="FlowNet2S", width=WIDTH, size_rule="resize")
    torch.save({"state_dict": trained.state_dict(), "settings": trained.settings}, path)
    FlowNet2Estimator(variant="FlowNet2S", width=WIDTH, size_rule="resize", checkpoint=path)
    with pytest.raises(CheckpointError, match=r"final\.ckpt was trained with size_rule 'resize', but 'pad' is conf"):
        FlowNet2Estimator(variant="FlowNet2S", width=WIDTH, checkpoint=path)
    torch.save({"state_dict": trained.state_dict()}, path)
    FlowNet2Estimator(variant="FlowNet2S", width=WIDTH, checkpoint=path)


USUAL = ["state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "params_ema", "model_ema"]


@pytest.mark.parametrize("key", [*USUAL, "generator"])
def test_a_state_dict_loads_from_the_usual_keys(tmp_path, key):
    """Beside what training scripts save with it: an optimizer's state, random states, numbers."""
    source, path = network(1), tmp_path / "weights.pt"
    optimizer = torch.optim.Adam(source.parameters())
    beside = {"optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5}
    torch.save({**beside, key: source.state_dict()}, path)
    module = network(2)
    load_weights(module, path, prefix="classifier.")
    assert same_weights(module, source)


def test_dicts_of_tensors_that_are_no_weights_stand_beside_them(tmp_path):
    source, path, module = network(1), tmp_path / "weights.pt", network(2)
    torch.save({"model": source.state_dict(), "random": {"cpu": torch.get_rng_state()}}, path)
    load_weights(module, path)
    assert same_weights(module, source)


@pytest.mark.parametrize("keys", [("model", "state_dict"), ("model", "model_ema"), ("left", "right")])
def test_several_state_dicts_are_named(tmp_path, keys):
    path = tmp_path / "two.pt"
    torch.save({key: network(seed).state_dict() for seed, key in enumerate(keys)}, path)
    with pytest.raises(CheckpointError, match=rf"two\.pt holds several state dicts, '{keys[0]}', '{keys[1]}'") as error:
        load_weights(network(2), path)
    exec(str(error.value).split("is meant, ")[1].split(" for one")[0].replace("weights.pt", str(tmp_path / "one.pt")))
    load_weights(network(2), tmp_path / "one.pt")  # the advice works


def test_a_lightning_checkpoint_has_one_state_dict_whatever_callbacks_leave_beside_it(tmp_path):
    source, path, module = network(1), tmp_path / "averaged.ckpt", network(2)
    states = {"state_dict": source.state_dict(), "current_model_state": network(3).state_dict()}
    torch.save({"pytorch-lightning_version": "2.6.6", **states}, path)
    load_weights(module, path)
    assert same_weights(module, source)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        torch.optim.swa_utils.AveragedModel,
        lambda module: torch.compile(nn.DataParallel(module)),
        lambda module: nn.DataParallel(torch.compile(module)),
        lambda module: nn.ModuleDict({"model": module}),
        lambda module: nn.ModuleDict({"classifier": nn.DataParallel(module)}),
        lambda module: nn.ModuleDict({"classifier": torch.compile(module), "loss": nn.Linear(1, 1)}),
    ],
)
def test_weights_of_a_wrapped_network_load(tmp_path, wrap, nested):
    source, path, module = network(1), tmp_path / "wrapped.pt", network(2)
    state = wrap(source).state_dict()
    assert state.keys() != source.state_dict().keys()
    torch.save({"model_state_dict": state} if nested else state, path)
    load_weights(module, path, prefix="classifier.")
    assert same_weights(module, source)


def test_a_network_may_have_a_part_called_module(tmp_path):
    source, module = (nn.ModuleDict({"module": network(seed)}) for seed in (1, 2))
    torch.save(source.state_dict(), tmp_path / "own.pt")
    load_weights(module, tmp_path / "own.pt")
    assert same_weights(module, source)


class Pickled(nn.Module):
    """What `torch.save(model, path)` names in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_model_is_refused_by_its_class(tmp_path, zipped, monkeypatch):
    path = tmp_path / "whole.pt"
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, ModuleType(__name__)))
    monkeypatch.setattr(sys.modules[__name__], "Pickled", Pickled, raising=False)
    torch.save(Pickled(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as error:
        load_weights(Pickled(), path)
    name = f"{Pickled.__module__}.Pickled"
    for part in (str(path), name, "would run code", "torch.save(model.state_dict()"):
        assert part in str(error.value).replace("loading it would", "would")
    assert "cut off" not in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_with_an_object_and_a_torchscript_program_are_refused_by_what_they_hold(tmp_path):
    path = tmp_path / "options.pt"
    torch.save({"model": network(1).state_dict(), "args": SimpleNamespace(depth=3)}, path)
    with pytest.raises(CheckpointError, match=r"options\.pt .*types\.SimpleNamespace.*torch\.save\(model\.state_dict"):
        load_weights(network(1), path)
    torch.jit.script(network(1)).save(path)
    with pytest.raises(CheckpointError, match=r"options\.pt .*a TorchScript program.*torch\.save\(model\.state_dict"):
        load_weights(network(1), path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_file_and_tensor(tmp_path, value):
    path, state = tmp_path / "diverged.ckpt", network(1).state_dict()
    state["norm.running_var"][1] = value
    state["norm.bias"][:] = value
    torch.save({"state_dict": state}, path)
    module = network(2)
    with pytest.raises(CheckpointError, match=r"diverged\.ckpt .*not finite: norm\.bias \(3 of 3 .*1 more tensor"):
        load_weights(module, path)
    assert same_weights(module, network(2))


def test_a_mask_that_is_infinite_by_design_loads(tmp_path):
    source, module = network(1), network(2)
    for net in (source, module):
        net.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    torch.save(source.state_dict(), tmp_path / "masked.pt")
    load_weights(module, tmp_path / "masked.pt")
    assert same_weights(module, source)
