"""Reference models beside the neural ones: what any score has to be compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from smallm.ngrams import KNESER_NEY, UNIFORM, UNIGRAM, KneserNey
from smallm.scoring import Scores, summed
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.tokens import END_ID

COUNTED_TOKENS = 2**23  # at 140 to 210 bytes of memory each: more is left out
SCORED_AT_ONCE = 2**20  # tokens


def reference_scores(
    tokens: TokenTape, training: Slice, part: Slice, *, most_tokens: int = COUNTED_TOKENS
) -> dict[str, Scores]:
    """Uniform bytes, unigram and interpolated Kneser-Ney 5-gram, on the same tokens as a model.

    Of a longer training slice they count the beginning, see `counted_note`.
    """
    first, last = tokens.span(counted(tokens, training, most_tokens))
    stream = tokens.tokens[first:last]
    scores = {UNIFORM: _uniform(tokens, part)}
    for name, order in ((UNIGRAM, 1), (KNESER_NEY, 5)):
        model = KneserNey.fit(stream, vocabulary=tokens.vocabulary, boundary=END_ID, order=order)
        nll = [-model.log_probabilities(run)[run != END_ID] for run in _runs(tokens, part)]
        scores[name] = summed(tokens, part, np.concatenate(nll))
    return scores


def counted(tokens: TokenTape, training: Slice, most_tokens: int = COUNTED_TOKENS) -> Slice:
    """The first documents of a training slice, with at most so many tokens; at least one."""
    wanted = tokens.ends[training.first] + most_tokens
    last = int(np.searchsorted(tokens.ends, wanted, side="right")) - 1
    return Slice(training.name, training.first, min(max(last, training.first + 1), training.last))


def counted_note(tokens: TokenTape, training: Slice, most_tokens: int = COUNTED_TOKENS) -> str:
    """How much of a training slice the reference models have read; empty where it is all."""
    read = counted(tokens, training, most_tokens)
    if read == training:
        return ""
    first, whole = (tokens.tape.bytes(each) / 1e6 for each in (read, training))
    return f"counted on the first {first:,.1f} of {whole:,.1f} MB of the training slice"


def _runs(tokens: TokenTape, part: Slice) -> Iterator[NDArray[np.uint16]]:
    """The tokens of whole documents, some at a time: no context reaches into another document."""
    first = part.first
    while first < part.last:
        some = counted(tokens, Slice(part.name, first, part.last), SCORED_AT_ONCE)
        start, end = tokens.span(some)
        yield tokens.tokens[start:end]
        first = some.last


def _uniform(tokens: TokenTape, part: Slice) -> Scores:
    rows = slice(part.first, part.last)
    sizes = tokens.bytes[rows]
    return Scores(
        nll=np.asarray(sizes * math.log(256), dtype=np.float64),
        bytes=sizes,
        words=tokens.words[rows],
        tokens=np.diff(tokens.ends[part.first : part.last + 1]) - 1,
    )
