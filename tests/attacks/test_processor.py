import os
import platform
import subprocess
import sys

import pytest
import torch

from attacks import processor
from attacks.processor import has_bf16_units, processor_name

ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def cpu(monkeypatch: pytest.MonkeyPatch, *, onednn: bool, avx512_bf16: bool, amx: bool = False) -> None:
    for name in ISA:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


def test_a_cpu_needs_the_units_and_a_onednn_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(monkeypatch, onednn=True, avx512_bf16=True)
    assert has_bf16_units("cpu")
    cpu(monkeypatch, onednn=True, avx512_bf16=False, amx=True)
    assert has_bf16_units("cpu")
    cpu(monkeypatch, onednn=True, avx512_bf16=False)  # AVX-512 alone, where oneDNN says that it supports the type
    assert not has_bf16_units("cpu")
    cpu(monkeypatch, onednn=False, avx512_bf16=True)
    assert not has_bf16_units("cpu")


@pytest.mark.parametrize("variable", ISA)
@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("AVX512_CORE", False),
        ("avx2", False),
        ("AVX2_VNNI_2", False),
        ("AVX512_CORE_BF16", True),
        ("AVX512_CORE_AMX", True),
        ("AVX10_1_512_AMX", True),
        ("ALL", True),
        ("", True),
    ],
)
def test_units_that_onednn_may_not_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, seen: bool
) -> None:
    cpu(monkeypatch, onednn=True, avx512_bf16=True)
    monkeypatch.setenv(variable, value)
    assert has_bf16_units("cpu") is seen


def test_onednns_variable_in_a_process_of_its_own() -> None:
    command = "from attacks.processor import has_bf16_units; print(has_bf16_units('cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    result = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_that_emulates_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert has_bf16_units("cuda:1") is native


def test_on_what_is_not_known_there_are_none() -> None:
    assert not has_bf16_units("mps") and processor_name("mps") == "mps"


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Tesla V100 {device.index}")
    assert processor_name("cuda:1") == "Tesla V100 1"
    assert processor_name()
    monkeypatch.setattr(processor, "_name_in_cpuinfo", lambda: "")  # ARM, or no Linux
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_name("cpu") == "aarch64"
