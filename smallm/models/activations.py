"""The registry of activations: one line each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),  # squared ReLU, arXiv 2109.08668
}

# Gated forms (Shazeer 2020, arXiv 2002.05202): this activation of one layer times another layer.
GATED: dict[str, str] = {"swiglu": "silu", "geglu": "gelu"}


class Activation(nn.Module):
    """An activation by name, of a gated form the one inside.

    It is a module, so that others can watch what goes through it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = GATED.get(name, name)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, each number by itself."""
        return ACTIVATIONS[self.name](x)
