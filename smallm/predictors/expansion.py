"""Next words of a transformers model: what it says after a prompt and many short prefixes.

The prompt goes through the model once; its keys and values are shared by a batch of prefixes. A
SmaLLM has no such cache: it looks at its window again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from smallm.errors import SmallmError
from smallm.next_words import LIMIT, RANKS, check_prompt, rank_at_most
from smallm.next_words import next_words as search_next_words
from smallm.predictors import NextWords
from smallm.word_search import LONGEST, Expand


class Expandable(Protocol):
    """What is needed of a causal model and its tokenizer."""

    @property
    def name(self) -> str:
        """As a person knows the model."""

    @property
    def model(self) -> Any:
        """A causal model of transformers, in evaluation mode."""

    @property
    def context(self) -> int | None:
        """Most tokens that the model can look at; None without a limit."""

    @property
    def opening(self) -> Sequence[int]:
        """Ids before every text."""

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id, one for each of the model's outputs."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text without special ones."""


@torch.inference_mode()
def expansion(predictor: Expandable, prompt: str) -> Expand:
    """What a model says after a prompt and prefixes of ids; SmallmError for a bad prompt."""
    check_prompt(prompt)
    ids = [*predictor.opening, *predictor.encode(prompt)]
    if predictor.context is not None and len(ids) + LONGEST > predictor.context:
        raise SmallmError(
            f"the prompt has {len(ids)} tokens: {predictor.name} takes at most "
            f"{predictor.context - LONGEST} before a next word"
        )
    model = predictor.model
    prompt_ids = torch.tensor([ids], device=model.device)
    kept = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    out = model(prompt_ids, use_cache=True, **kept)
    first = out.logits[:, -1]
    cache = out.get("past_key_values")
    if cache is None:
        return _Windows(model, ids, first)
    return _Cached(model, cache, first)


@dataclass(frozen=True)
class _Cached:
    """Expand of a model with keys and values; what comes after a prefix is never seen by it."""

    model: Any
    cache: Any
    first: Tensor

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        sizes = torch.tensor([len(each) for each in prefixes], device=self.first.device)
        longest = int(sizes.max())
        if not longest:
            return self.first.float().log_softmax(-1).expand(len(prefixes), -1)
        rows = [[*prefix, *[0] * (longest - len(prefix))] for prefix in prefixes]
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(rows))
        ids = torch.tensor(rows, device=self.first.device)
        logits = self.model(ids, past_key_values=cache, use_cache=True).logits
        last = logits[torch.arange(len(rows), device=ids.device), (sizes - 1).clamp_min(0)]
        return torch.where(sizes[:, None] == 0, self.first, last).float().log_softmax(-1)


@dataclass(frozen=True)
class _Windows:
    """Expand of a model without a cache: the prompt is read again, masked places before it."""

    model: Any
    prompt: list[int]
    first: Tensor

    @torch.inference_mode()
    def __call__(self, prefixes: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prefixes))
        before = longest - torch.tensor([[len(each)] for each in prefixes])
        ids = torch.tensor(
            [[0] * (longest - len(each)) + self.prompt + list(each) for each in prefixes]
        )
        mask = (torch.arange(ids.shape[1]) >= before).long()
        device = self.first.device
        logits = self.model(ids.to(device), attention_mask=mask.to(device), logits_to_keep=1).logits
        return logits[:, -1].float().log_softmax(-1)  # type: ignore[no-any-return]


def next_words(predictor: Expandable, prompt: str, *, k: int, limit: int = LIMIT) -> NextWords:
    """The k most probable next words of a model; SmallmError for a bad prompt or k."""
    expand = expansion(predictor, prompt)
    return search_next_words(expand, predictor.token_bytes, predictor.end_ids, k=k, limit=limit)


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
