"""Text in a file to tokens, as workers do it: this imports no more than they need."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smallm.tokens import END_ID, Ids, Tokenizer, load_tokenizer

OPENING = np.array([END_ID], dtype=np.uint16)


def encoded_stretch(
    folder: Path, text: Path, start: int, sizes: NDArray[np.int64]
) -> tuple[Ids, NDArray[np.int64], NDArray[np.float64]]:
    """Tokens of some documents, each opened by id 0; their numbers; nats of their spelling.

    `folder` holds the tokenizer; the documents are `sizes` bytes long and begin at byte `start`.
    """
    tokenizer = _opened(folder)
    with text.open("rb") as file:
        file.seek(start)
        texts = [file.read(size).decode("utf-8") for size in sizes]
    encoded = tokenizer.encode(texts)
    opened = [np.append(OPENING, tokenizer.predicted(ids)) for ids in encoded]
    spelling = [float(tokenizer.spelling_nll(ids).sum()) for ids in encoded]
    return np.concatenate(opened), np.array([len(ids) for ids in opened]), np.array(spelling)


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)
