"""The processor that computes: its name, and whether it multiplies bfloat16 in hardware."""

import os
import platform
from pathlib import Path

import torch

_WITHOUT_BF16 = {
    *("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2"),
    *("avx512_mic", "avx512_mic_4ops", "avx512_core", "avx512_core_vnni"),
}
"""Values of oneDNN's ONEDNN_MAX_CPU_ISA (or DNNL_MAX_CPU_ISA) that keep it from the bfloat16 units of a CPU."""


def processor_name(device: torch.device | str = "cpu") -> str:
    """Name of the processor behind a device, "Intel(R) Xeon(R) Processor" for one."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return _name_in_cpuinfo() or platform.processor() or platform.machine() or "unknown CPU"


def has_bf16_units(device: torch.device | str) -> bool:
    """Whether torch multiplies bfloat16 in hardware there; without it bfloat16 works, slower than float32.

    False on what is neither a CUDA device nor an x86 CPU.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() counts emulation too, and asks the current device alone.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and _cpu_has_bf16_units() and not _hidden_from_onednn()


def _cpu_has_bf16_units() -> bool:
    # torch calls a CPU with AVX-512 alone supported, too: oneDNN computes bfloat16 there, but in float32 units.
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _hidden_from_onednn() -> bool:
    """oneDNN obeys its variables, while torch's questions about the CPU do not."""
    highest = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return highest.lower() in _WITHOUT_BF16


def _name_in_cpuinfo() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
