"""Scores of a model on a slice: one row a document, from which every figure is computed.

Every byte of every document is predicted exactly once, documents apart. Sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from smallm.batches import sequences_before, windows_before
from smallm.hardware import autocast
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.tokens import END_ID, UNKNOWN_ID, WordTokenizer

LogitsAfter = Callable[..., torch.Tensor]
TOP = (1, 3, 10)
BATCH = 512  # positions scored at once: their logits stay in the cache
ROW_TOKENS = 4096  # inputs of the sequences that are read at once


@dataclass(frozen=True)
class Scores:
    """Per document: negative log-likelihood (nats), sizes, and how often the gold token was near.

    `hits[:, i]` counts the tokens among the TOP[i] most probable. `confidence` and `correct` have a
    row for each token, document after document: the probability of the most probable token, and
    whether that is the gold one. None when not asked for.
    """

    nll: NDArray[np.float64]
    bytes: NDArray[np.int64]
    words: NDArray[np.int64]
    tokens: NDArray[np.int64]
    hits: NDArray[np.int64] | None = None
    confidence: NDArray[np.float32] | None = None
    correct: NDArray[np.bool_] | None = None

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the original UTF-8 text."""
        return float(self.nll.sum() / (math.log(2) * self.bytes.sum()))

    def metrics(self) -> dict[str, float]:
        """All figures of EVALUATION: entropies in nats, perplexities, accuracies in [0, 1]."""
        total, tokens = self.nll.sum(), self.tokens.sum()
        figures = {
            "bits_per_byte": self.bits_per_byte,
            "nll": float(total),
            "cross_entropy": float(total / tokens),
            "token_perplexity": _exp(total / tokens),
            "word_perplexity": _exp(total / self.words.sum()),
            "byte_perplexity": _exp(total / self.bytes.sum()),
        }
        if self.hits is not None:
            shares = self.hits.sum(axis=0) / tokens
            figures |= {f"top_{k}": float(share) for k, share in zip(TOP, shares, strict=True)}
        return figures


def _exp(nats: float) -> float:
    return math.exp(min(float(nats), 700.0))  # float64 ends near 709


@torch.no_grad()
def score(
    core: nn.Module,
    tokens: TokenTape,
    part: Slice,
    *,
    window: int,
    top: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Scores:
    """Scores of a model's logits on the documents of a slice; `top` adds the hits."""
    nll, hits = [], []
    positions = predicted_positions(tokens, part)
    for logits, gold in predictions(core, tokens, positions, window=window, dtype=dtype):
        at_gold = logits.gather(1, gold[:, None])
        nll.append((logits.logsumexp(1) - at_gold[:, 0]).double().cpu().numpy())
        if top:
            hits.append(rank(logits, gold)[:, None] < np.array(TOP))
    return summed(tokens, part, np.concatenate(nll), np.concatenate(hits) if top else None)


def summed(
    tokens: TokenTape,
    part: Slice,
    token_nll: NDArray[np.float64],
    token_hits: NDArray[np.bool_] | None = None,
) -> Scores:
    """Rows per document from figures of the slice's predicted tokens, spelling added."""
    sizes = np.diff(tokens.ends[part.first : part.last + 1]) - 1  # without the opening id
    document = np.repeat(np.arange(len(part)), sizes)
    rows = slice(part.first, part.last)
    nll = np.bincount(document, weights=token_nll, minlength=len(part))
    hits = None
    if token_hits is not None:
        if isinstance(tokens.tokenizer, WordTokenizer):  # "some unknown word" names no word
            unknown = tokens.tokens[predicted_positions(tokens, part)] == UNKNOWN_ID
            token_hits = token_hits & ~unknown[:, None]
        columns = [np.bincount(document, weights=hit, minlength=len(part)) for hit in token_hits.T]
        hits = np.stack(columns, axis=1).astype(np.int64)
    return Scores(
        nll=nll + tokens.spelling_nll[rows],
        bytes=tokens.bytes[rows],
        words=tokens.words[rows],
        tokens=sizes,
        hits=hits,
    )


def predicted_positions(tokens: TokenTape, part: Slice) -> NDArray[np.int64]:
    """Positions of a slice's tokens without the ids that open documents."""
    first, last = tokens.span(part)
    positions: NDArray[np.int64] = np.arange(first, last)
    return np.asarray(positions[tokens.tokens[first:last] != END_ID])


@torch.no_grad()
def predictions(
    core: nn.Module,
    tokens: TokenTape,
    positions: NDArray[np.int64],
    *,
    window: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (n, ids), fp32, at ascending positions, and the gold ids (n,), a few at a time."""
    training, device = core.training, next(core.parameters()).device
    core.eval()

    def logits_after(inputs: NDArray[np.int64], **options: int) -> torch.Tensor:
        with autocast(device, dtype):
            logits: torch.Tensor = core(torch.from_numpy(inputs).to(device), **options)
        return logits

    read = _read_sequences if _reads_sequences(core) else _read_windows
    try:
        for logits, gold in read(logits_after, tokens, positions, _sight(core, window)):
            yield logits.float(), torch.from_numpy(gold).to(device)
    finally:
        core.train(training)


def places_before(core: nn.Module, window: int) -> int:
    """How many inputs of a sequence that `score` reads only lead to what it scores."""
    return _sight(core, window) - 1 if _reads_sequences(core) else 0


def _reads_sequences(core: nn.Module) -> bool:
    return bool(getattr(core, "reads_sequences", False))


def _sight(core: nn.Module, window: int) -> int:
    return int(core.reach) if hasattr(core, "reach") else window  # type: ignore[arg-type]


def _read_windows(
    logits_after: LogitsAfter, tokens: TokenTape, positions: NDArray[np.int64], window: int
) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    for start in range(0, len(positions), BATCH):
        windows, gold = windows_before(tokens, positions[start : start + BATCH], window)
        yield logits_after(windows), gold


def _read_sequences(
    logits_after: LogitsAfter, tokens: TokenTape, positions: NDArray[np.int64], reach: int
) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    """Each position once, after all that decides its logits, so that pieces change nothing."""
    size = max(BATCH, reach)
    pieces = (positions - positions[0]) // size
    wanted = np.unique(pieces)
    rows = max(1, ROW_TOKENS // (reach + size))
    for first in range(0, len(wanted), rows):
        some = wanted[first : first + rows]
        inputs = sequences_before(tokens, positions[0] + some * size, size, reach)
        here = positions[slice(*np.searchsorted(pieces, [some[0], some[-1] + 1]))]
        row = np.searchsorted(some, (here - positions[0]) // size)
        logits = logits_after(inputs, keep=size)
        yield logits[row, (here - positions[0]) % size], tokens.tokens[here].astype(np.int64)


def rank(logits: torch.Tensor, gold: torch.Tensor) -> NDArray[np.int64]:
    """How many other ids are at least as probable as the gold one: a tie is a miss.

    Ties are frequent in bf16. Takes fp32 logits (n, ids) and the gold ids (n,).
    """
    # Counting in floats is four times faster than in booleans, and exact up to 2**24 ids.
    counted = torch.empty_like(logits)
    at_least = torch.ge(logits, logits.gather(1, gold[:, None]), out=counted).sum(1)
    return (at_least.long() - 1).cpu().numpy()
