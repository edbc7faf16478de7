"""Hashes of documents: 128 bits that follow from the text alone, and the order they give.

A hash is a row of two numbers whose bytes sort as the numbers do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_KEY = b"smallm tape 1"
HASH = np.dtype(">u8")  # two of them: bytes and numbers in the same order


def content_hash(content: bytes) -> bytes:
    """The hash of a text in UTF-8."""
    return hashlib.blake2b(content, key=HASH_KEY, digest_size=16).digest()


def distinct(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """The rows in the order of their hashes (documents, 2), the first of equal ones."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ranked = hashes[order]
    new = np.concatenate([[True], (ranked[1:] != ranked[:-1]).any(axis=1)])
    return np.asarray(order[new])


def rows_of(wanted: NDArray[Any], ranked: NDArray[Any]) -> NDArray[np.int64]:
    """Where hashes (n, 2) stand among ascending ones, all different; -1 where they do not."""
    if not len(ranked):
        return np.full(len(wanted), -1)
    rows = np.searchsorted(ranked[:, 0], wanted[:, 0])
    while True:  # past those that share the first half, of which there is hardly ever one
        inside = np.minimum(rows, len(ranked) - 1)
        passed = (ranked[inside, 0] == wanted[:, 0]) & (ranked[inside, 1] < wanted[:, 1])
        passed &= rows < len(ranked)
        if not passed.any():
            found = (ranked[inside] == wanted).all(axis=1)
            return np.where(found, inside, -1)
        rows = rows + passed


def places_of(hashes: NDArray[Any]) -> NDArray[np.float64]:
    """The place of each hash in [0, 1): its first 52 bits."""
    return np.asarray((hashes[:, 0].astype(np.uint64) >> np.uint64(12)) / 2**52)


def hexadecimal(row: NDArray[Any]) -> str:
    """A hash as text."""
    return np.asarray(row, HASH).tobytes().hex()


def tape_digest(hashes: Iterable[NDArray[Any]]) -> str:
    """Identifies a tape: the digest of its documents' hashes in tape order, in any parts."""
    content = hashlib.sha256()
    for part in hashes:
        content.update(np.asarray(part, HASH).tobytes())
    return content.hexdigest()
