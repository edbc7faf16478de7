"""Next words of a transformers model: what it says after a prompt and many short prefixes.

The prompt goes through the model once; its keys and values are shared by a batch of prefixes. A
SmaLLM has no such cache: it looks at its window again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from smallm.errors import SmallmError
from smallm.next_words import (
    LIMIT,
    RANKS,
    check_prompt,
    finding,
    rank_at_most,
    side_by_side,
)
from smallm.next_words import next_words as search_next_words
from smallm.predictors import NextWords
from smallm.predictors.continuations import Continuable, logits_after, seen
from smallm.word_search import LONGEST, Expand, Looks

T = TypeVar("T")

MOST_COLUMNS = 2**15  # of all prefixes that are looked at together: it bounds the memory


class Expandable(Continuable, Protocol):
    """What is needed of a causal model and its tokenizer."""

    @property
    def name(self) -> str:
        """As a person knows the model."""

    @property
    def context(self) -> int | None:
        """Most tokens that the model can look at; None without a limit."""

    @property
    def opening(self) -> Sequence[int]:
        """Ids before every text."""

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id, one for each of the model's outputs."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special ones."""


@torch.inference_mode()
def expansion(predictor: Expandable, prompt: str) -> Expand:
    """What a model says after a prompt and prefixes of ids; SmallmError for a bad prompt."""
    ids = _prompt_ids(predictor, prompt)
    if not predictor.keeps:
        return lambda prefixes: logits_after(predictor, [[*ids, *each] for each in prefixes])
    model = predictor.model
    prompt_ids = torch.tensor([ids], device=model.device)
    kept = {"logits_to_keep": 1} if "logits_to_keep" in predictor.forward_options else {}
    out = model(prompt_ids, use_cache=True, **kept)
    return _Cached(model, out.past_key_values, out.logits[:, -1])


def _prompt_ids(predictor: Expandable, prompt: str) -> list[int]:
    check_prompt(prompt)
    ids = [*predictor.opening, *predictor.encode(prompt)]
    if predictor.context is not None and len(ids) + LONGEST > predictor.context:
        raise SmallmError(
            f"the prompt has {len(ids)} tokens: {predictor.name} takes at most "
            f"{predictor.context - LONGEST} before a next word"
        )
    return ids


@dataclass(frozen=True)
class _Cached:
    """Expand of a model with keys and values; what comes after a prefix is never seen by it."""

    model: Any
    cache: Any
    first: Tensor

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        columns = self.cache.get_seq_length() + max(map(len, prefixes))
        return _in_parts(self._side_by_side, prefixes, columns)

    def _side_by_side(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        sizes = torch.tensor([len(each) for each in prefixes], device=self.first.device)
        longest = int(sizes.max())
        if not longest:
            return self.first.expand(len(prefixes), -1)
        rows = [[*prefix, *[0] * (longest - len(prefix))] for prefix in prefixes]
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(rows))
        ids = torch.tensor(rows, device=self.first.device)
        logits = self.model(ids, past_key_values=cache, use_cache=True).logits
        last = logits[torch.arange(len(rows), device=ids.device), (sizes - 1).clamp_min(0)]
        return torch.where(sizes[:, None] == 0, self.first, last)


def _in_parts(look: Callable[[Sequence[T]], Tensor], rows: Sequence[T], columns: int) -> Tensor:
    """What a model says after rows of so many columns, which it looks at in parts that fit."""
    size = max(MOST_COLUMNS // columns, 1)
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    return torch.cat([look(part) for part in parts])


def next_words(predictor: Expandable, prompt: str, *, k: int, limit: int = LIMIT) -> NextWords:
    """The k most probable next words of a model; SmallmError for a bad prompt or k."""
    expand = expansion(predictor, prompt)
    return search_next_words(expand, predictor.token_bytes, predictor.end_ids, k=k, limit=limit)


def next_words_side_by_side(
    predictor: Expandable, asked: Sequence[tuple[str, int]]
) -> list[NextWords | SmallmError]:
    """The k most probable next words of each (prompt, k); a bad one has its error.

    All prompts are looked at together, and read anew: for models that keep nothing of a text.
    """
    results: dict[int, NextWords | SmallmError] = {}
    prompts = {}
    for place, (prompt, _) in enumerate(asked):
        try:
            prompts[place] = seen(predictor, _prompt_ids(predictor, prompt))
        except SmallmError as error:
            results[place] = error

    def expand(wanted: Sequence[tuple[int, Sequence[Sequence[int]]]]) -> Sequence[Tensor]:
        texts = [[*prompts[place], *each] for place, prefixes in wanted for each in prefixes]
        after = _in_parts(partial(logits_after, predictor), texts, max(map(len, texts)))
        return torch.split(after, [len(prefixes) for _, prefixes in wanted])

    searches = {
        place: _with_errors(finding(predictor.token_bytes, predictor.end_ids, k=asked[place][1]))
        for place in prompts
    }
    results |= side_by_side(searches, expand)
    return [results[place] for place in range(len(asked))]


def _with_errors(looks: Looks[NextWords]) -> Looks[NextWords | SmallmError]:
    """A search that ends with its error, so that it ends no other one."""
    try:
        return (yield from looks)
    except SmallmError as error:
        return error


@dataclass(frozen=True)
class WordAccuracy:
    """How often the true next word was among the k most probable ones."""

    hits: Mapping[int, int]
    """For each k."""
    undecided: Mapping[int, int]
    """For each k, positions that the search left open; they count as misses."""
    positions: int


def word_accuracy(
    predictor: Expandable,
    positions: Sequence[tuple[str, str]],
    *,
    ks: Sequence[int] = RANKS,
    limit: int = LIMIT,
) -> WordAccuracy:
    """Top-k accuracy of next words at (context, word) positions, by the counting rule."""
    if not positions:
        raise SmallmError("no positions to predict: the texts are too short")
    tokens, ends = predictor.token_bytes, predictor.end_ids
    found = [
        rank_at_most(expansion(predictor, context), tokens, ends, word=word, ks=ks, limit=limit)
        for context, word in positions
    ]
    return WordAccuracy(
        hits={k: sum(each[k] is True for each in found) for k in ks},
        undecided={k: sum(each[k] is None for each in found) for k in ks},
        positions=len(found),
    )
