"""Interpolated modified Kneser-Ney n-grams, as sorted arrays.

One class serves twice: as the reference model beside the neural ones, and as the spelling model
behind the unknown word. Formulas: Chen and Goodman 1998, "An empirical study of smoothing
techniques for language modeling". The n-grams of order k are numbered by their place in a sorted
array of keys, key = number of the first k-1 tokens * vocabulary + last token, so that the
continuations of one context lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
UNSEEN = -1
UNIFORM, UNIGRAM, KNESER_NEY = "uniform over bytes", "unigram", "Kneser-Ney 5-gram"
"""Names of the reference models."""


@dataclass(frozen=True)
class KneserNey:
    """Next-token probabilities given up to `order - 1` tokens since the last boundary token.

    The boundary token opens a sequence: it is context, never predicted by counts, and no context
    reaches back over it.
    """

    vocabulary: int
    boundary: int
    unigram: Floats  # (vocabulary,)
    keys: tuple[Ints, ...]  # of order 2, 3, ...: sorted
    shares: tuple[Floats, ...]  # discounted relative frequency, beside the keys
    backoffs: tuple[Floats, ...]  # weight of the lower order, by number of the context

    @property
    def order(self) -> int:
        """Length of the longest n-gram."""
        return len(self.keys) + 1

    @classmethod
    def fit(
        cls, tokens: NDArray[np.integer], *, vocabulary: int, boundary: int, order: int = 5
    ) -> KneserNey:
        """Counts a stream of sequences, each opened by the boundary token."""
        if order < 1 or len(tokens) == 0 or tokens[0] != boundary:
            raise ValueError("needs order >= 1 and a stream that opens with the boundary token")
        stream = tokens.astype(np.int64)
        predicted = stream != boundary
        numbers, keys, contexts = _number_ngrams(stream, predicted, vocabulary, order)
        sizes = [vocabulary, *(len(each) for each in keys)]
        counts = [
            _adjusted_counts(numbers, predicted, level, size) for level, size in enumerate(sizes)
        ]

        (unigram, left), *longer = [
            _discounted(count, context, size)
            for count, context, size in zip(counts, contexts, [1, *sizes], strict=False)
        ]
        shares, backoffs = zip(*longer, strict=True) if longer else ((), ())
        unigram += left.astype(np.float32) / np.float32(max(vocabulary - 1, 1))
        unigram[boundary] = 0
        return cls(vocabulary, boundary, unigram, keys, shares, backoffs)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The model as named arrays; `from_arrays` reads them."""
        named: dict[str, NDArray[Any]] = {
            "shape": np.array([self.vocabulary, self.boundary, self.order]),
            "unigram": self.unigram,
        }
        for level in range(self.order - 1):
            named[f"keys.{level}"] = self.keys[level]
            named[f"shares.{level}"] = self.shares[level]
            named[f"backoffs.{level}"] = self.backoffs[level]
        return named

    @classmethod
    def from_arrays(cls, named: Mapping[str, NDArray[Any]]) -> KneserNey:
        """The model that `arrays` gave."""
        vocabulary, boundary, order = (int(each) for each in named["shape"])
        keys, shares, backoffs = (
            tuple(named[f"{part}.{level}"] for level in range(order - 1))
            for part in ("keys", "shares", "backoffs")
        )
        return cls(vocabulary, boundary, named["unigram"], keys, shares, backoffs)

    def log_probabilities(self, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
        """Natural log probability of each token given those before it; 0 at boundary tokens."""
        stream = tokens.astype(np.int64)
        probability = self.unigram[stream].astype(np.float64)
        context = stream.copy()  # number of the n-gram that ends here, one order below
        for keys, shares, backoffs in zip(self.keys, self.shares, self.backoffs, strict=True):
            before = _shifted(context, stream, self.boundary)
            number = _find(keys, before * self.vocabulary + stream, before != UNSEEN)
            probability = _take(backoffs, before, 1.0) * probability + _take(shares, number, 0.0)
            context = np.where(stream == self.boundary, UNSEEN, number)
        probability[stream == self.boundary] = 1
        return np.log(probability)

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Probabilities of all tokens after a context that opens with the boundary token."""
        probability = self.unigram.astype(np.float64)
        recent = list(context)[-(self.order - 1) :] if self.order > 1 else []
        for length in range(1, len(recent) + 1):
            number = self._number(recent[-length:])
            if number == UNSEEN:
                break
            keys, first = self.keys[length - 1], number * self.vocabulary
            low, high = np.searchsorted(keys, [first, first + self.vocabulary])
            probability *= self.backoffs[length - 1][number]
            probability[keys[low:high] - first] += self.shares[length - 1][low:high]
        return probability

    def _number(self, ngram: Sequence[int]) -> int:
        number = int(ngram[0])
        for keys, token in zip(self.keys, ngram[1:], strict=False):
            key = number * self.vocabulary + int(token)
            place = int(np.searchsorted(keys, key))
            if place == len(keys) or keys[place] != key:
                return UNSEEN
            number = place
        return number


def _shifted(context: Ints, stream: Ints, boundary: int) -> Ints:
    """The context number one position earlier; none before a boundary token."""
    before = np.concatenate([[UNSEEN], context[:-1]])
    return np.where(stream == boundary, UNSEEN, before)


def _take(values: Floats, number: Ints, unseen: float) -> NDArray[np.float64]:
    taken = np.full(len(number), unseen)
    seen = number != UNSEEN
    taken[seen] = values[number[seen]]
    return taken


def _find(keys: Ints, wanted: Ints, valid: NDArray[np.bool_]) -> Ints:
    if not len(keys):
        return np.full(len(wanted), UNSEEN, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(valid & (keys[place] == wanted), place, UNSEEN)


def _number_ngrams(
    stream: Ints, predicted: NDArray[np.bool_], vocabulary: int, order: int
) -> tuple[list[Ints], tuple[Ints, ...], list[Ints]]:
    """Numbers the n-gram of each order that ends at each position; UNSEEN where it would cross.

    A boundary token is an n-gram of order 1, as context, and ends no longer one.
    """
    numbers, all_keys, contexts = [stream], [], [np.zeros(vocabulary, dtype=np.int64)]
    for _ in range(1, order):
        before = np.concatenate([[UNSEEN], numbers[-1][:-1]])
        valid = predicted & (before != UNSEEN)
        keys, inverse = np.unique(before[valid] * vocabulary + stream[valid], return_inverse=True)
        number = np.full(len(stream), UNSEEN, dtype=np.int64)
        number[valid] = inverse
        numbers.append(number)
        all_keys.append(keys)
        contexts.append(keys // vocabulary)
    return numbers, tuple(all_keys), contexts


def _adjusted_counts(
    numbers: list[Ints], predicted: NDArray[np.bool_], level: int, size: int
) -> Ints:
    """Occurrences at the highest order and after a boundary; elsewhere distinct left neighbours."""
    number = numbers[level]
    here = predicted & (number != UNSEEN)
    if level == len(numbers) - 1:
        return np.bincount(number[here], minlength=size)
    longer = numbers[level + 1]
    extended = here & (longer != UNSEEN)
    _, first = np.unique(longer[extended], return_index=True)
    distinct = np.bincount(number[extended][first], minlength=size)
    opening = np.bincount(number[here & (longer == UNSEEN)], minlength=size)
    return distinct + opening


def _discounts(counts: Ints) -> NDArray[np.float64]:
    """Discounts for counts 0, 1, 2 and 3 or more, from the counts of counts."""
    of = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if not of[1:5].all():  # too little text for the estimate: absolute discounting
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = of[1] / (of[1] + 2 * of[2])
    estimate = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
    return np.array([0.0, *np.clip(estimate, 0.05, [0.95, 1.95, 2.95])])


def _discounted(counts: Ints, contexts: Ints, size: int) -> tuple[Floats, Floats]:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(contexts, weights=counts, minlength=size)
    freed = np.bincount(contexts, weights=discount, minlength=size)
    used = totals > 0
    backoff = np.where(used, freed / np.where(used, totals, 1), 1.0)
    share = (counts - discount) / np.where(used, totals, 1)[contexts]
    return share.astype(np.float32), backoff.astype(np.float32)
