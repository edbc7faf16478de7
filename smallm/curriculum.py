"""Curricula: the examples of a run in stages of rising difficulty, or in an order that controls it.

A run with a curriculum sees exactly the examples that it would see without, each as often; only
their order differs, so that two runs compare at equal tokens. They are sorted by the difficulty of
their documents and cut into STAGES of equal size; inside a stage they stay in the seed's random
order. As control the stages come reversed, or in an order drawn from the seed: that one tells the
order of the stages from the mere grouping of alike documents (Platanios et al. 2019, arXiv
1903.09848, give length and rarity; Bengio et al. 2009 the idea).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from smallm.batches import Batches, Floats, Ints, Sequences, steps_of
from smallm.token_tape import TokenTape
from smallm.tokens import END_ID

STAGES = 10


class Staged:
    """The examples of some batches in the stages of a curriculum."""

    def __init__(
        self, batches: Batches | Sequences, *, measure: str, order: str, steps: int
    ) -> None:
        self.batches = batches
        self.batch_size = batches.batch_size
        self.order = order
        self.count = steps * batches.examples_per_step
        self.hard = difficulties(batches.tokens, batches.end, measure)
        self._numbers = lru_cache(maxsize=None)(self._ordered)

    def steps(self, seed: int, first: int, last: int) -> tuple[Ints, Ints]:
        """Inputs and targets of steps first..last-1, of the shapes that the batches give."""
        places = steps_of(self.batches.examples_per_step, first, last)
        return self.batches.examples(seed, self.numbers(seed)[places])

    def numbers(self, seed: int) -> Ints:
        """The numbers of all examples of a run, in the order in which they are seen."""
        return self._numbers(seed)

    def _ordered(self, seed: int) -> Ints:
        numbers = np.arange(self.count)
        by_difficulty = np.argsort(
            self.batches.difficulties(seed, numbers, self.hard), kind="stable"
        )
        stages = [np.sort(stage) for stage in np.array_split(by_difficulty, STAGES)]
        if self.order == "hard_first":
            stages.reverse()
        elif self.order == "random":
            drawn = np.random.default_rng([seed, STAGES]).permutation(len(stages))
            stages = [stages[place] for place in drawn]
        return np.concatenate(stages)


def difficulties(tokens: TokenTape, end: int, measure: str) -> Floats:
    """At each position below `end`, the difficulty of the document to which its target belongs.

    The unigram model is that of the text below `end`; its loss is in nats.
    """
    ids = np.asarray(tokens.tokens[:end])
    document = np.searchsorted(tokens.ends, np.arange(end), side="left") - 1
    document[0] = 0  # the opening id, which is never a target
    sizes = np.bincount(document).astype(np.float64)
    if measure == "length":
        return sizes[document]
    counts = np.bincount(ids).astype(np.float64)
    counts[END_ID] = 0
    with np.errstate(divide="ignore"):
        nats = np.where(counts > 0, np.log(counts.sum()) - np.log(counts), 0.0)
    losses = np.bincount(document, weights=nats[ids])
    found = losses if measure == "rarity" else losses / sizes
    return np.asarray(found[document], dtype=np.float64)
