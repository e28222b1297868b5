"""The Trainer's precision where a config says `mixed_precision: auto`: bf16-mixed on processors with bfloat16 units,
32-true on others, where bf16-mixed takes ten times as long."""

from typing import Any

import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator

from attacks.processor import has_bf16_units, processor_name
from lightning_modules.run_folder import RunFolder


def choose_precision(
    given: str | int | None, *, accelerator: Any, devices: Any, folder: str | None
) -> tuple[str | int, str]:
    """What the Trainer shall take, and a line that says why.

    Args:
        given: `trainer.precision`; anything but None is kept.
        accelerator, devices: the Trainer's.
        folder: `trainer.default_root_dir`. A training that has begun there goes on in its precision, on any machine.
    """
    used = _devices(accelerator, devices)
    native = bool(used) and all(has_bf16_units(device) for device in used)
    names = ", ".join(dict.fromkeys(processor_name(device) for device in used)) or str(accelerator)
    machine = f"{names}: {'with' if native else 'without usable'} bfloat16 units"
    if given is not None:
        return given, f"precision: {given}, as trainer.precision says ({machine})"
    begun = None if folder is None else RunFolder(folder).precision
    if begun is None:
        chosen, other = ("bf16-mixed", "32-true") if native else ("32-true", "bf16-mixed")
        return chosen, f"precision: {chosen} ({machine}); --trainer.precision={other} overrides"
    line = f"precision: {begun}, as the training in {folder} began ({machine})"
    if begun.startswith("bf16") and not native:
        line += (
            "; it is slow here. To train in float32, begin in another folder (RUNS=… of make, or "
            "--trainer.default_root_dir)"
        )
    return begun, line


def _devices(accelerator: Any, devices: Any) -> list[torch.device]:
    """What the Trainer will compute on, of the CPU and CUDA devices; none on anything else."""
    if accelerator == "auto" and XLAAccelerator.is_available():
        return []
    if accelerator in ("auto", "gpu") and MPSAccelerator.is_available():
        return []
    if accelerator == "cuda" or (accelerator in ("auto", "gpu") and CUDAAccelerator.is_available()):
        count = CUDAAccelerator.auto_device_count()
        numbers = range(count) if devices == "auto" else CUDAAccelerator.parse_devices(devices) or []
        # Under torchrun a process may see one GPU of the many that it names.
        return [torch.device("cuda", number) for number in numbers if number < count]
    return [torch.device("cpu")] if accelerator in ("auto", "cpu") else []
