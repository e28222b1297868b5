"""YAMLs on the command line: they may name environment variables, and one that is given replaces what it names.

`${oc.env:RUN}/flow/tvl1` is OmegaConf's spelling: one experiment, any folder. `${RUN}` means the same.
"""

import json
import os
import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from jsonargparse.typing import Path_fr
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

MODE = "yaml_environment"
"""The parser mode: YAML whose values OmegaConf interpolates."""

_FORMER = re.compile(r"\$\{(\w+)\}")
_GIVEN_BY_MAKE = {
    "RUN": "the run's folder, runs/quickstart for one",
    "UCF101": "the folder that holds UCF-101/ and ucfTrainTestlist/: make … UCF101=DIR",
    "FLOWNET2": "NVIDIA's checkpoint FlowNet2_checkpoint.pth.tar: make … FLOWNET2=FILE (the README says where it is)",
    "TRUE_FLOW": "a folder of frame pairs with true flow, NAMEflow.flo beside two NAMEimg*: make … TRUE_FLOW=DIR",
    "FLOW": "the name of a flow algorithm, tvl1 for one",
    "FLOW_YAML": "the YAML of a flow algorithm, configs/flow/tvl1.yaml for one",
}


class InterpolationError(SystemExit):
    """A YAML cannot be interpolated.

    It ends the program: jsonargparse buries an ordinary error in the errors of every other type that it tries.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"Error: {message}")


class UnsetVariableError(InterpolationError):
    """A YAML names an environment variable that is not set."""


def load(text: str) -> Any:
    """Read YAML and interpolate its parsed values: no character of a variable is taken for YAML.

    Raises:
        UnsetVariableError: a variable is not set, or empty; says what it should hold.
        InterpolationError: OmegaConf cannot read a `${…}`, or YAML cannot read the text around one.
    """
    read = get_loader("yaml")
    if "${" not in text:
        return read(text)
    try:
        value = read(_FORMER.sub(r"${oc.env:\1}", text))
        return value if isinstance(value, str) else OmegaConf.to_container(OmegaConf.create(value), resolve=True)
    except yaml.YAMLError as error:
        raise InterpolationError(
            f'{error}\nA variable between braces needs quotes: {{root: "${{oc.env:RUN}}"}}'
        ) from None
    except OmegaConfBaseException as error:
        raise InterpolationError(f"a YAML's ${{…}}: {error}") from None


@cache
def install() -> None:
    """Make the parser mode known to jsonargparse, and let a YAML replace the component that it is given for."""
    OmegaConf.register_resolver("oc.env", _variable, replace=True)
    set_loader(MODE, load, (yaml.YAMLError,))  # a text that is no YAML, such as a folder called {a, is left as it is
    _let_yamls_replace()
    _keep_null()


def _variable(name: str, *default: Any) -> Any:
    """`${oc.env:NAME}`; unlike OmegaConf's own, an empty variable counts as unset, because make exports all of its."""
    found = os.environ.get(name)
    if found:
        return f"./{found}" if _is_lost(found) else found
    if default:
        return default[0]
    meaning = _GIVEN_BY_MAKE.get(name, "named in a YAML of this run")
    raise UnsetVariableError(f"${{{name}}} is not set; it is {meaning}")


def _is_lost(value: str) -> bool:
    """jsonargparse reads each string as YAML once more: None for folders called null, ~ or #1. OmegaConf misses ???."""
    try:
        return value == "???" or get_loader("yaml")(value) is None
    except yaml.YAMLError:
        return False


# jsonargparse has no setting for the two below. Both follow jsonargparse/_typehints.py, version 4.53;
# tests/test_yaml_environment.py tells when a newer one does it by itself or has moved these places.


def _let_yamls_replace() -> None:
    """A YAML given for a component replaces its class_path and all its init_args.

    jsonargparse lays what it reads over the value before it, so that keys that a second file lacks stay those of the
    first. `ActionTypeHint._check_type` passes the value before on as `prev_val`; before a value is merged,
    `discard_init_args_on_class_path_change` is asked what the old one loses.
    """
    action = _typehints.ActionTypeHint

    @_wraps(action._check_type)
    def check(original: Callable[..., Any], self: Any, value: Any, append: bool = False, cfg: Any = None, **rest: Any):
        if cfg and self.dest in cfg and not append and self._enable_path and _is_file(value):
            cfg.pop(self.dest)
        return original(self, value, append=append, cfg=cfg, **rest)

    @_wraps(action.discard_init_args_on_class_path_change)
    def discard(original: Callable[..., Any], parser: Any, before: Any, now: Any) -> None:
        if isinstance(before, Namespace) and isinstance(now, Namespace):
            for key, value in now.items(branches=True):
                if key in before and isinstance(value, Namespace) and {"class_path", "__path__"} <= vars(value).keys():
                    before.pop(key)
        original(parser, before, now)

    action._check_type = check  # type: ignore[method-assign]
    action.discard_init_args_on_class_path_change = staticmethod(discard)  # type: ignore[method-assign]


def _keep_null() -> None:
    """`--data.init_args.dataset.init_args.frame_size=null` is None.

    `adapt_class_type` writes the parsed value of a nested option back as f"{value}" to parse it once more: "None".
    """

    @_wraps(_typehints.adapt_class_type)
    def adapt(original: Callable[..., Any], value: Any, *args: Any, **rest: Any) -> Any:
        nested = value.get("init_args")
        if isinstance(nested, _typehints.NestedArg) and not isinstance(nested.val, str):
            value["init_args"] = _typehints.NestedArg(nested.key, json.dumps(nested.val))
        return original(value, *args, **rest)

    _typehints.adapt_class_type = adapt


def _wraps(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A replacement that is given what it replaces as its first argument."""

    def around(replacement: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def called(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        return called

    return around


def _is_file(value: Any) -> bool:
    """Whether jsonargparse will read it, relative to the YAML that names it."""
    try:
        return isinstance(value, str) and bool(Path_fr(value))
    except TypeError:
        return False
