"""The registry of activations: one line each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
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
