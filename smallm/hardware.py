"""What the machine can do: one probe for training, scoring and serving."""

from __future__ import annotations

import gc
import re

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NO_MEMORY = re.compile(  # as errors without a type of their own say it
    "CUDA error: out of memory|STATUS_ALLOC_FAILED|Storage size calculation overflowed"
)
TENSOR_CORES = (7, 0)  # the compute capability from which fp16 is faster on a GPU


def half_dtype(device: torch.device) -> torch.dtype:
    """The half precision that makes matrix products faster here; fp32 where there is none."""
    if has_bf16(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return torch.float16
    return torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products are computed in a type; in fp32 it changes nothing."""
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half)


def precision_of(dtype: torch.dtype) -> str:
    """The name of a type of matrix products."""
    return next(name for name, each in PRECISIONS.items() if each == dtype)


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 run in hardware; emulated they are 20 times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bf16_instructions()


def _has_bf16_instructions() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def release_memory(device: str) -> None:
    """Gives back what models that are gone have left reserved, to others that share the device."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def out_of_memory(error: Exception) -> str | None:
    """Why an error is one of missing memory; None when it is another."""
    words = str(error)
    asked = re.search(r"you tried to allocate (\d+) bytes", words)  # the CPU's; it has no type
    if asked:
        return f"out of memory: it needs {int(asked[1]) / 1e6:,.0f} MB more"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(words):
        return f"out of memory: {words.splitlines()[0] if words else 'no more is left'}"
    return None
