"""Training batches: windows at permuted positions of a tape's prefix, without any state.

The batch of a step follows from seed and step alone, so an interrupted run resumes exactly, and
every position is seen once before any is seen again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallm.token_tape import TokenTape

Ints = NDArray[np.int64]
ROUNDS = 4  # of the Feistel network: enough for an even-looking order


@dataclass(frozen=True)
class Batches:
    """Windows and targets from the tokens below `end`."""

    tokens: TokenTape
    end: int
    window: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.end < 2:
            raise ValueError(f"no token to predict below position {self.end}")

    def steps(self, seed: int, first: int, last: int) -> tuple[Ints, Ints]:
        """Windows (steps, batch, window) and targets (steps, batch) of steps first..last-1."""
        count = self.end - 1  # the opening id at 0 is never a target
        number = np.arange(first * self.batch_size, last * self.batch_size)
        positions = np.empty_like(number)
        for epoch in range(number[0] // count, number[-1] // count + 1):
            here = number // count == epoch
            positions[here] = 1 + permuted(number[here] % count, count, key=(seed, epoch))
        windows, targets = windows_before(self.tokens, positions, self.window)
        shape = (last - first, self.batch_size)
        return windows.reshape(*shape, self.window), targets.reshape(shape)


def windows_before(tokens: TokenTape, positions: Ints, window: int) -> tuple[Ints, Ints]:
    """The `window` ids before each position, and the id there.

    A window does not reach back over the id that opens its document (see `models.windows`).
    """
    document = np.searchsorted(tokens.ends, positions, side="left") - 1
    opening = tokens.ends[document]
    wanted = np.maximum(positions[:, None] - np.arange(window, 0, -1), opening[:, None])
    return tokens.tokens[wanted].astype(np.int64), tokens.tokens[positions].astype(np.int64)


def permuted(indices: Ints, size: int, *, key: tuple[int, int]) -> Ints:
    """Where a keyed permutation of 0..size-1 puts the indices, in constant memory.

    A Feistel network permutes the next power of four; what falls outside walks on until inside.
    """
    half = max((int(size - 1).bit_length() + 1) // 2, 1)
    mask = np.uint64((1 << half) - 1)
    constants = np.random.Generator(np.random.Philox(key=list(key))).integers(
        1, 2**63, size=ROUNDS, dtype=np.uint64
    )
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for constant in constants:
            left, right = right, left ^ (_mixed(right + constant) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= size
    return result.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
