"""Data that the repository does not carry is found by environment variables; a test says so when it is absent."""

import os
from pathlib import Path

import pytest


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names {what}")
    path = Path(value).expanduser().resolve()
    if not path.is_dir():
        pytest.fail(f"{variable}={value}: no such folder; it names {what}")
    return path


@pytest.fixture(scope="session")
def ucf101_root() -> Path:
    """The folder that holds UCF-101/ and ucfTrainTestlist/, whole or in part."""
    return _folder("UCF101", "the folder that holds UCF-101/ and ucfTrainTestlist/")


@pytest.fixture(scope="session")
def flownet2_oracle() -> Path:
    """The folder of NVIDIA's FlowNet2 numbers: *.npz, keys.json, losses.json, fill_rule.py."""
    return _folder("FLOWNET2_ORACLE", "the folder with NVIDIA's FlowNet2 numbers")


@pytest.fixture(scope="session")
def odd_cases() -> Path:
    """The folder of odd videos and dataset trees: videos/, trees/."""
    return _folder("ODD_CASES", "the folder with odd videos/ and dataset trees/")
