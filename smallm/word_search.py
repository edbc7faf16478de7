"""Best-first search for the words that may follow a prompt, with bounds of their probability.

A word is a longest run of bytes that are not ASCII white space. After a prompt that does not end
in white space comes white space, then the word; it ends when white space or the end of the text
follows. All probabilities are conditional on B: the first token begins with white space or ends
the text, so the last word of the prompt is taken as finished (Pimentel and Meister 2024, arXiv
2406.14561; Oh and Schuler 2024, arXiv 2406.10851).

The search takes the heaviest token prefixes first. What a model says after a prefix splits the
prefix's mass: some of it ends the word and is credited, the rest goes on to longer prefixes. Mass
is never dropped: credited + end of text + residual = 1. The continuations of a prefix stay
together in one array, a `Rest`, and only those that matter become prefixes of their own.

A word w can gain only from the mass at texts that w begins with, so its probability lies between
what it was credited, L(w), and U(w) = L(w) + that mass. U(w) is at most L(w) + residual.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallm.errors import NO_PROBABILITIES, DamagedModelError, SmallmError

Expand = Callable[[Sequence[Sequence[int]]], Tensor]
"""Logits (prefixes, ids) of the next id after the prompt and each prefix of ids: log-probabilities
up to a constant of each prefix."""

T = TypeVar("T")
Looks = Generator[list["Prefix"], Tensor, T]
"""Yields prefixes to look at, is sent logits (prefixes, ids), and returns a result."""

WHITE_SPACE = b" \t\n\r\f\v"
EXACT = 1e-9
"""Probabilities nearer than this count as equal: it is below the precision of the models."""
LONGEST = 32  # tokens of a prefix: longer ones stay in the residual
FIRST_SHARE = 32  # continuations that become prefixes at first; then twice as many, and so on
REMEMBERED = 100_000  # ends of words whose ids are kept


class Lexicon:
    """What the search must know about each id.

    The head of an id is its first run of bytes other than white space. Ids without bytes end the
    text, as the end ids do: special ids stand for no text.
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: frozenset[int]) -> None:
        size = len(token_bytes)
        self.heads: list[bytes] = []
        self.ends = np.zeros(size, dtype=bool)  # of the text
        self.opens = np.zeros(size, dtype=bool)  # with white space
        self.closes = np.zeros(size, dtype=bool)  # its head: white space follows inside
        self.by_head: dict[bytes, list[int]] = {}
        self._beginning: dict[bytes, NDArray[np.int64]] = {}
        for number, content in enumerate(token_bytes):
            text = content.lstrip(WHITE_SPACE)
            head = text.split(None, 1)[0] if text else b""
            self.heads.append(head)
            self.ends[number] = not content or number in end_ids
            self.opens[number] = content[:1].isspace()
            self.closes[number] = len(head) < len(text)
            if not self.ends[number]:
                self.by_head.setdefault(head, []).append(number)
        self.begins = self.ends | self.opens  # B, and what ends a word
        self.longest_opening = self._chain(self.opens)
        self.longest_inner = self._chain(~self.begins)

    def _chain(self, among: NDArray[np.bool_]) -> int:
        """The most ids whose heads all begin one and the same text."""
        counts = {
            head: count
            for head, ids in self.by_head.items()
            if (count := int(np.count_nonzero(among[ids])))
        }
        return int(max((chain for _, chain in _along(counts)), default=0))

    def beginning(self, text: bytes) -> NDArray[np.int64]:
        """Ids with which a text may begin, white space before it included."""
        found = self._beginning.get(text)
        if found is None:
            heads = (self.by_head.get(text[:end], ()) for end in range(len(text) + 1))
            found = np.array([number for ids in heads for number in ids], dtype=np.int64)
            if len(self._beginning) < REMEMBERED:
                self._beginning[text] = found
        return found


@lru_cache(maxsize=8)
def lexicon_of(token_bytes: tuple[bytes, ...], end_ids: frozenset[int]) -> Lexicon:
    """The lexicon of a model, made once."""
    return Lexicon(token_bytes, end_ids)


def _along(values: Mapping[bytes, float]) -> Iterator[tuple[bytes, float]]:
    """For each text, the sum of the values at all texts that it begins with."""
    path: list[tuple[bytes, float]] = []
    for text in sorted(values):
        while path and not text.startswith(path[-1][0]):
            path.pop()
        path.append((text, values[text] + (path[-1][1] if path else 0.0)))
        yield path[-1]


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens after the prompt that the model has not looked at, with their probability."""

    ids: tuple[int, ...]
    text: bytes
    """The word so far; empty while there is only white space."""
    mass: float

    @property
    def bound(self) -> float:
        """The most that one word can gain from it."""
        return self.mass


@dataclass(eq=False, slots=True)
class Rest:
    """Continuations of a prefix that are not prefixes of their own yet."""

    ids: tuple[int, ...]
    text: bytes
    mass: float
    masses: NDArray[np.float32]
    """Of each id; 0 for those that do not continue the prefix or were taken out."""
    top: float
    """The largest of them; -1 when something was taken out since."""
    chain: int
    """The most ids that can lead to one word."""
    share: int
    """How many become prefixes next time."""
    opened: set[bytes] = field(default_factory=set)

    def heaviest(self) -> float:
        """The largest mass that is left."""
        if self.top < 0:
            self.top = float(self.masses.max())
        return self.top

    @property
    def bound(self) -> float:
        """The most that one word can gain from it."""
        return min(self.mass, self.chain * self.heaviest())

    def next_share(self) -> NDArray[np.int64]:
        """The heaviest ids that are left; twice as many the next time."""
        share, self.share = self.share, 2 * self.share
        if share >= len(self.masses):
            return np.flatnonzero(self.masses)
        # numpy's argpartition takes ten times as long on masses as skewed as these.
        return np.asarray(torch.from_numpy(self.masses).topk(share).indices)

    def take_out(self, ids: NDArray[np.int64]) -> tuple[list[int], list[float]]:
        """Those of some ids that are left, with their masses, which are its own no more."""
        ids = ids[self.masses[ids] > 0]
        masses = self.masses[ids]
        self.masses[ids] = 0
        self.mass = max(self.mass - float(masses.sum(dtype=np.float64)), 0.0)
        self.top = -1.0
        return ids.tolist(), masses.tolist()


class Search:
    """Best-first search over token prefixes, with bounds of every word's probability."""

    def __init__(self, lexicon: Lexicon, *, batch: int, limit: int) -> None:
        self.lexicon = lexicon
        self.batch, self.limit = batch, limit
        self.words: dict[bytes, float] = {}
        self.end_of_text = 0.0
        self.looked_at = 0
        """Prefixes that the model has looked at."""
        self.taken = 0
        """Continuations that became prefixes or words."""
        self.frontier: dict[bytes, list[Prefix | Rest]] = {}

    @property
    def residual(self) -> float:
        """Mass that belongs to no word and not to the end of the text."""
        return sum(item.mass for items in self.frontier.values() for item in items)

    def bounds(self) -> dict[bytes, float]:
        """For each text on the frontier, the most that a word which begins with it can gain.

        This holds for a word that ends there; longer texts on the frontier have their own.
        """
        own = {
            text: items[0].bound if len(items) == 1 else sum(each.bound for each in items)
            for text, items in self.frontier.items()
        }
        return dict(_along(own))

    def at(self, texts: Iterable[bytes]) -> list[Prefix | Rest]:
        """What lies on the frontier at some texts and at all that they begin with."""
        places = {text[:end] for text in texts for end in range(len(text) + 1)}
        return [item for place in places for item in self.frontier.get(place, ())]

    def useful(self, unseen: set[bytes], words: set[bytes]) -> list[Prefix | Rest]:
        """What bears on unseen words at some texts, and on some words.

        No rest bears on the latter: all that leads to them is taken out of it.
        """
        for word in words:
            self.open(word)
        items = self.at(unseen)
        known = set(map(id, items))
        prefixes = (item for item in self.at(words) if isinstance(item, Prefix))
        return items + [item for item in prefixes if id(item) not in known]

    def upper(self, word: bytes) -> float:
        """The most that a word's probability can be."""
        gain = self.words.get(word, 0.0)
        for end in range(len(word) + 1):
            for item in self.frontier.get(word[:end], ()):
                if isinstance(item, Prefix):
                    gain += item.mass
                elif word not in item.opened:  # else what leads to the word is out of it
                    ids = self.lexicon.beginning(word[end:])
                    gain += float(item.masses[ids].sum(dtype=np.float64))
        return gain

    def open(self, word: bytes) -> None:
        """Makes what leads to a word prefixes of their own, so that they can be looked at."""
        for end in range(len(word) + 1):
            for item in list(self.frontier.get(word[:end], ())):
                if isinstance(item, Rest) and word not in item.opened:
                    item.opened.add(word)
                    self._take(item, self.lexicon.beginning(word[end:]))

    def begin(self) -> Looks[None]:
        """Looks at the empty prefix."""
        first = [Prefix((), b"", 1.0)]
        self._look_at(first, (yield first))

    def advance(self, items: Iterable[Prefix | Rest]) -> Looks[bool]:
        """Looks at the heaviest of some items; False when nothing is left to be gained."""
        useful = [
            (bound, item) for item in items if len(item.ids) < LONGEST and (bound := item.bound) > 0
        ]
        heaviest = heapq.nlargest(self.batch, useful, key=lambda pair: pair[0])
        room = self.limit - self.looked_at
        if room <= 0:
            return False
        prefixes = [item for _, item in heaviest if isinstance(item, Prefix)]
        rests = [item for _, item in heaviest if isinstance(item, Rest)]
        for rest in rests:
            self._take(rest, rest.next_share())
        if prefixes := prefixes[:room]:
            self._look_at(prefixes, (yield prefixes))
        return bool(heaviest)

    def _take(self, rest: Rest, ids: NDArray[np.int64]) -> None:
        """Makes some continuations prefixes of their own; a finished word gets its mass."""
        heads, closes = self.lexicon.heads, self.lexicon.closes
        for number, mass in zip(*rest.take_out(ids), strict=True):
            text = rest.text + heads[number]
            self.taken += 1
            if closes[number]:
                self._credit(text, mass)
            else:
                self._wait(Prefix((*rest.ids, number), text, mass))
        if rest.heaviest() == 0:
            self._leave(rest)

    def _credit(self, word: bytes, mass: float) -> None:
        if mass > 0:
            self.words[word] = self.words.get(word, 0.0) + mass

    def _wait(self, item: Prefix | Rest) -> None:
        self.frontier.setdefault(item.text, []).append(item)

    def _leave(self, item: Prefix | Rest) -> None:
        here = self.frontier[item.text]
        here.remove(item)
        if not here:
            del self.frontier[item.text]

    def _look_at(self, prefixes: Sequence[Prefix], after: Tensor) -> None:
        """Splits the mass of prefixes by what the model says after them."""
        self.looked_at += len(prefixes)
        lexicon = self.lexicon
        masses = np.asarray(after.detach().cpu().double().softmax(1).numpy())
        if not prefixes[0].ids:
            masses[:, ~lexicon.begins] = 0
            if np.isnan(mass := masses.sum()):
                raise DamagedModelError(NO_PROBABILITIES)
            if not mass > 0:
                raise SmallmError("the model lets no word begin after this prompt")
            masses /= mass
        masses *= np.array([[each.mass] for each in prefixes])
        ended = np.where(
            [bool(each.text) for each in prefixes],
            masses @ lexicon.begins,
            masses @ lexicon.ends,
        )
        for row, prefix, mass in zip(masses, prefixes, ended.tolist(), strict=True):
            if prefix.ids:
                self._leave(prefix)
            if prefix.text:
                self._credit(prefix.text, mass)
            else:
                self.end_of_text += mass
            row[lexicon.begins if prefix.text else lexicon.ends] = 0
        self._keep(prefixes, masses.astype(np.float32))

    def _keep(self, prefixes: Sequence[Prefix], masses: NDArray[np.float32]) -> None:
        """Keeps what may follow prefixes: (prefixes, ids)."""
        lexicon = self.lexicon
        totals, tops = masses.sum(1, dtype=np.float64).tolist(), masses.max(1).tolist()
        for row, prefix, total, top in zip(masses, prefixes, totals, tops, strict=True):
            if total:
                chain = 0 if not prefix.ids else lexicon.longest_inner
                chain += 0 if prefix.text else lexicon.longest_opening
                self._wait(Rest(prefix.ids, prefix.text, total, row, top, chain, FIRST_SHARE))
