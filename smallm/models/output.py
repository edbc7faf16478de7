"""How a hidden state becomes logits: plainly, or by cosines times one learned scale."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Generator, Tensor, nn
from torch.nn import functional as F

SMALLEST_NORM = 1e-6  # bounds the gradient of a hidden state that is nearly zero


def initialize_output(
    matrices: Iterable[nn.Linear | None],
    log_scale: Tensor | None,
    *,
    width: int,
    generator: Generator | None,
) -> None:
    """Fills the last matrix before the logits, and the scale of cosines if there is one.

    The matrix starts at zero, so that training starts from the uniform distribution. Cosines
    cannot, as zero has no direction. Those of random directions have a variance of 1 / width: the
    first scale, exp(log_scale), is the root of the width, and gives logits of variance 1, half a
    nat over uniform. The scale learns slowly: smaller ones cost more than that in the end.
    """
    for matrix in matrices:
        if matrix is None:
            continue
        if log_scale is None:
            matrix.weight.zero_()
        else:
            matrix.weight.normal_(std=matrix.in_features**-0.5, generator=generator)
    if log_scale is not None:
        log_scale.fill_(math.log(width) / 2)


def scaled_cosines(x: Tensor, rows: Tensor, log_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (..., ids) of hidden states (..., width) and a row for each id, (ids, width)."""
    x = log_scale.exp() * F.normalize(x, dim=-1, eps=SMALLEST_NORM)
    return F.linear(x, F.normalize(rows, eps=SMALLEST_NORM), bias)
