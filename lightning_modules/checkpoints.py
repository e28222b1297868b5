"""Weights from files: NVIDIA's FlowNet2 checkpoints (old pickle), Lightning checkpoints and bare state dicts.

Everything is read with `weights_only=True` and loaded strictly.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A file that holds no weights, or the weights of another network."""


def load_weights(
    module: nn.Module,
    path: Path | str,
    *,
    prefix: str = "",
    identify: Callable[[State], str | None] | None = None,
) -> None:
    """Load the weights in `path` into `module`, strictly.

    Args:
        module: the network; its weights stay as they are when anything raises.
        path: a Lightning checkpoint, `{"state_dict": ...}` as NVIDIA's, or a bare state dict.
        prefix: where the module sits in a Lightning module, "classifier." or "estimator.network."; keys under it, or
            under the rest of it after a dot ("network."), are taken and lose it; a file without such is taken whole.
        identify: says in words which network of the module's family a state dict belongs to, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read, holds no weights, or does not fit; it names the file and what does not fit.
    """
    path = Path(path)
    state = _under(read_state(path), prefix)
    expected = module.state_dict()
    # batch norms of old files carry no counter
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        fits = identify(state) if identify else None
        raise CheckpointError(
            f"{path} does not fit {type(module).__name__}: "
            + (f"it holds the weights of {fits}. " if fits else "")
            + "; ".join(
                f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
                for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
                if keys
            )
            + ". Configure the network that the file was made with, or give another file"
        )
    module.load_state_dict({**{k: v for k, v in expected.items() if k not in state}, **state})


def read_entry(path: Path, key: str) -> Any:
    """What a run's checkpoint holds beside its weights; None where another tool wrote it."""
    return _read(path)[1].get(key)


def check_trained_with(path: Path | str, options: dict[str, Any]) -> None:
    """Whether a network's own options, those that its weights do not show, are what it was trained with; passes where
    the file does not say.

    Raises:
        FileNotFoundError, CheckpointError: as `load_weights`; another value names the file, the option and both values.
    """
    recorded = read_entry(Path(path), "settings") or {}
    for option, value in options.items():
        if option in recorded and recorded[option] != value:
            raise CheckpointError(
                f"{path} was trained with {option} {recorded[option]!r}, but {value!r} is configured: set {option} to "
                f"{recorded[option]!r}, or train with {value!r}"
            )


def read_state(path: Path) -> State:
    """The state dict in a checkpoint file, keys as they are there."""
    return _read(path)[0]


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """The state dict in a checkpoint file, and the whole of it."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}" + (" (a folder)" if path.is_dir() else ""))
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn pickle raises whatever its reader stumbles on
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}): is it cut off or another file?"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict but {_describe(content)}")
    return dict(state), content


def _under(state: State, prefix: str) -> State:
    """The entries under `prefix`, or under what follows one of its dots, without it; all where there are none."""
    while prefix:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            return inside
        prefix = prefix.partition(".")[2]
    return state


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return "a dict of " + (", ".join(map(str, list(content)[:5])) or "nothing")
    return f"a {type(content).__name__}"
