"""Filters by name: what was wanted, what there was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from smallm.errors import SmallmError

VALUES_KEPT, VALUES_SHOWN = 100_000, 10


class Choice:
    """Keeps what has one of the wanted values; a pattern such as cs.* matches several."""

    def __init__(self, what: str, wanted: Sequence[str]) -> None:
        self.what = what
        self.wanted = {each.casefold(): each for each in wanted}
        self.found: set[str] = set()
        self.values: Counter[str] = Counter()

    def keeps(self, values: Iterable[str]) -> bool:
        """Whether one of the values is wanted; everything is where nothing was asked for."""
        if not self.wanted:
            return True
        kept = False
        for value in values:
            if value in self.values or len(self.values) < VALUES_KEPT:
                self.values[value] += 1
            folded = value.casefold()
            for pattern in self.wanted:
                if fnmatchcase(folded, pattern):
                    self.found.add(pattern)
                    kept = True
        return kept

    def merge(self, other: Choice) -> None:
        """Adds what another process found."""
        self.found |= other.found
        self.values.update(other.values)

    def check(self) -> None:
        """Raises SmallmError when a wanted value was nowhere: it names those that were."""
        missing = [name for pattern, name in self.wanted.items() if pattern not in self.found]
        if not missing or not self.values:
            return
        near = get_close_matches(missing[0], self.values, n=3)
        often = [value for value, _ in self.values.most_common(VALUES_SHOWN)]
        close = f"; did you mean {' or '.join(near)}? Frequent" if near else "; frequent"
        raise SmallmError(
            f"unknown {self.what} {missing[0]!r}: no record has it{close} are {', '.join(often)}"
        )
