"""Next words from a model of tokens: certified top k, word probabilities, top-k accuracy.

A word is a longest run of characters that are not ASCII white space, the same for every model.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from torch import Tensor

from smallm.errors import SmallmError
from smallm.predictors import NextWord, NextWords
from smallm.tokens import WORD
from smallm.word_search import EXACT, Continuation, Expand, Looks, Search, lexicon_of

T = TypeVar("T")
ExpandTogether = Callable[[Sequence[tuple[int, Sequence[Sequence[int]]]]], Sequence[Tensor]]
"""For each (search, prefixes of ids), logits (prefixes, ids)."""

BATCH = 8  # prefixes that a model looks at together; a long search takes more
LIMIT = 256  # prefixes that it looks at for one prompt: most need 10 to 30
RANKS = (1, 3, 10)
FEWEST_WORDS = 8  # before a word whose rank is asked for


def check_prompt(prompt: str) -> None:
    """SmallmError for a prompt after which no next word is defined."""
    if not prompt:
        raise SmallmError("the prompt is empty: it needs at least one word")
    if not WORD.fullmatch(prompt[-1]):
        raise SmallmError(
            f"the prompt ends in white space ({prompt[-1]!r}): leave it out, it belongs to the "
            "next word"
        )


def check_k(k: int, token_bytes: Sequence[bytes]) -> None:
    """SmallmError for more words than there can be, or none."""
    if not 1 <= k <= len(token_bytes):
        raise SmallmError(f"k is {k}: it must be from 1 to the vocabulary's {len(token_bytes)}")


def next_words(
    expand: Expand,
    token_bytes: Sequence[bytes],
    end_ids: frozenset[int],
    *,
    k: int,
    batch: int = BATCH,
    limit: int = LIMIT,
) -> NextWords:
    """The k most probable next words, searched until they are certain and in order.

    `token_bytes` has the bytes of every id that `expand` gives. The search ends uncertified after
    `limit` prefixes. Words that are equally probable to within EXACT may stand in any order.
    """
    return searched(finding(token_bytes, end_ids, k=k, batch=batch, limit=limit), expand)


def searched(looks: Looks[T], expand: Expand) -> T:
    """The result of a search, with what a model says."""
    return side_by_side({0: looks}, lambda asked: [expand(ids) for _, ids in asked])[0]


def side_by_side(looks: Mapping[int, Looks[T]], expand: ExpandTogether) -> dict[int, T]:
    """The results of several searches, which look at their prefixes together."""
    results: dict[int, T] = {}
    sent: dict[int, Tensor | None] = dict.fromkeys(looks)
    while sent:
        asked = []
        for place, after in sent.items():
            try:
                prefixes = looks[place].send(after)  # type: ignore[arg-type]
            except StopIteration as end:
                results[place] = end.value
            else:
                asked.append((place, [each.ids for each in prefixes]))
        answers = expand(asked) if asked else []
        sent = {place: after for (place, _), after in zip(asked, answers, strict=True)}
    return results


def finding(
    token_bytes: Sequence[bytes],
    end_ids: frozenset[int],
    *,
    k: int,
    batch: int = BATCH,
    limit: int = LIMIT,
) -> Looks[NextWords]:
    """The search of `next_words`, which asks for what it looks at."""
    check_k(k, token_bytes)
    search = Search(lexicon_of(tuple(token_bytes), end_ids), batch=batch, limit=limit)
    yield from search.begin()
    while True:
        certified, blocking = _blocking(search, k)
        if certified or not (yield from search.advance(blocking)):
            break
    best = _best(search, k)
    uppers = [search.upper(word) for word in best]
    return NextWords(
        words=tuple(
            NextWord(word.decode("utf-8", errors="replace"), search.words[word], upper)
            for word, upper in zip(best, uppers, strict=True)
        ),
        end_of_text=search.end_of_text,
        residual=search.residual,
        certified=certified,
    )


def _best(search: Search, count: int) -> list[bytes]:
    return heapq.nsmallest(count, search.words, key=lambda word: (-search.words[word], word))


def _blocking(search: Search, k: int) -> tuple[bool, list[Continuation]]:
    """Whether the k heaviest words are certain and in order, and what keeps them from being so."""
    best = _best(search, k)
    least = (search.words[best[-1]] if len(best) == k else 0.0) + EXACT
    gain, possible, blocking = search.gains(least)
    if possible:
        return False, blocking
    known = set(best)
    near = (w for w, low in search.words.items() if low + gain > least and w not in known)
    contested = [
        (heavier, lighter, excess)
        for heavier, lighter in [*pairwise(best), *((best[-1], word) for word in near)]
        if (excess := search.upper(lighter) - search.words[heavier] - EXACT) > 0
    ]
    blocking = [
        each
        for heavier, lighter, excess in contested
        for each in search.leading_to((heavier, lighter), excess)
    ]
    return not contested, blocking


def word_log_probability(
    expand: Expand,
    token_bytes: Sequence[bytes],
    end_ids: frozenset[int],
    *,
    word_ids: Sequence[int],
) -> float:
    """Corrected log-probability of a word along one way to write it in tokens.

    p(w|c) = product of p(s_i|c, s_<i) times P(B|c, w) / P(B|c): the word begins after the prompt
    and ends with its last token. The first token holds the white space before the word.
    """
    begins = lexicon_of(tuple(token_bytes), end_ids).begins
    if not word_ids or not begins[word_ids[0]]:
        raise SmallmError(f"no word begins with the tokens {list(word_ids)}: white space must")
    after = expand([word_ids[:end] for end in range(len(word_ids) + 1)]).double()
    scores = np.asarray(after.detach().log_softmax(1).cpu().numpy())
    path = sum(scores[place, number] for place, number in enumerate(word_ids))
    boundary = np.logaddexp.reduce(scores[:, begins], axis=1)
    return float(path + boundary[-1] - boundary[0])


def rank_at_most(
    expand: Expand,
    token_bytes: Sequence[bytes],
    end_ids: frozenset[int],
    *,
    word: str,
    ks: Sequence[int] = RANKS,
    batch: int = BATCH,
    limit: int = LIMIT,
) -> dict[int, bool | None]:
    """For each k, whether fewer than k words are at least as probable as `word`.

    Searches only until the bounds decide it; None where `limit` prefixes do not.
    """
    looks = _ranking(token_bytes, end_ids, word=word, ks=ks, batch=batch, limit=limit)
    return searched(looks, expand)


def _ranking(
    token_bytes: Sequence[bytes],
    end_ids: frozenset[int],
    *,
    word: str,
    ks: Sequence[int],
    batch: int,
    limit: int,
) -> Looks[dict[int, bool | None]]:
    search = Search(lexicon_of(tuple(token_bytes), end_ids), batch=batch, limit=limit)
    yield from search.begin()
    while True:
        sure, possible, blocking = _rivals_of(search, word.encode())
        decided = {k: True if possible < k else False if sure >= k else None for k in ks}
        if None not in decided.values() or not (yield from search.advance(blocking)):
            return decided


def _rivals_of(search: Search, gold: bytes) -> tuple[int, float, list[Continuation]]:
    """How many words are surely and may be as probable as one word, and what leaves it open."""
    upper = search.upper(gold) - EXACT
    low = search.words.get(gold, 0.0) - EXACT
    gain, unseen, blocking = search.gains(max(low, 0.0))
    sure = sum(1 for word, mass in search.words.items() if mass >= upper and word != gold)
    if low <= 0:
        return sure, math.inf, [*blocking, *search.leading_to([gold], math.inf)]
    near = [w for w, mass in search.words.items() if low - gain <= mass < upper and w != gold]
    close = [(word, excess) for word in near if (excess := search.upper(word) - low) >= 0]
    possible = sure + len(close) + (search.residual // low if unseen else 0)
    if not blocking:
        for word, excess in close:
            enough = min(excess, upper - search.words[word])
            blocking += search.leading_to((word, gold), enough)
    return sure, possible, blocking


def word_positions(
    texts: Sequence[str], count: int, *, context_words: int = 64
) -> list[tuple[str, str]]:
    """`count` words evenly spread over texts, each as (context, word): the same for every model.

    A context holds the `context_words` words before, or as many as there are; the first words of
    a text are left out.
    """
    words = [list(WORD.finditer(text)) for text in texts]
    places = [
        (row, at) for row, found in enumerate(words) for at in range(FEWEST_WORDS, len(found))
    ]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    pairs = []
    for row, at in (places[number] for number in chosen):
        found = words[row]
        start = found[max(at - context_words, 0)].start()
        pairs.append((texts[row][start : found[at - 1].end()], found[at].group()))
    return pairs
