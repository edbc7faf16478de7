"""How a hidden state becomes logits: plainly, or by cosines times one scale, learned or fixed."""

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
    cosines: bool,
    width: int,
    generator: Generator | None,
) -> None:
    """Fills the last matrix before the logits, and the scale of cosines if it is learned.

    The matrix starts at zero, so that training starts from the uniform distribution. Cosines
    cannot, as zero has no direction. Those of random directions have a variance of 1 / width: the
    first scale, exp(log_scale), is the root of the width, and gives logits of variance 1, half a
    nat over uniform. The scale learns slowly: smaller ones cost more than that in the end.
    """
    for matrix in matrices:
        if matrix is None:
            continue
        if cosines:
            matrix.weight.normal_(std=matrix.in_features**-0.5, generator=generator)
        else:
            matrix.weight.zero_()
    if log_scale is not None:
        log_scale.fill_(_first_log_scale(width))


def scaled_cosines(
    x: Tensor, rows: Tensor, log_scale: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Logits (..., ids) of hidden states (..., width) and a row for each id, (ids, width).

    Without a learned scale, cosines keep the first one.
    """
    scale = math.exp(_first_log_scale(rows.shape[1])) if log_scale is None else log_scale.exp()
    x = scale * F.normalize(x, dim=-1, eps=SMALLEST_NORM)
    return F.linear(x, F.normalize(rows, eps=SMALLEST_NORM), bias)


def _first_log_scale(width: int) -> float:
    return math.log(width) / 2
