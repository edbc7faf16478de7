"""Documents, and the registry of the sources that give them.

A source is one file in this folder and one line in SOURCES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from smallm.settings import CorpusSettings


@dataclass(frozen=True, slots=True)
class Document:
    """One text with an id, the name of its source and metadata."""

    id: str
    source: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Dropped:
    """What could not be used or was filtered out: counts per reason, with the first few places."""

    PLACES_KEPT = 20

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str, count: int = 1) -> None:
        """Counts what was dropped for a reason, at a place a person can find."""
        self.counts[reason] += count
        places = self.places.setdefault(reason, [])
        if len(places) < self.PLACES_KEPT:
            places.append(place)

    def merge(self, other: Dropped) -> None:
        """Adds the counts and places of another record (a worker's)."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            kept = self.places.setdefault(reason, [])
            kept.extend(other.places[reason][: self.PLACES_KEPT - len(kept)])

    def under(self, name: str) -> Dropped:
        """The same record with a name before each reason (a part of a mixture)."""
        named = Dropped()
        named.counts = Counter({f"{name}: {each}": n for each, n in self.counts.items()})
        named.places = {f"{name}: {each}": found for each, found in self.places.items()}
        return named

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Counts and places per reason, for the manifest."""
        return {
            reason: {"count": count, "places": self.places[reason]}
            for reason, count in sorted(self.counts.items())
        }


class Source(Protocol):
    """What each source file offers, as plain functions."""

    def describe(self) -> str:
        """Gives one line for `smallm corpus list`."""

    def fingerprint(self, settings: CorpusSettings) -> Mapping[str, str]:
        """Identifies the input cheaply (versions, paths with sizes and times): the cache key.

        Raises SmallmError when the settings do not fit the source or the input does not exist.
        """

    def read(
        self, settings: CorpusSettings, dropped: Dropped, *, workers: int
    ) -> Iterator[Document]:
        """Yields the documents in a stable order, counting in `dropped` all that is left out."""


SOURCES: dict[str, str] = {
    "docs": "smallm.documents.packages",
    "ml-text": "smallm.documents.ml_text",
    "stackoverflow": "smallm.documents.stackoverflow",
    "arxiv": "smallm.documents.arxiv",
    "reddit": "smallm.documents.reddit",
    "news": "smallm.documents.news",
    "folder": "smallm.documents.files",
    "hub": "smallm.documents.hub",
    "mixture": "smallm.documents.mixture",
}


def source(name: str) -> Source:
    """The source of that name; its parsers are imported only now."""
    return cast("Source", import_module(SOURCES[name]))
