"""Best-first search for the words that may follow a prompt, with bounds of their probability.

A word is a longest run of bytes that are not ASCII white space. After a prompt that does not end
in white space comes white space, then the word; it ends when white space or the end of the text
follows. All probabilities are conditional on B: the first token begins with white space or ends
the text, so the last word of the prompt is taken as finished (Pimentel and Meister 2024, arXiv
2406.14561; Oh and Schuler 2024, arXiv 2406.10851).

The search looks at the heaviest prefixes that leave a bound open. What a model says after a prefix
splits the prefix's mass: some of it ends the word and is credited, the rest is the mass of its
continuations.
Mass is never dropped: credited + end of text + residual = 1. Continuations stay in one array, a
`Rest`; all rests after one and the same text are a `Node`. The sums of their masses along each text
that they can write bound at once what every word can gain there.

A word w can gain only from the mass at texts that w begins with, so its probability lies between
what it was credited, L(w), and U(w) = L(w) + that mass. U(w) is at most L(w) + residual.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

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
EXACT = 1e-7
"""Probabilities nearer than this count as equal: models, and masses here, have single precision."""
LONGEST = 32  # tokens of a prefix: longer ones stay in the residual
FEW = 32  # texts that are bounded one by one
MOST_TOGETHER = 32  # prefixes of one search that are looked at together: it bounds the memory
REMEMBERED = 2**15  # texts whose ids are kept


@dataclass(frozen=True, slots=True)
class Route:
    """The ids that write a text or more of it: their heads begin the text or go on from it."""

    on: NDArray[np.int64]
    """Ids whose heads begin the text; those with which a word ends only where it is the text."""
    first: int
    """Ids whose heads begin with the text are lexicon.order[first:last]."""
    last: int


class Lexicon:
    """What the search must know about each id.

    The head of an id is its first run of bytes other than white space. Ids without bytes end the
    text, as the end ids do: special ids stand for no text.
    """

    def __init__(self, token_bytes: Sequence[bytes], end_ids: frozenset[int]) -> None:
        size = len(token_bytes)
        self.heads: list[bytes] = []
        ends = np.zeros(size, dtype=bool)  # of the text
        opens = np.zeros(size, dtype=bool)  # with white space
        self.closes = np.zeros(size, dtype=bool)  # its head: white space follows inside
        for number, content in enumerate(token_bytes):
            text = content.lstrip(WHITE_SPACE)
            head = text.split(None, 1)[0] if text else b""
            self.heads.append(head)
            ends[number] = not content or number in end_ids
            opens[number] = content[:1].isspace()
            self.closes[number] = len(head) < len(text)
        self.begins = ends | opens  # B, and what ends a word
        self.endings = np.stack([ends, self.begins]).astype(np.float64)
        """(2, ids): what ends the text while there is no word, and what ends a word."""
        self.goes_on = 1 - self.endings
        self.closing = np.flatnonzero(self.closes)
        self._arrange()
        self._routes: dict[bytes, Route] = {}

    def _arrange(self) -> None:
        """Orders ids so that each is followed by those that lead to the same word or on from it."""
        order = sorted(range(len(self.heads)), key=lambda n: (self.heads[n], self.closes[n]))
        self._sorted = [self.heads[number] for number in order]
        last = np.full(len(order), len(order))  # place after all that go on from it
        path: list[int] = []
        for place, number in enumerate(order):
            while path and not self.heads[number].startswith(self.heads[order[path[-1]]]):
                last[path.pop()] = place
            if self.closes[number]:
                last[place] = bisect_right(self._sorted, self.heads[number])  # no longer word
            else:
                path.append(place)
        self.order = np.array(order)
        first = np.argsort(order)
        self.reach = list(zip(first.tolist(), last[first].tolist(), strict=True))
        """Of each id: its place in `order`, and the one after all that go on from it."""
        by_last = np.argsort(last, kind="stable")
        self._by_last = self.order[by_last]
        self._ended = np.searchsorted(last[by_last], np.arange(len(order)), side="right")

    def sums(self, masses: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """For each place in `order`, the mass of the ids whose heads begin its id's head.

        Of ids with the same head the last place has all.
        """
        # torch's cumsum takes a third of numpy's time.
        before = torch.zeros(len(masses) + 1, dtype=torch.float64)
        torch.cumsum(torch.from_numpy(masses.take(self._by_last)), 0, out=before[1:])
        upto = torch.from_numpy(masses.take(self.order)).cumsum(0, dtype=torch.float64)
        return np.asarray(upto.numpy() - before.numpy().take(self._ended))

    def route(self, text: bytes) -> Route:
        """The ids that may write a text, white space before it included."""
        found = self._routes.get(text)
        if found is None:
            on = [
                int(self.order[place])
                for end in range(len(text) + 1)
                for place in range(*self._places(text[:end]))
                if end == len(text) or not self.closes[self.order[place]]
            ]
            first = bisect_left(self._sorted, text)
            last = bisect_right(self._sorted, text, key=lambda head: head[: len(text)])
            found = Route(np.array(on, dtype=np.int64), first, last)
            if len(self._routes) >= REMEMBERED:
                self._routes.clear()
            self._routes[text] = found
        return found

    def way_to(self, place: int) -> NDArray[np.int64]:
        """The ids that lead to the head of the id at a place in `order`."""
        return self.route(self.heads[self.order[place]]).on

    def _places(self, head: bytes) -> tuple[int, int]:
        return bisect_left(self._sorted, head), bisect_right(self._sorted, head)


@lru_cache(maxsize=8)
def lexicon_of(token_bytes: tuple[bytes, ...], end_ids: frozenset[int]) -> Lexicon:
    """The lexicon of a model, made once."""
    return Lexicon(token_bytes, end_ids)


@dataclass(eq=False, slots=True)
class Prefix:
    """Tokens after the prompt that the model looks at, with their probability."""

    ids: tuple[int, ...]
    text: bytes
    """The word so far; empty while there is only white space."""
    mass: float


@dataclass(eq=False, slots=True)
class Rest:
    """Continuations of a prefix that the model has not looked at."""

    ids: tuple[int, ...]
    masses: NDArray[np.float32]
    """Of each id; 0 for those that do not continue the prefix or were taken out."""


class Continuation(NamedTuple):
    """One id of a rest."""

    mass: float
    node: Node
    rest: Rest
    number: int


@dataclass(eq=False, slots=True)
class Node:
    """All rests after one text."""

    lexicon: Lexicon
    text: bytes
    rests: list[Rest] = field(default_factory=list)
    masses: NDArray[np.floating[Any]] = field(init=False)
    """Of each id, in all rests."""
    mass: float = 0.0
    _sums: NDArray[np.float64] | None = None

    def changed(self) -> None:
        """Sums up after its rests have changed, without those that are used up."""
        if len(self.rests) > 1:
            self.rests = [rest for rest in self.rests if rest.masses.any()] or self.rests[:1]
        masses: NDArray[np.floating[Any]] = self.rests[0].masses
        if len(self.rests) > 1:
            masses = np.sum([rest.masses for rest in self.rests], axis=0, dtype=np.float64)
        self.masses, self.mass, self._sums = masses, float(masses.sum(dtype=np.float64)), None

    @property
    def sums(self) -> NDArray[np.float64]:
        """Of the masses along the heads of each id, by lexicon.order."""
        if self._sums is None:
            self._sums = self.lexicon.sums(self.masses)
        return self._sums

    def mass_on(self, text: bytes) -> float:
        """The most that the word can gain here which its text and another one make."""
        return float(sum(self.masses[self.lexicon.route(text).on].tolist()))

    def gain(self, text: bytes) -> float:
        """The most that one word can gain here which goes on from its text with another one."""
        route = self.lexicon.route(text)
        if route.first == route.last:
            return self.mass_on(text)
        sums = self.sums[route.first : route.last]
        return float(sums[sums.argmax()])  # max takes twice as long

    def witness(self, text: bytes) -> NDArray[np.int64]:
        """The ids of that gain."""
        route = self.lexicon.route(text)
        if route.first == route.last:
            return route.on
        sums = self.sums[route.first : route.last]
        return self.lexicon.way_to(route.first + int(sums.argmax()))

    def heaviest(self, least: float, count: int) -> list[Continuation]:
        """Continuations by `count` ids at most, without which no word gains much more than `least`.

        Takes the heaviest id on the way to the word that gains the most, again and again.
        """
        sums, masses = self.sums.copy(), self.masses.copy()
        found: list[Continuation] = []
        for _ in range(count):
            place = int(sums.argmax())
            if sums[place] <= least:
                break
            on = self.lexicon.way_to(place)
            number = int(on[masses[on].argmax()])
            if not masses[number]:
                break  # the sums are not exact to the last bit
            found += self.taking(number)
            masses[number] = 0
            first, last = self.lexicon.reach[number]
            sums[first:last] -= self.masses[number]
        return found

    def taking(self, number: int) -> list[Continuation]:
        """Continuations by one id that can be taken, without those that hold little of its mass."""
        closes = self.lexicon.closes[number]
        found = [
            Continuation(float(mass), self, rest, number)
            for rest in self.rests
            if (mass := rest.masses[number]) > 0 and (closes or len(rest.ids) < LONGEST)
        ]
        enough = sum(each.mass for each in found) / (2 * max(len(found), 1))
        return [each for each in found if each.mass >= enough]

    def takeable(self, count: int) -> Iterator[Continuation]:
        """What ends a word, and the `count` heaviest continuations of each rest."""
        for rest in self.rests:
            chosen = self.lexicon.closing
            if count and len(rest.ids) < LONGEST:
                heaviest = torch.from_numpy(rest.masses).topk(min(count, len(rest.masses)))
                chosen = np.union1d(chosen, heaviest.indices.numpy())
            for number in chosen[rest.masses[chosen] > 0].tolist():
                yield Continuation(float(rest.masses[number]), self, rest, number)


def _holding(excess: float, ways: Sequence[tuple[Node, NDArray[np.int64]]]) -> list[Continuation]:
    """The heaviest continuations by some ids, until they hold more than some mass."""
    among = [
        (mass, number, node)
        for node, ids in ways
        for mass, number in zip(node.masses[ids].tolist(), ids.tolist(), strict=True)
    ]
    excess = min(excess, sum(mass for mass, _, _ in among))
    light = excess / (2 * max(len(among), 1))  # what all that is lighter holds does not matter
    found: list[Continuation] = []
    for mass, number, node in sorted(among, key=lambda each: -each[0]):
        if mass <= light or excess < 0:
            break
        chosen = node.taking(number)
        found += chosen
        excess -= sum(each.mass for each in chosen)
    return found


class Search:
    """Best-first search over token prefixes, with bounds of every word's probability."""

    def __init__(self, lexicon: Lexicon, *, batch: int, limit: int) -> None:
        self.lexicon = lexicon
        self.batch, self.limit = batch, limit
        self.words: dict[bytes, float] = {}
        self.end_of_text = 0.0
        self.looked_at = 0
        """Prefixes that the model has looked at."""
        self.nodes: dict[bytes, Node] = {}

    @property
    def together(self) -> int:
        """How many prefixes are looked at next; a long search takes more of them at once."""
        return max(self.batch, min(self.looked_at // 4, MOST_TOGETHER))

    @property
    def residual(self) -> float:
        """Mass that belongs to no word and not to the end of the text."""
        return sum(node.mass for node in self.nodes.values())

    def upper(self, word: bytes) -> float:
        """The most that a word's probability can be."""
        return self.words.get(word, 0.0) + sum(
            node.mass_on(rest) for node, rest in self._on_the_way(word)
        )

    def _on_the_way(self, text: bytes) -> Iterator[tuple[Node, bytes]]:
        """The nodes at what a text begins with, and what is left of it there."""
        for end in range(len(text) + 1):
            if node := self.nodes.get(text[:end]):
                yield node, text[end:]

    def leading_to(self, words: Iterable[bytes], excess: float) -> list[Continuation]:
        """The heaviest continuations from which words can gain, until they hold `excess` mass."""
        ways = [
            (node, self.lexicon.route(rest).on)
            for word in words
            for node, rest in self._on_the_way(word)
        ]
        return _holding(excess, ways)

    def gains(self, least: float) -> tuple[float, bool, list[Continuation]]:
        """What words can gain, those that were not seen included.

        A bound of what a word can gain, whether some word may gain more than `least`, and
        continuations to look at before none may: about as many as are looked at together.
        """
        most = 0.0
        open_ways: list[tuple[float, Sequence[Node], bytes]] = []
        for path, bound in self._paths():
            if bound > least:
                bound, excess, text = self._beyond(path, bound, least)
                if excess > 0:
                    open_ways.append((excess, tuple(path), text))
            most = max(most, bound)
        found: dict[tuple[int, int], Continuation] = {}
        for excess, nodes, text in sorted(open_ways, key=lambda each: -each[0]):
            for each in self._proposed(excess, nodes, text, least):
                found[id(each.rest), each.number] = each
            if len(found) >= self.together:
                break
        return most, bool(open_ways), list(found.values())

    def _beyond(
        self, path: Sequence[Node], bound: float, least: float
    ) -> tuple[float, float, bytes]:
        """A nearer bound of what words can gain that begin with the text of the path's last node.

        With a text that some of them begin with, and by how much one of these may exceed `least`.
        """
        last, before = path[-1], path[:-1]
        for node in sorted(path, key=lambda node: -node.mass):
            bound += node.gain(last.text[len(node.text) :]) - node.mass
            if bound <= least:
                return bound, 0.0, last.text
        if not before:
            return bound, bound - least, last.text
        # One word may not gain the most at all nodes: those that gain much at the last node are
        # bounded one by one, if they are few.
        sums, most = last.sums.copy(), 0.0
        others = bound - float(sums[sums.argmax()])
        for _ in range(FEW if others < least else 0):
            place = int(sums.argmax())
            if others + sums[place] <= least:
                return max(most, others + float(sums[place])), 0.0, last.text
            text = last.text + self.lexicon.heads[self.lexicon.order[place]]
            gain = float(sums[place]) + sum(node.gain(text[len(node.text) :]) for node in before)
            if gain > least:
                return bound, gain - least, text
            most = max(most, gain)
            sums[place] = 0
        return bound, bound - least, last.text

    def _proposed(
        self, excess: float, path: Sequence[Node], text: bytes, least: float
    ) -> list[Continuation]:
        """Continuations on the way to the word that `_beyond` found."""
        last = path[-1]
        if len(path) == 1:
            return last.heaviest(least, self.together)
        ways = [(node, node.witness(text[len(node.text) :])) for node in path[:-1]]
        rest = text[len(last.text) :]
        on = self.lexicon.route(rest).on if rest else last.witness(rest)
        return _holding(excess, [*ways, (last, on)])

    def _paths(self) -> Iterator[tuple[list[Node], float]]:
        """For each node, itself after those whose texts begin its own, and their mass."""
        path: list[Node] = []
        masses = [0.0]
        for text in sorted(self.nodes):
            while path and not text.startswith(path[-1].text):
                path.pop()
                masses.pop()
            path.append(node := self.nodes[text])
            masses.append(masses[-1] + node.mass)
            yield path, masses[-1]

    def begin(self) -> Looks[None]:
        """Looks at the empty prefix."""
        first = [Prefix((), b"", 1.0)]
        self._look_at(first, (yield first))

    def advance(self, continuations: Iterable[Continuation]) -> Looks[bool]:
        """Looks at the heaviest of some continuations, or of all where none of them can be taken.

        What ends a word needs no look. False when nothing is left to be taken within the limit.
        """
        count = max(min(self.together, self.limit - self.looked_at), 0)
        taken = self._chosen(continuations, count)
        if not taken:  # what was proposed is too long to go on, or the limit is reached
            every = (each for node in self.nodes.values() for each in node.takeable(count))
            taken = self._chosen(every, count)
        if prefixes := self._take(taken):
            self._look_at(prefixes, (yield prefixes))
        return bool(taken)

    def _chosen(self, continuations: Iterable[Continuation], count: int) -> list[Continuation]:
        """All that ends a word, and the `count` heaviest of the others."""
        different = {(id(each.rest), each.number): each for each in continuations}.values()
        closing = [each for each in different if self.lexicon.closes[each.number]]
        others = (each for each in different if not self.lexicon.closes[each.number])
        return closing + heapq.nlargest(count, others, key=lambda each: each.mass)

    def _take(self, continuations: Sequence[Continuation]) -> list[Prefix]:
        """Takes continuations out of their rests; a word that ends in one gets its mass."""
        prefixes, touched = [], set()
        for each in continuations:
            text = each.node.text + self.lexicon.heads[each.number]
            each.rest.masses[each.number] = 0
            touched.add(each.node.text)
            if self.lexicon.closes[each.number]:
                self._credit(text, each.mass)
            else:
                prefixes.append(Prefix((*each.rest.ids, each.number), text, each.mass))
        for text in touched:
            self.nodes[text].changed()
            if not self.nodes[text].mass:
                del self.nodes[text]
        return prefixes

    def _credit(self, word: bytes, mass: float) -> None:
        if mass > 0:
            self.words[word] = self.words.get(word, 0.0) + mass

    def _look_at(self, prefixes: Sequence[Prefix], after: Tensor) -> None:
        """Splits the mass of prefixes by what the model says after them."""
        self.looked_at += len(prefixes)
        masses = np.asarray(after.detach().cpu().double().softmax(1).numpy())
        endings = self.lexicon.endings
        if not prefixes[0].ids:
            masses *= endings[1]
            mass = masses.sum()
            if mass == 0:
                raise SmallmError("the model lets no word begin after this prompt")
            masses /= mass
        masses *= np.array([[each.mass] for each in prefixes])
        kinds = np.array([bool(each.text) for each in prefixes], dtype=int)
        ended = (masses @ endings.T)[np.arange(len(prefixes)), kinds].tolist()
        if any(map(math.isnan, ended)):
            raise DamagedModelError(NO_PROBABILITIES)
        masses *= self.lexicon.goes_on[kinds]
        grown: dict[bytes, Node] = {}
        for row, prefix, mass in zip(masses.astype(np.float32), prefixes, ended, strict=True):
            if prefix.text:
                self._credit(prefix.text, mass)
            else:
                self.end_of_text += mass
            if row.any():
                node = self.nodes.setdefault(prefix.text, Node(self.lexicon, prefix.text))
                node.rests.append(Rest(prefix.ids, row))
                grown[prefix.text] = node
        for node in grown.values():
            node.changed()
