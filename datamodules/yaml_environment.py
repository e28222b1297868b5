"""YAMLs may name environment variables, `${RUN}/flow/tvl1`: one experiment, any folder."""

import os
import re
from typing import Any

from jsonargparse import get_loader, set_loader

MODE = "yaml_environment"
"""The parser mode that resolves them."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_GIVEN_BY_MAKE = {
    "RUN": "the run's folder, runs/quickstart for one",
    "UCF101": "the folder that holds UCF-101/ and ucfTrainTestlist/: make … UCF101=DIR",
    "FLOWNET2": "NVIDIA's checkpoint FlowNet2_checkpoint.pth.tar: make … FLOWNET2=FILE (the README says where it is)",
    "TRUE_FLOW": "a folder of frame pairs with true flow, NAMEflow.flo beside two NAMEimg*: make … TRUE_FLOW=DIR",
    "FLOW": "the name of a flow algorithm, tvl1 for one",
    "FLOW_YAML": "the YAML of a flow algorithm, configs/flow/tvl1.yaml for one",
}


class UnsetVariableError(ValueError):
    """A YAML names an environment variable that is not set."""


def resolve(text: str) -> str:
    """Replace each `${NAME}` by the environment variable.

    Raises:
        UnsetVariableError: it is not set, or empty; says what it should hold.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        found = os.environ.get(name)
        if not found:
            meaning = _GIVEN_BY_MAKE.get(name, "named in a YAML of this run")
            raise UnsetVariableError(f"${{{name}}} is not set; it is {meaning}")
        return found

    return _VARIABLE.sub(value, text)


def install() -> None:
    """Make the parser mode known to jsonargparse."""
    load = get_loader("yaml")

    def load_resolved(text: str) -> Any:
        return load(resolve(text))

    set_loader(MODE, load_resolved)
