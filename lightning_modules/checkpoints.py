"""Weights from files into networks, strictly: what does not fit, or is not finite, is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_modules.state_dicts import CheckpointError, State, read_entry, read_state, under, unwrapped

__all__ = ["CheckpointError", "State", "check_trained_with", "load_weights", "read_entry", "read_state"]


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
        path: a bare state dict, or one under a usual key (`state_dict` as Lightning and NVIDIA write it, `model` …),
            also of a network in DataParallel or torch.compile.
        prefix: where the module sits in a Lightning module, "classifier." or "estimator.network."; keys under it, or
            under the rest of it after a dot ("network."), are taken and lose it; a file without such is taken whole.
        identify: says in words which network of the module's family a state dict belongs to, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read, holds no weights or several, does not fit, or is not finite; it names the
            file and the tensors.
    """
    path = Path(path)
    expected = module.state_dict()
    state = unwrapped(under(unwrapped(read_state(path), expected), prefix), expected)
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
    # An attention mask of -inf is not finite in the network itself, too.
    diverged = [key for key in state if not state[key].isfinite().all() and expected[key].isfinite().all()]
    if diverged:
        tensor = state[diverged[0]]
        raise CheckpointError(
            f"{path} holds weights that are not finite: {diverged[0]} "
            f"({int((~tensor.isfinite()).sum())} of {tensor.numel()} values)"
            + (f" and {len(diverged) - 1} more tensors" if len(diverged) > 1 else "")
            + ". The training that left them has diverged: remove its folder and train again, with a lower learning "
            "rate for one, or give another file"
        )
    module.load_state_dict({**{k: v for k, v in expected.items() if k not in state}, **state})


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
