"""What the machine can do: one probe for training, scoring and serving."""

from __future__ import annotations

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 run in hardware; emulated they are 20 times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bf16_instructions()


def _has_bf16_instructions() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
