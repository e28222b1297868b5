"""settings.json: what decides the records of a sweep. It guards their folder: two sweeps are never mixed in one."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.attack import Attack
from attacks.victim import Victim
from attacks.whole_file import write_whole

COSTS_ALONE = {"batch_size", "pairs_at_once", "retained_pairs"}
"""Options of an attack that do not change what it does, only what it costs."""
UNDECIDING = {*COSTS_ALONE, "name", "begins"}
"""Attributes left out of an attack's settings: COSTS_ALONE, and what follows from other options."""


def victim_settings(victim: Victim) -> dict[str, Any]:
    """Class, hash of the weights, and whatever the system itself tells in `settings`."""
    described: dict[str, Any] = {"class": _class_path(victim)}
    if isinstance(victim, nn.Module):
        described["weights_sha256"] = weights_sha256(victim)
    return described | {"settings": getattr(victim, "settings", {})}


def attack_settings(attack: Attack) -> dict[str, Any]:
    """Class and options."""
    undecided = UNDECIDING if attack.needs_gradient else {*UNDECIDING, "loss"}
    options = {key: value for key, value in vars(attack).items() if key not in undecided}
    return {"class": _class_path(attack), "dense": attack.dense, **options}


def engine_settings(attacks: Mapping[str, Attack], **options: int | None) -> dict[str, Any]:
    """The options that decide the costs of a sweep and nothing else: its own, and those of each attack.

    Records count pairs, so a sweep that goes on keeps these options, too.
    """
    of_attacks = {
        name: {option: vars(attack)[option] for option in sorted(COSTS_ALONE) if option in vars(attack)}
        for name, attack in attacks.items()
    }
    return {**options, "attacks": of_attacks}


def weights_sha256(module: nn.Module) -> str:
    """Over names, types, shapes and bytes of the state dict, wherever it lies."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json unless the folder has one. Call it in one process, before `check_settings` in all."""
    path = folder / "settings.json"
    if not path.exists():
        write_whole(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


def check_settings(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    holds: str = "the records of a sweep",
    way_out: str = "Give this sweep another output folder, or remove that one",
) -> None:
    """Refuse a folder that holds what was made with other settings.

    Raises:
        FileNotFoundError: this process does not see what the first one wrote.
        ValueError: names each difference.
    """
    path = folder / "settings.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; all processes of a sweep need one folder that all of them see")
    there = json.loads(path.read_text())
    if "engine" in settings and "engine" not in there:  # of an earlier version, which did not look at it
        settings = {key: value for key, value in settings.items() if key != "engine"}
    if found := differences(there, settings):
        raise ValueError(f"{folder} holds {holds} with other settings: {'; '.join(found)}. {way_out}")


def check_systems(folder: Path, systems: Mapping[str, Victim]) -> None:
    """Refuse systems that are not those of the sweep in `folder`.

    Raises:
        FileNotFoundError: the folder holds no sweep.
        ValueError: names each difference.
    """
    path = folder / "settings.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; the folder of a sweep is needed")
    here = {name: victim_settings(system) for name, system in systems.items()}
    if found := differences(json.loads(path.read_text())["systems"], here):
        raise ValueError(
            f"the sweep in {folder} attacked other systems than these: {'; '.join(found)}. Give the same options as to "
            'the sweep (with make: SWEEP_ARGS="…"), or run it anew'
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What stored settings and those of now do not have in common, an entry each."""
    flat_there, flat_here = _flat(dict(there)), _flat(json.loads(json.dumps(here)))
    return [
        f"{key} is {_quoted(flat_there, key)} there and {_quoted(flat_here, key)} now"
        for key in dict.fromkeys([*flat_there, *flat_here])
        if _quoted(flat_there, key) != _quoted(flat_here, key)
    ]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name, item in value.items() for k, v in _flat(item, f"{key}.{name}" if key else name).items()}
    return {key: value}


def _quoted(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "absent"


def _class_path(thing: object) -> str:
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
