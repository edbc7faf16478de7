"""Near duplicates: clusters of documents that share most of their word 5-grams.

MinHash signatures are rensa's. They are cut into bands, and documents that agree on a whole band
are compared. All is arrays, a few bytes a document, so that millions of documents fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray
from rensa import RMinHash

PERMUTATIONS = 128
SHINGLE = 5
SEED = 1
LARGEST_MISS = 0.02
HASH = np.dtype(np.uint64)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, of high entropy: 2**64 over the golden ratio

Signatures = NDArray[np.uint32]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of the texts' lower-cased word 5-grams, (texts, PERMUTATIONS)."""
    if not texts:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    hashes, offsets = _shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def _shingles(texts: Sequence[str]) -> tuple[Hashes, list[int]]:
    """The hashes of all texts' 5-grams, text after text, and where each text's begin."""
    words: list[int] = []
    ends = [0]
    known: dict[str, int] = {}
    for text in texts:
        for word in text.lower().split() or [""]:
            number = known.get(word)
            if number is None:
                number = known[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8"))
            words.append(number)
        ends.append(len(words))
    # A text shorter than a shingle is one shingle; no shingle reaches into the next text.
    stream = np.concatenate([np.array(words, dtype=np.uint64), np.zeros(SHINGLE, np.uint64)])
    bounds = np.array(ends)
    text_of = np.repeat(np.arange(len(texts)), np.diff(bounds))
    rolled = np.zeros(len(words), dtype=np.uint64)
    inside = np.arange(len(words))
    for step in range(SHINGLE):
        shorter = inside + step >= bounds[text_of + 1]
        part = np.where(shorter, np.uint64(0), stream[step : step + len(words)])
        rolled = (rolled ^ part) * MULTIPLIER
    number = np.maximum(np.diff(bounds) - SHINGLE + 1, 1)
    kept = inside - bounds[text_of] < number[text_of]
    return rolled[kept], [0, *np.cumsum(number).tolist()]


@cache
def banding(threshold: float) -> tuple[int, int]:
    """Bands and rows of each: the most rows that miss a pair at the threshold in 2 of 100 cases."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= LARGEST_MISS:
            return bands, rows
    return PERMUTATIONS, 1


def band_hashes(rows: Signatures, *, threshold: float) -> Hashes:
    """One hash of each band of each signature, (texts, bands)."""
    bands, width = banding(threshold)
    parts = rows[:, : bands * width].reshape(len(rows), bands, width).astype(np.uint64)
    hashes = np.zeros((len(rows), bands), dtype=np.uint64)
    for place in range(width):
        hashes = (hashes ^ parts[:, :, place]) * MULTIPLIER
    return hashes


def followers(
    pairs: Iterable[tuple[Places, Places]],
    signatures_at: Callable[[Places], Signatures],
    *,
    threshold: float,
) -> Places:
    """The documents that are near an earlier one; similarity is followed transitively.

    `pairs` are those to compare, such as the `candidates` of each band; `signatures_at` gives the
    signatures of some documents.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones, twos = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for one, two in pairs:
        for first in range(0, len(one), 65_536):
            pair = one[first : first + 65_536], two[first : first + 65_536]
            same = signatures_at(pair[0]) == signatures_at(pair[1])
            near = same.mean(axis=1) >= threshold
            ones.append(pair[0][near])
            twos.append(pair[1][near])
    # only those that are near another are nodes of the graph: few, of however many documents
    members, nodes = np.unique(np.concatenate([*ones, *twos]), return_inverse=True)
    one, two = np.split(nodes, 2)
    graph = coo_matrix((np.ones(len(one), bool), (one, two)), shape=(len(members),) * 2)
    _, labels = connected_components(graph, directed=False)
    _, first_of = np.unique(labels, return_index=True)
    return np.asarray(np.delete(members, first_of), dtype=np.int64)


def candidates(hashes: Hashes) -> tuple[Places, Places]:
    """Pairs (earlier, later) to compare among the documents whose hashes agree.

    Each is compared with the first of them and with the one before.
    """
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    agrees = ranked[1:] == ranked[:-1]
    later = np.flatnonzero(agrees) + 1
    before = later - 1
    opens = np.concatenate([[True], np.diff(later) > 1])[: len(later)]  # the second of a run
    first = np.maximum.accumulate(np.where(opens, before, 0))
    beside = first != before  # else both pairs are the same
    one = np.concatenate([order[first], order[before[beside]]])
    two = np.concatenate([order[later], order[later[beside]]])
    return one, two
