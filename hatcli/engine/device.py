"""Where to compute and with which number format."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch

from hatcli.errors import UsageError


def pick_device(text: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:1" means.

    Raises:
        UsageError: there is no such device here.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{text}" if text.isdigit() else text)
    except RuntimeError as error:
        raise UsageError(f"device {text!r} unknown", "choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UsageError("no CUDA device found here", "give --device cpu")
        if device.index is not None and device.index >= count:
            raise UsageError(f"device {text!r}: there are {count} CUDA devices, 0 to {count - 1}")
    elif device.type != "cpu":
        raise UsageError(f"device {text!r} is not supported", "choose auto, cpu, cuda or cuda:N")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The format of convolutions in training: "auto" is bfloat16 where the hardware has it."""
    if precision == "float32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp16":
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _cpu_has_bf16() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to 16 bits, or nothing at all for float32 (entering a disabled one costs time)."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def move(targets: Any, device: torch.device) -> Any:
    """Targets on a device: a tensor, or a list with a dict of tensors for each image."""
    if isinstance(targets, torch.Tensor):
        return targets.to(device, non_blocking=True)
    return [
        {name: tensor.to(device, non_blocking=True) for name, tensor in target.items()}
        for target in targets
    ]


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
