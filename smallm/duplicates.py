"""Near duplicates: clusters of documents that share most of their word 5-grams.

MinHash signatures and banded look-up are datasketch's; shingles are hashed by xxhash.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

PERMUTATIONS = 128
SHINGLE = 5
SCHEME = "affine32"
Signatures = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures of the texts' lower-cased word 5-grams, (texts, PERMUTATIONS)."""
    empty = MinHash(num_perm=PERMUTATIONS, hashfunc=_hash, scheme=SCHEME)
    rows = np.empty((len(texts), PERMUTATIONS), dtype=np.uint64)
    for row, text in zip(rows, texts, strict=True):
        signature = empty.copy()
        signature.update_batch(_shingles(text))
        row[:] = signature.hashvalues
    return rows


def clusters(rows: Signatures, *, threshold: float) -> NDArray[np.int64]:
    """For each signature the first member of its cluster; similarity is followed transitively."""
    parent = np.arange(len(rows))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = int(parent[member])
        return member

    # above 0.9 datasketch finds no banding: look up more candidates, the check below decides
    lookup = MinHashLSH(threshold=min(threshold, 0.9), num_perm=PERMUTATIONS)
    for number, row in enumerate(rows):
        signature = MinHash(num_perm=PERMUTATIONS, hashvalues=row, hashfunc=_hash, scheme=SCHEME)
        for other in lookup.query(signature):
            if np.mean(rows[other] == row) >= threshold:
                one, two = root(other), root(number)
                parent[max(one, two)] = min(one, two)
        lookup.insert(number, signature)
    return np.array([root(member) for member in range(len(rows))], dtype=np.int64)


def _shingles(text: str) -> list[bytes]:
    words = text.lower().split()
    last = max(len(words) - SHINGLE + 1, 1)
    return [" ".join(words[start : start + SHINGLE]).encode("utf-8") for start in range(last)]


def _hash(shingle: bytes) -> int:
    return xxhash.xxh32_intdigest(shingle)
