"""Training batches: permuted positions or sequences of a tape's prefix, without any state.

The batch of a step follows from seed and step alone, so an interrupted run resumes exactly, and
every position is seen once before any is seen again; of sequences, all but a rest shorter than one.
Examples are numbered in the order of a seed; a curriculum takes the same ones in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.settings import SEQUENCE_WINDOWS, Settings
from smallm.token_tape import TokenTape
from smallm.tokens import END_ID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
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

    @property
    def examples_per_step(self) -> int:
        """Each predicts one token."""
        return self.batch_size

    def steps(self, seed: int, first: int, last: int) -> tuple[Ints, Ints]:
        """Windows (steps, batch, window) and targets (steps, batch) of steps first..last-1."""
        return self.examples(seed, steps_of(self.batch_size, first, last))

    def examples(self, seed: int, numbers: Ints) -> tuple[Ints, Ints]:
        """Windows (*, window) and targets (*) of examples by number (*)."""
        positions = self.positions(seed, numbers.ravel())
        windows, targets = windows_before(self.tokens, positions, self.window)
        return windows.reshape(*numbers.shape, self.window), targets.reshape(numbers.shape)

    def positions(self, seed: int, numbers: Ints) -> Ints:
        """Where the targets of examples stand, (examples,)."""
        count = self.end - 1  # the opening id at 0 is never a target
        positions = np.empty_like(numbers)
        for epoch in np.unique(numbers // count).tolist():
            here = numbers // count == epoch
            positions[here] = 1 + permuted(numbers[here] % count, count, key=(seed, epoch))
        return positions

    def difficulties(self, seed: int, numbers: Ints, hard: Floats) -> Floats:
        """Of examples, from those of the targets at all positions."""
        return hard[self.positions(seed, numbers)]


@dataclass(frozen=True)
class Sequences:
    """Sequences of inputs and targets, one token further, from the tokens below `end`.

    The targets, 1 to end - 1, form a ring that each epoch cuts at another place. Where it is
    closed, the first document follows the last one as any other does.
    """

    tokens: TokenTape
    end: int
    length: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.end - 1 < self.length:
            raise SmallmError(
                f"the training text is too short for a transformer's sequences of "
                f"{SEQUENCE_WINDOWS} * window = {self.length} tokens: it has {self.end}"
            )

    @property
    def examples_per_step(self) -> int:
        """Each is a sequence."""
        return self.batch_size // self.length

    def steps(self, seed: int, first: int, last: int) -> tuple[Ints, Ints]:
        """Inputs and targets (steps, sequences, length) of steps first..last-1."""
        return self.examples(seed, steps_of(self.examples_per_step, first, last))

    def examples(self, seed: int, numbers: Ints) -> tuple[Ints, Ints]:
        """Inputs and targets (*, length) of examples by number (*)."""
        starts = self.starts(seed, numbers.ravel())
        inputs = (starts[:, None] + np.arange(self.length)) % (self.end - 1)
        shape = (*numbers.shape, self.length)
        ids = self.tokens.tokens
        return (
            ids[inputs].astype(np.int64).reshape(shape),
            ids[inputs + 1].astype(np.int64).reshape(shape),
        )

    def starts(self, seed: int, numbers: Ints) -> Ints:
        """Where the inputs of examples start, (examples,); beyond the end, the ring goes on."""
        targets = self.end - 1
        count = targets // self.length
        starts = np.empty_like(numbers)
        for epoch in np.unique(numbers // count).tolist():
            here = numbers // count == epoch
            cut = int(permuted(np.array([0]), targets, key=(seed, epoch))[0])
            order = permuted(numbers[here] % count, count, key=(seed, epoch))
            starts[here] = cut + order * self.length
        return starts

    def difficulties(self, seed: int, numbers: Ints, hard: Floats) -> Floats:
        """Of examples, the mean of those of the targets at all positions."""
        sums = np.concatenate([[0.0], np.cumsum(np.concatenate([hard[1:], hard[1 : self.length]]))])
        starts = self.starts(seed, numbers) % (self.end - 1)
        means: Floats = (sums[starts + self.length] - sums[starts]) / self.length
        return means


def steps_of(examples_per_step: int, first: int, last: int) -> Ints:
    """Numbers of the examples of steps first..last-1: (steps, examples of a step)."""
    numbers = np.arange(first * examples_per_step, last * examples_per_step)
    return numbers.reshape(-1, examples_per_step)


def training_batches(settings: Settings, tokens: TokenTape, end: int) -> Batches | Sequences:
    """What the architecture of the settings trains on, from the tokens below `end`."""
    window, size = settings.model.window, settings.training.batch_size
    if architecture(settings.model.architecture).reads_sequences:  # type: ignore[attr-defined]
        return Sequences(tokens, end, SEQUENCE_WINDOWS * window, size)
    return Batches(tokens, end, window, size)


def sequences_before(tokens: TokenTape, starts: Ints, size: int, reach: int) -> Ints:
    """Inputs (starts, reach - 1 + size): `reach` ids before the first of `size` targets, and on.

    Beyond either end of the tape stands the id that opens a document.
    """
    wanted = starts[:, None] + np.arange(-reach, size - 1)
    inside = (wanted >= 0) & (wanted < len(tokens.tokens))
    ids = tokens.tokens[np.where(inside, wanted, 0)].astype(np.int64)
    return np.where(inside, ids, END_ID)


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
