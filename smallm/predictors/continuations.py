"""Continuations of one model side by side: every step adds one id to each of them.

They begin and end at any step (continuous batching; Yu et al. 2022, Orca). All rows end in the same
column and are padded on the left, which any causal model of transformers can read. Logits differ
from those of a row alone in their last bits, for sums of another size run in another order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from smallm.predictors import Decoding
from smallm.predictors.kept_rows import joined, new_cache
from smallm.predictors.sampling import choose

PIECE = 256  # ids of prompts that one step reads: a long prompt does not hold up the others
MOST_COLUMNS = 2**16  # of all rows, when they are as long as they may get: it bounds the memory
MOST_ROWS = 32  # that get an id at each step, unless one prompt alone asks for more


class Continuable(Protocol):
    """What is needed of a causal model and its tokenizer."""

    @property
    def model(self) -> Any:
        """A causal model of transformers, in evaluation mode."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text."""

    @property
    def forward_options(self) -> frozenset[str]:
        """Names of what the model's forward takes."""

    @property
    def keeps(self) -> bool:
        """Whether what was read can be kept as kept_rows keeps it."""


@dataclass(frozen=True)
class Step:
    """One id of a continuation."""

    chosen: int
    logits: Tensor
    """(ids,), fp32: what it was chosen from, before temperature."""
    last: bool
    """Whether the room for tokens ends here."""


@dataclass(eq=False)
class Row:
    """One continuation."""

    ids: list[int]
    """The prompt's and those that were chosen."""
    decoding: Decoding
    room: int
    """Ids that may still be chosen; 0 ends it."""
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.decoding.seed)


@dataclass(eq=False)
class _Opening:
    """A prompt that is not read to its end yet, with the rows that continue it."""

    ids: list[int]
    rows: list[Row]
    cache: Cache = field(default_factory=new_cache)
    read: int = 0

    @property
    def left(self) -> int:
        return len(self.ids) - self.read


class Continuations:
    """The continuations of one model that are under way or wait for their turn."""

    def __init__(self, causal: Continuable) -> None:
        self.causal = causal
        self._waiting: deque[_Opening] = deque()
        self._rows: list[Row] = []
        self._cache = new_cache()

    def add(self, ids: Sequence[int], decodings: Iterable[Decoding], *, room: int) -> list[Row]:
        """Continues a prompt's ids once for each decoding, by at most `room` ids."""
        rows = [Row(list(ids), each, min(room, each.max_tokens)) for each in decodings]
        self._waiting.append(_Opening(list(ids), rows))
        return rows

    @property
    def busy(self) -> bool:
        """Whether a row is left that goes on."""
        waiting = (row for opening in self._waiting for row in opening.rows)
        return any(row.room > 0 for row in (*self._rows, *waiting))

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Step | None]]:
        """One more id for each row that goes on; None where its text ends."""
        self._let_go()
        if not self.causal.keeps:
            self._rows += [row for each in self._next_openings() for row in each.rows]
        logits = [self._next_logits()] if self._rows else []
        if self.causal.keeps and (read := self._next_openings()):
            logits.append(self._joined(read))
        if not any(map(len, logits)):
            return []
        after = torch.cat(logits).float()
        return [(row, self._chosen(row, each)) for row, each in zip(self._rows, after, strict=True)]

    def _chosen(self, row: Row, logits: Tensor) -> Step | None:
        chosen = choose(logits, row.decoding, row.generator)
        if chosen in self.causal.end_ids:
            row.room = 0
            return None
        row.ids.append(chosen)
        row.room -= 1
        return Step(chosen, logits, last=row.room == 0)

    def _let_go(self) -> None:
        """Leaves out the rows that have ended."""
        stay = [place for place, row in enumerate(self._rows) if row.room > 0]
        if len(stay) < len(self._rows):
            self._rows = [self._rows[place] for place in stay]
            columns = max((len(row.ids) - 1 for row in self._rows), default=0)
            self._cache = joined([(self._cache, stay)], columns)
        for opening in self._waiting:
            opening.rows = [row for row in opening.rows if row.room > 0]
        self._waiting = deque(opening for opening in self._waiting if opening.rows)

    def _next_openings(self) -> list[_Opening]:
        """Those that wait longest, as many as there is room for, padded to the same length."""
        taken: list[_Opening] = []
        longest, rows = 0, len(self._rows)
        reach = max((len(row.ids) + row.room for row in self._rows), default=0)
        while self._waiting:
            first = self._waiting[0]
            longest, rows = max(longest, first.left), rows + len(first.rows)
            reach = max(reach, *(len(row.ids) + row.room for row in first.rows))
            large = rows > MOST_ROWS or rows * reach > MOST_COLUMNS
            full = large and rows > len(first.rows)
            wide = self.causal.keeps and longest * (len(taken) + 1) > PIECE
            if full or (taken and (wide or taken[0].read)):
                break
            taken.append(self._waiting.popleft())
        return taken

    def _joined(self, openings: list[_Opening]) -> Tensor:
        """Reads on in prompts; logits (rows that join, ids) after those that are read."""
        first = openings[0]
        pieces = [each.ids[each.read : each.read + PIECE] for each in openings]
        logits = _forward(self.causal, pieces, first.cache, [each.read for each in openings])
        first.read += len(pieces[0])
        if first.left:
            self._waiting.appendleft(first)
            return logits[:0]
        before = list(range(len(self._rows)))
        places = [place for place, each in enumerate(openings) for _ in each.rows]
        self._rows += [row for each in openings for row in each.rows]
        columns = max(len(row.ids) for row in self._rows)
        self._cache = joined([(self._cache, before), (first.cache, places)], columns)
        return logits[places]

    def _next_logits(self) -> Tensor:
        """Logits (rows, ids) after the rows under way."""
        if not self.causal.keeps:
            return logits_after(self.causal, [row.ids for row in self._rows])
        ids = [row.ids[-1:] for row in self._rows]
        return _forward(self.causal, ids, self._cache, [len(row.ids) - 1 for row in self._rows])


@torch.inference_mode()
def logits_after(causal: Continuable, texts: Sequence[list[int]]) -> Tensor:
    """Logits (texts, ids) after texts of ids that are read anew, by what the model sees of them."""
    return _forward(causal, [seen(causal, ids) for ids in texts], None, [0] * len(texts))


def seen(causal: Continuable, ids: list[int]) -> list[int]:
    """The end of some ids that alone decides what a model says after them."""
    end: list[int] = getattr(causal.model, "seen", list)(ids)
    return end


def _forward(
    causal: Continuable, ids: Sequence[Sequence[int]], cache: Cache | None, before: Sequence[int]
) -> Tensor:
    """Logits (rows, ids) after ids, `before` others of each row being in the cache already."""
    model, options = causal.model, causal.forward_options
    width = max(map(len, ids))
    columns = width + (cache.get_seq_length() if cache is not None else 0)
    lengths = torch.tensor([held + len(each) for held, each in zip(before, ids, strict=True)])
    padding = columns - lengths[:, None]
    given: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        given["past_key_values"] = cache
    if padding.any():
        given["attention_mask"] = (torch.arange(columns) >= padding).long().to(model.device)
    if "position_ids" in options:
        places = torch.arange(columns - width, columns) - padding
        given["position_ids"] = places.clamp_min(0).to(model.device)
    if "logits_to_keep" in options:
        given["logits_to_keep"] = 1
    padded = [[0] * (width - len(each)) + list(each) for each in ids]
    logits: Tensor = model(input_ids=torch.tensor(padded, device=model.device), **given).logits
    return logits[:, -1]
