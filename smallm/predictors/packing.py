"""Weights laid out once as the processor multiplies them, rather than anew at each product.

Where a model continues a few texts, most of the time goes into reading weights: in the layout of
oneDNN a product of 8 rows takes 0.55 to 0.75 of the time. The operators are those that
torch.compile puts in when it freezes weights; they have no public name.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ROWS = 8  # that the layout is made for; it serves any number
PACKED = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """x @ weight.T + bias, for inference only: its weight is no parameter."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return product


def pack(model: nn.Module) -> None:
    """Packs the linear layers of a model on a processor that has such a layout, in place.

    The model must use these layers only by calling them.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear | Conv1D) and _packable(layer.weight):
                by_row = isinstance(layer, nn.Linear)
                weight = layer.weight if by_row else layer.weight.t().contiguous()
                setattr(parent, name, PackedLinear(weight, layer.bias))


def _packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in PACKED
