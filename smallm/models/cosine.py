"""Logits that are cosines times one learned scale: a temperature that training finds."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

SMALLEST_NORM = 1e-6  # bounds the gradient of a hidden state that is nearly zero


def first_log_scale(width: int) -> float:
    """Where the scale, exp(log_scale), starts: at the root of the width.

    Cosines of random directions have a variance of 1 / width, so the first logits have one of 1,
    half a nat over uniform. The scale learns slowly: smaller ones cost more than that in the end.
    """
    return math.log(width) / 2


def scaled_cosines(x: Tensor, rows: Tensor, log_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (..., ids) of hidden states (..., width) and a row for each id, (ids, width)."""
    x = log_scale.exp() * F.normalize(x, dim=-1, eps=SMALLEST_NORM)
    return F.linear(x, F.normalize(rows, eps=SMALLEST_NORM), bias)
