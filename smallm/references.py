"""Reference models beside the neural ones: what any score has to be compared with."""

from __future__ import annotations

import math

import numpy as np

from smallm.ngrams import KNESER_NEY, UNIFORM, UNIGRAM, KneserNey
from smallm.scoring import Scores, predicted_positions, summed
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.tokens import END_ID


def reference_scores(tokens: TokenTape, training: Slice, part: Slice) -> dict[str, Scores]:
    """Uniform bytes, unigram and interpolated Kneser-Ney 5-gram, on the same tokens as a model."""
    stream = tokens.tokens[: tokens.span(training)[1]]
    first, last = tokens.span(part)
    heldout = tokens.tokens[first:last]
    predicted = predicted_positions(tokens, part) - first
    scores = {UNIFORM: _uniform(tokens, part)}
    for name, order in ((UNIGRAM, 1), (KNESER_NEY, 5)):
        model = KneserNey.fit(stream, vocabulary=tokens.vocabulary, boundary=END_ID, order=order)
        scores[name] = summed(tokens, part, -model.log_probabilities(heldout)[predicted])
    return scores


def _uniform(tokens: TokenTape, part: Slice) -> Scores:
    rows = slice(part.first, part.last)
    sizes = tokens.bytes[rows]
    return Scores(
        nll=np.asarray(sizes * math.log(256), dtype=np.float64),
        bytes=sizes,
        words=tokens.words[rows],
        tokens=np.diff(tokens.ends[part.first : part.last + 1]) - 1,
    )
