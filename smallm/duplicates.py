"""Near duplicates: clusters of documents that share most of their word 5-grams.

MinHash signatures are rensa's. They are cut into bands, and documents that agree on a whole band
are compared. All is arrays, a few bytes a document, so that millions of documents fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray
from rensa import RMinHash

PERMUTATIONS = 128
SHINGLE = 5
SEED = 1
LARGEST_MISS = 0.02
ALL_PAIRS, NEIGHBOURS = 512, 32
HASH = np.dtype(np.uint64)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, of high entropy: 2**64 over the golden ratio

Signatures = NDArray[np.uint32]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of the texts' lower-cased word 5-grams, (texts, PERMUTATIONS)."""
    if not texts:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    hashes, offsets = ngrams(texts, SHINGLE)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def ngrams(texts: Sequence[str], length: int) -> tuple[Hashes, list[int]]:
    """A hash of each run of so many lower-cased words, text after text, and where each text begins.

    A text of fewer words has one run, filled up with empty words.
    """
    words: list[int] = []
    numbers = []
    known: dict[str, int] = {}
    for text in texts:
        split = text.lower().split()
        split += [""] * (length - len(split))
        for word in split:
            number = known.get(word)
            if number is None:
                number = known[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8"))
            words.append(number)
        numbers.append(len(split))
    stream = np.array(words, dtype=np.uint64)
    runs = np.array(numbers) - length + 1
    rolled = np.zeros(max(len(stream) - length + 1, 0), dtype=np.uint64)
    for place in range(length):
        rolled = (rolled ^ stream[place : place + len(rolled)]) * MULTIPLIER
    # none that reaches into the next text
    starts = np.repeat(np.cumsum(numbers) - numbers, runs)
    inside = np.arange(len(starts)) - np.repeat(np.cumsum(runs) - runs, runs)
    return rolled[starts + inside], [0, *np.cumsum(runs).tolist()]


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


def candidates(hashes: Hashes) -> Iterator[tuple[Places, Places]]:
    """Pairs (earlier, later) to compare among the documents whose hashes agree.

    All pairs, where at most ALL_PAIRS documents agree. Of more, as texts from one template do, each
    is compared with the first and with the NEIGHBOURS before it: some pairs are missed then.
    """
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    later = np.flatnonzero(ranked[1:] == ranked[:-1]) + 1
    first = np.searchsorted(ranked, ranked[later])
    agree = np.searchsorted(ranked, ranked[later], side="right") - first
    reach = np.where(agree <= ALL_PAIRS, later - first, np.minimum(later - first, NEIGHBOURS))
    far = later - first > reach
    if far.any():
        yield order[first[far]], order[later[far]]
    step = 1
    while len(later):
        yield order[later - step], order[later]
        step += 1
        more = reach >= step
        later, reach = later[more], reach[more]
