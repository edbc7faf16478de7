"""Source `mixture`: several sources in one corpus, by weight, from a YAML file.

Each part is a source with its settings, and the weight of its bytes in the corpus:

    - {source: arxiv, path: arxiv.json, categories: [cs.LG], weight: 2}
    - {source: stackoverflow, path: Posts.xml, weight: 1, name: python-questions}

A weight leaves documents out of the parts that have too many; it never repeats one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import yaml

from smallm.documents import OWN_TO_SOME, Document, Draft, Dropped, check_heeded, source
from smallm.errors import SmallmError
from smallm.files import read_text
from smallm.settings import CorpusSettings, validated

OWN = ("source", *OWN_TO_SOME)


@dataclass(frozen=True)
class Part:
    """One source of a mixture; its documents carry the name."""

    name: str
    weight: float
    settings: CorpusSettings


HEEDS = ("path",)


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "several sources by weight: --path mixture.yaml"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """That of every part, with its weight."""
    found = {}
    for part in parts(settings):
        with _named(settings, part):
            state = dict(source(part.settings.source).fingerprint(part.settings))
        given = part.settings.model_dump_json(include=set(OWN))
        found[part.name] = f"{part.weight:g} {given} {state}"
    return found


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Document | Draft]:
    """Yields the documents of one part after another, under the part's name."""
    for part in parts(settings):
        own = Dropped()
        documents = source(part.settings.source).read(
            part.settings, own, workers=workers, scratch=scratch
        )
        try:
            with _named(settings, part):
                for document in documents:
                    yield replaced(document, id=f"{part.name}/{document.id}", source=part.name)
        finally:  # also where only the first documents were asked for
            dropped.merge(own.under(part.name))


@contextmanager
def _named(settings: CorpusSettings, part: Part) -> Iterator[None]:
    """Names the file and the part in what goes wrong inside."""
    try:
        yield
    except SmallmError as error:
        raise SmallmError(f"{settings.path}, part {part.name}: {error}") from None


def weights(settings: CorpusSettings) -> dict[str, float]:
    """The weight of each part by its name; empty where the source is no mixture."""
    if settings.source != "mixture":
        return {}
    return {part.name: part.weight for part in parts(settings)}


def parts(settings: CorpusSettings) -> list[Part]:
    """The parts in the file; raises SmallmError that names the file and the part."""
    if settings.path is None:
        raise SmallmError("source 'mixture' needs --path, a YAML file with its parts")
    path = Path(settings.path)
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise SmallmError(f"{settings.path}: is not YAML: {error}") from None
    if not isinstance(content, list) or len(content) < 2:
        raise SmallmError(f"{settings.path}: must be a list of two parts or more, each a source")
    found = [
        _part(values, f"{settings.path}, part {number}", path.parent)
        for number, values in enumerate(content, 1)
    ]
    names = [part.name for part in found]
    if len(set(names)) < len(names):
        raise SmallmError(
            f"{settings.path}: parts need different names, found {', '.join(names)}; give `name:`"
        )
    return found


def _part(values: Any, place: str, folder: Path) -> Part:
    if not isinstance(values, dict) or "source" not in values:
        raise SmallmError(f"{place}: must be a mapping with a `source`")
    own = {name: value for name, value in values.items() if name not in ("weight", "name")}
    unknown = sorted(set(own) - set(OWN))
    if unknown:
        raise SmallmError(f"{place}: unknown {unknown[0]!r}; known: weight, name, {', '.join(OWN)}")
    if own["source"] == "mixture":
        raise SmallmError(f"{place}: a mixture cannot hold a mixture")
    weight = values.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise SmallmError(f"{place}: weight is {weight!r}: must be a number above 0")
    label = str(values.get("name", own["source"]))
    if not re.fullmatch(r"[A-Za-z0-9 ._-]{1,60}", label):  # it becomes part of names in MLflow
        raise SmallmError(f"{place}: name is {label!r}: letters, digits, blanks, ._- are allowed")
    for name in ("path", "titles"):  # beside the file, unless absolute
        if isinstance(own.get(name), str) and "://" not in own[name]:
            own[name] = folder / Path(own[name]).expanduser()
    try:
        settings = validated(CorpusSettings, own)
        check_heeded(settings)
    except SmallmError as error:
        raise SmallmError(f"{place}: {error}") from None
    return Part(label, float(weight), settings)
