"""The spelling model inside a saved SmaLLM: bytes of unknown words after the predicted ids.

The n-gram's arrays lie in two integer buffers, so that loading a model in half precision leaves
them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smallm.ngrams import KneserNey
from smallm.tokens import FINAL, SPELLING_BOUNDARY, UNKNOWN_ID

SYMBOLS = 512


def sizes_of(model: KneserNey) -> list[tuple[str, int]]:
    """Name and length of each array: what the configuration must know to make room for them."""
    return [(name, len(array)) for name, array in model.arrays().items()]


class Spelling(nn.Module):
    """Turns log-probabilities of the predicted ids into those of all ids."""

    def __init__(self, sizes: Sequence[tuple[str, int]], vocabulary: int) -> None:
        super().__init__()
        self.integers: Tensor
        self.float_bits: Tensor
        self.sizes = {name: size for name, size in sizes}
        self.vocabulary = vocabulary
        whole = sum(size for name, size in self.sizes.items() if _is_integer(name))
        self.register_buffer("integers", torch.zeros(whole, dtype=torch.int64))
        real = sum(self.sizes.values()) - whole
        self.register_buffer("float_bits", torch.zeros(real, dtype=torch.int32))
        self._model: KneserNey | None = None

    def fill(self, model: KneserNey) -> None:
        """Puts the n-gram into the buffers."""
        arrays = model.arrays()
        whole = [arrays[name].astype(np.int64) for name in self.sizes if _is_integer(name)]
        real = [arrays[name].view(np.int32) for name in self.sizes if not _is_integer(name)]
        self.integers.copy_(torch.from_numpy(np.concatenate(whole)))
        self.float_bits.copy_(torch.from_numpy(np.concatenate(real)))
        self._model = None

    @property
    def model(self) -> KneserNey:
        """The n-gram in the buffers."""
        if self._model is None:
            arrays, place = {}, {True: 0, False: 0}
            for name, size in self.sizes.items():
                integer = _is_integer(name)
                buffer = self.integers if integer else self.float_bits
                part = buffer[place[integer] : place[integer] + size].cpu().numpy()
                arrays[name] = part if integer else part.view(np.float32)
                place[integer] += size
            self._model = KneserNey.from_arrays(arrays)
        return self._model

    def extend(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities (batch, kept, all ids) of the next lossless id.

        `logits` (batch, kept, predicted ids) belong to the last `kept` positions of the ids
        (batch, length); they count where no unknown word is open.
        """
        predicted = logits.float().log_softmax(-1)
        impossible = torch.finfo(predicted.dtype).min
        bytes_ = predicted[..., UNKNOWN_ID, None] + self._next_byte([])[None, None].to(ids.device)
        predicted[..., UNKNOWN_ID] = impossible
        whole = torch.cat([predicted, bytes_], -1)
        first = ids.shape[1] - logits.shape[1]
        inside = self.inside(ids)
        for row, column in inside[:, first:].nonzero().tolist():
            end = column + first + 1
            start = end
            while start and inside[row, start - 1]:
                start -= 1
            spelled = (ids[row, start:end] - self.vocabulary).tolist()
            whole[row, column, : self.vocabulary] = impossible
            whole[row, column, self.vocabulary :] = self._next_byte(spelled).to(ids.device)
        return whole

    def collapse(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids as the model sees them, and for each position the place of its last whole word.

        Rows are shortened to words and filled up at the end; place -1 is before the first word.
        """
        keep = ~self.inside(ids)
        seen = self.words(ids)
        places = keep.long().cumsum(1) - 1
        words = torch.zeros_like(ids)
        row, column = keep.nonzero(as_tuple=True)
        words[row, places[row, column]] = seen[row, column]
        return words, places

    def is_inside(self, number: int) -> bool:
        """Whether an id is a byte of an unknown word, but not its last."""
        return self.vocabulary <= number < self.vocabulary + FINAL

    def words(self, ids: Tensor) -> Tensor:
        """Ids as the model sees them, where no unknown word is open."""
        return torch.where(ids >= self.vocabulary, UNKNOWN_ID, ids)

    def inside(self, ids: Tensor) -> Tensor:
        """Which ids are bytes of an unknown word, but not its last."""
        return (ids >= self.vocabulary) & (ids < self.vocabulary + FINAL)

    def _next_byte(self, spelled: list[int]) -> Tensor:
        probability = self.model.distribution([SPELLING_BOUNDARY, *spelled])[:SYMBOLS]
        return torch.from_numpy(np.log(probability)).float()


def _is_integer(name: str) -> bool:
    return name == "shape" or name.startswith("keys")
