"""Rolling windows: every id of a text is predicted exactly once, by a model of limited sight.

A model with a context limit gets the windows of lm-evaluation-harness with a context of one id:
no overlap, the last window right-aligned. A SmaLLM looks at the last few words of any long text,
so its pieces overlap and every id is predicted from all that the model can see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """What a model reads, and the gold ids of its last `len(gold)` places."""

    inputs: Sequence[int]
    gold: Sequence[int]


def rolling_windows(ids: Sequence[int], *, opening: int, size: int) -> Iterator[Window]:
    """Windows of at most `size` inputs; the first id is predicted from `opening`.

    The last of several windows is filled up with ids before it, as far as it has room.
    """
    text = [opening, *ids]
    for start in range(0, len(ids), size):
        end = min(start + size, len(ids))
        yield Window(text[max(end - size, 0) : end], ids[start:end])


def overlapping_windows(
    ids: Sequence[int], *, opening: int, size: int, sight: int, ends_word: NDArray[np.bool_]
) -> Iterator[Window]:
    """Windows of `size` predicted ids, each with the `sight` last words of the text before it.

    `ends_word` marks the ids that are or end one of the words that the model sees.
    """
    text = [opening, *ids]
    seen = np.concatenate([[True], ends_word])
    for start in range(0, len(ids), size):
        end = min(start + size, len(ids))
        words = np.flatnonzero(seen[: start + 1])
        first = int(words[-sight]) if len(words) > sight else 0
        yield Window(text[first:end], ids[start:end])
