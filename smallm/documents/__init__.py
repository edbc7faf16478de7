"""Documents, and the registry of the sources that give them.

A source is one file in this folder and one line in SOURCES.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from smallm.documents.choice import Choice
from smallm.errors import SmallmError

if TYPE_CHECKING:
    from smallm.settings import CorpusSettings

LARGEST_DOCUMENT = 16 * 2**20  # bytes, also of one record as it stands in a dump


@dataclass(frozen=True, slots=True)
class Document:
    """One text with an id and the name of its source."""

    id: str
    source: str
    text: str


Form = Callable[[str], str]
"""What makes prose of a raw text; a function of a module, so that workers find it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A document whose raw parts are still to be cleaned, which is work for all processors."""

    id: str
    source: str
    parts: tuple[tuple[Form, str], ...]

    def finished(self, dropped: Dropped) -> Document | None:
        """The clean parts, a blank line between them; None, counted, when they are blank."""
        clean = (form(text).strip() for form, text in self.parts)
        text = "\n\n".join(part for part in clean if part)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            dropped.add("lone surrogates, replaced", self.id)
            text = text.encode("utf-8", "replace").decode("utf-8")
        if not text:
            dropped.add("empty text", self.id)
            return None
        return Document(self.id, self.source, text)


def finished(items: Iterable[Document | Draft], dropped: Dropped) -> Iterator[Document]:
    """The documents of a source, cleaned in this process."""
    for item in items:
        document = item.finished(dropped) if isinstance(item, Draft) else item
        if document is not None:
            yield document


class Dropped:
    """What could not be used or was filtered out: counts per reason, with the first few places."""

    PLACES_KEPT = 20

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self.choices: dict[str, Choice] = {}

    def choice(self, what: str, wanted: Sequence[str]) -> Choice:
        """A filter that is checked when everything has been read."""
        return self.choices.setdefault(what, Choice(what, wanted))

    def check(self) -> None:
        """Raises SmallmError when something that was asked for by name was nowhere."""
        for choice in self.choices.values():
            choice.check()

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
        for what, choice in other.choices.items():
            self.choice(what, list(choice.wanted.values())).merge(choice)

    def under(self, name: str) -> Dropped:
        """The same record with a name before each reason (a part of a mixture)."""
        named = Dropped()
        named.counts = Counter({f"{name}: {each}": n for each, n in self.counts.items()})
        named.places = {f"{name}: {each}": found for each, found in self.places.items()}
        named.choices = {f"{what} for {name}": choice for what, choice in self.choices.items()}
        return named

    def below(self, folder: str) -> Dropped:
        """The same record with a folder before each place."""
        moved = Dropped()
        moved.counts, moved.choices = self.counts, self.choices
        moved.places = {
            reason: [f"{folder}/{place}" for place in found]
            for reason, found in self.places.items()
        }
        return moved

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Counts and places per reason, for the manifest."""
        return {
            reason: {"count": count, "places": self.places[reason]}
            for reason, count in sorted(self.counts.items())
        }


class Source(Protocol):
    """What each source file offers, as plain functions."""

    HEEDS: Sequence[str]
    """The settings among OWN_TO_SOME that it heeds; others are an error with it."""

    def describe(self) -> str:
        """Gives one line for `smallm corpus list`."""

    def fingerprint(self, settings: CorpusSettings) -> Mapping[str, str]:
        """Identifies the input cheaply (versions, paths with sizes and times): the cache key.

        Raises SmallmError when the settings do not fit the source or the input does not exist.
        """

    def read(
        self,
        settings: CorpusSettings,
        dropped: Dropped,
        *,
        workers: int,
        scratch: Path | None = None,
    ) -> Iterator[Document | Draft]:
        """Yields the documents in a stable order, counting in `dropped` all that is left out.

        What does not fit into memory waits in the folder `scratch`, by default the system's.
        """


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


OWN_TO_SOME = (
    *("path", "text_field", "dataset", "dataset_config", "dataset_split"),
    *("categories", "titles", "tags", "subreddits", "minimum_score", "drop", "latex"),
)
"""Settings that only some sources heed."""


def check_heeded(settings: CorpusSettings) -> None:
    """Raises SmallmError for a setting that the source would ignore."""
    heeded = source(settings.source).HEEDS
    for name in OWN_TO_SOME:
        given = getattr(settings, name)
        if name not in heeded and given != type(settings).model_fields[name].default:
            known = ", ".join(map(flag, heeded)) or "none"
            raise SmallmError(
                f"{flag(name)} has no effect on source {settings.source!r}, which heeds: {known}"
            )


def flag(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def source(name: str) -> Source:
    """The source of that name; its parsers are imported only now."""
    return cast("Source", import_module(SOURCES[name]))
