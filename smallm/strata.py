"""Stratified order: even shares of rare-word patterns on small corpora.

A document's stratum is its third by share of words seen at most twice in the corpus, its third by
share of words with digits or capitals, and its tenth by length. Within a stratum documents are
ranked by hash and spread evenly over [0, 1), with an offset that follows from the stratum's first
hash, so that small strata do not all fall on the same side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

RARE = 2  # a word seen at most this often in the corpus


def stratified_places(texts: Sequence[str], hashes: Sequence[str]) -> NDArray[np.float64]:
    """The place of each document in [0, 1), fixed by this set of documents."""
    table = strata(texts)
    order = np.argsort(np.array(hashes))
    places = np.empty(len(hashes))
    by_stratum = pd.Series(np.arange(len(order)), index=order).groupby(
        [table.loc[order, column].to_numpy() for column in table.columns]
    )
    for _, ranks in by_stratum:
        members = ranks.index.to_numpy()
        offset = int(hashes[members[0]][-8:], 16) / 16**8
        places[members] = ((np.arange(len(members)) + offset) / len(members)) % 1
    return places


def strata(texts: Sequence[str]) -> pd.DataFrame:
    """For each document its class of rare words, of marked words and of length."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
    rare, marked, length = [], [], []
    for text in texts:
        words = text.split()
        size = max(len(words), 1)
        rare.append(sum(counts[word] <= RARE for word in words) / size)
        marked.append(sum(not (word.isalpha() and word.islower()) for word in words) / size)
        length.append(len(text))
    return pd.DataFrame(
        {"rare": _class(rare, 3), "marked": _class(marked, 3), "length": _class(length, 10)}
    )


def _class(values: Sequence[float], number: int) -> NDArray[np.int64]:
    ranks = pd.Series(values).rank(method="average", pct=True).to_numpy()
    return np.minimum((ranks * number).astype(np.int64), number - 1)
