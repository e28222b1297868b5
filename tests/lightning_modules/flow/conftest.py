import importlib.util
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle_rule(flownet2_oracle) -> ModuleType:
    """The oracle's rule for weights, frame pairs and probes."""
    spec = importlib.util.spec_from_file_location("fill_rule", flownet2_oracle / "fill_rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
