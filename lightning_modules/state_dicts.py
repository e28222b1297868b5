"""The state dict in a checkpoint file, whoever wrote it: bare, under one of the usual keys, or of a wrapped network.

Everything is read with `weights_only=True`: a file that holds code is refused.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

USUAL_KEY = re.compile(r"(^|_)(state_dict|model|module|net|network|weights?|params?|ema)(_|$)", re.IGNORECASE)
"""Names that training scripts give a network's state dict: `model`, `model_state_dict`, `net`, `params_ema` …"""

WRAPPERS = ("module.", "model.", "net.", "network.")
"""What all keys begin with where the network was part of a larger module; the first is DataParallel's."""

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


class CheckpointError(ValueError):
    """A file that holds no weights, or the weights of another network."""


def read_state(path: Path) -> State:
    """The state dict in a checkpoint file, keys as they are there.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read, holds code, no state dict, or several.
    """
    return _find(path, _read(path))


def read_entry(path: Path, key: str) -> Any:
    """What a run's checkpoint holds beside its weights; None where another tool wrote it. Raises as `read_state`."""
    content = _read(path)
    _find(path, content)
    return content.get(key)


def unwrapped(state: State, expected: State) -> State:
    """Keys without what wrappers put before them; what the network's own keys begin with stays.

    torch.compile writes `_orig_mod.`, DataParallel and DistributedDataParallel `module.`, AveragedModel also a counter.
    """
    if not any("_orig_mod." in key for key in expected):
        state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    weights = {key: value for key, value in state.items() if key != "n_averaged"}
    for wrapper in WRAPPERS:
        own = any(key.startswith(wrapper) for key in expected)
        if weights and not own and all(key.startswith(wrapper) for key in weights):
            return unwrapped({key.removeprefix(wrapper): value for key, value in weights.items()}, expected)
    return state


def under(state: State, prefix: str) -> State:
    """The entries under `prefix`, or under what follows one of its dots, without it; all where there are none."""
    while prefix:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            return inside
        prefix = prefix.partition(".")[2]
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}" + (" (a folder)" if path.is_dir() else ""))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn pickle raises whatever its reader stumbles on
        if (code := _code_in(str(error))) is not None:
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint: it holds {code}, and loading it would run code. Only tensors "
                "are read here. Save the weights alone where that code is at home, "
                "torch.save(model.state_dict(), 'weights.pt'), and give that file"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}): is it cut off or another file?"
        ) from error


def _code_in(message: str) -> str | None:
    """What torch refused, from its error: a class or function, or a whole program."""
    if "TorchScript archive" in message:
        return "a TorchScript program"
    refused = _REFUSED.search(message)
    return None if refused is None else f"an object of {refused[1]}, as a pickled model or its options are"


def _find(path: Path, content: Any) -> State:
    """The one state dict in what a file holds."""
    if _is_state(content):
        return dict(content)
    found = _candidates(content)
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds several state dicts, {', '.join(map(repr, found))}: save the one that is meant, "
            f"torch.save(torch.load({str(path)!r})[{found[0]!r}], 'weights.pt') for one, and give that file"
        )
    if not found:
        raise CheckpointError(f"{path} holds no state dict but {_describe(content)}")
    return dict(content[found[0]])


def _candidates(content: Any) -> list[str]:
    """Keys under which a state dict lies; those with other names count where no usual name is among them."""
    if not isinstance(content, dict):
        return []
    if "pytorch-lightning_version" in content:  # callbacks may leave others beside it
        return ["state_dict"] if _is_state(content.get("state_dict")) else []
    found = [key for key, value in content.items() if isinstance(key, str) and _is_state(value)]
    return [key for key in found if USUAL_KEY.search(key)] or found


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return "a dict of " + (", ".join(map(str, list(content)[:5])) or "nothing")
    return f"a {type(content).__name__}"
