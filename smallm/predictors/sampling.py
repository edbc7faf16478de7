"""How the next id is chosen from logits: greedy, temperature, the k best, the nucleus."""

from __future__ import annotations

import torch
from torch import Tensor

from smallm.errors import NO_PROBABILITIES, DamagedModelError
from smallm.predictors import Decoding


def kept_logits(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits (ids,) at the temperature, minus infinity for ids that may not be chosen."""
    scaled = logits.double() / decoding.temperature
    if decoding.top_k is not None and decoding.top_k < len(scaled):
        smallest = scaled.topk(decoding.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    if decoding.top_p < 1:
        ordered, places = scaled.sort(descending=True, stable=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        outside = before >= decoding.top_p
        outside[0] = False
        scaled = scaled.masked_fill(
            torch.zeros_like(outside).scatter(0, places, outside), -torch.inf
        )
    return scaled


def choose(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    """The next id; the generator alone decides where chance does."""
    if decoding.temperature == 0:
        best = int(logits.argmax())
        if not torch.isfinite(logits[best]):
            raise DamagedModelError(NO_PROBABILITIES)
        return best
    below = kept_logits(logits.cpu(), decoding).softmax(0).cumsum(0)
    if not below[-1] > 0:  # not a number
        raise DamagedModelError(NO_PROBABILITIES)
    # The inverse of the distribution: torch.multinomial takes ten times as long for one id.
    place = below[-1] * torch.rand((), dtype=below.dtype, generator=generator)
    last = torch.searchsorted(below, below[-1])  # with a probability, should `place` round up to 1
    return int(torch.minimum(torch.searchsorted(below, place, right=True), last))
