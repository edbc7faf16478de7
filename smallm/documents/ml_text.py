"""Source `ml-text`: Wikipedia on machine learning, OpenML descriptions, course notes.

A path may hold all three: MediaWiki dumps and OpenML descriptions are told apart by their XML,
notes are PDF, HTML and Markdown. Without a path it is Wikipedia on the hub, by a list of titles,
or with `--dataset openml` the descriptions that OpenML's API gives.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from smallm.documents import LARGEST_DOCUMENT, Draft, Dropped, records
from smallm.documents.choice import Choice
from smallm.documents.elements import elements
from smallm.documents.markup import FRONT_MATTER, markdown_prose, without_fences
from smallm.documents.openml_api import OPENML, openml_fingerprint, openml_records
from smallm.documents.pieces import pieces
from smallm.documents.recoding import decoded, utf8
from smallm.documents.streams import Stream
from smallm.documents.wikitext import categories_in, wikitext_prose
from smallm.errors import SmallmError
from smallm.files import read_text
from smallm.settings import CorpusSettings

if TYPE_CHECKING:
    from lxml.etree import _Element

DATASET = {"dataset": "wikimedia/wikipedia", "dataset_config": "20231101.en"}
TOPICS = (
    "*machine learning*", "*artificial intelligence*", "*neural network*", "*deep learning*",
    "*natural language processing*", "*computer vision*", "*reinforcement learning*",
    "*statistical classification*", "*cluster analysis*", "*data mining*", "*language model*",
    "*computational linguistics*", "*speech recognition*", "*pattern recognition*",
)  # fmt: skip
"""Wikipedia's categories of machine learning and AI, the default."""
SHORTCODE = re.compile(r"\{\{[<%].*?[>%]\}\}", re.DOTALL)
LARGEST_PDF = 128 * 2**20
ARTICLES = "0"  # MediaWiki's namespace
HEEDS = (*records.PLACES, "categories", "titles")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "Wikipedia, OpenML, course notes: --path of .xml, .pdf, .html, .md, or the hub"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The files' state, or the dataset's, and that of the list of titles."""
    titles = "\n".join(sorted(_titles(settings))).encode()
    listed = {"titles": hashlib.sha256(titles).hexdigest()}
    if _from_openml(settings):
        return openml_fingerprint()
    return {**records.fingerprint(settings, DATASET), **listed}


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Draft]:
    """Yields a document an article, a description or a text of notes."""
    if settings.categories:
        choice = dropped.choice("category", settings.categories)
    else:  # the topics that ship need not all occur
        choice = Choice("category", () if settings.titles else TOPICS)
    titles, met = _titles(settings), set()
    if _from_openml(settings):
        found = openml_records(dropped)
    else:
        found = records.records(settings, DATASET, dropped, readers=READERS)
    for place, record in found:
        text = records.text_in(record, "text")
        title = records.text_in(record, "title")
        if record.get("kind") == "notes":
            if not text.strip():
                dropped.add("empty text", place)
            for number, piece in enumerate(pieces([text])):
                yield Draft(f"{place}#{number}", "ml-text", ((str, piece),))
            continue
        if record.get("kind") == "description":
            yield Draft(place, "ml-text", ((str, title), (description_prose, text)))
            continue
        met.add(title)
        in_category = bool(choice.wanted) and choice.keeps(_categories(record, settings))
        if not in_category and title not in titles:
            dropped.add("article outside --categories and --titles", f"{place} {title}")
            continue
        form = str if settings.path is None else wikitext_prose
        yield Draft(place, "ml-text", ((str, title), (form, text)))
    if settings.titles is not None:
        for title in sorted(titles - met):
            dropped.add("title in --titles that no article has", title)


def _from_openml(settings: CorpusSettings) -> bool:
    return settings.path is None and settings.dataset == OPENML


def _categories(record: records.Record, settings: CorpusSettings) -> list[str]:
    """The categories of an article: links in a dump's wikitext, on the hub a column of the row."""
    if settings.path is not None or not settings.categories:
        return categories_in(records.text_in(record, "text"))
    listed = record.get("categories")
    if listed is None:
        raise SmallmError(
            "the dataset has no categories: choose articles with --titles, a file of titles, or "
            "read a dump with --path"
        )
    return [listed] if isinstance(listed, str) else [str(each) for each in listed]


def _titles(settings: CorpusSettings) -> frozenset[str]:
    """The titles asked for, else those that ship; none where categories are asked for."""
    if settings.titles is not None:
        lines = read_text(settings.titles).splitlines()
    elif settings.categories:
        return frozenset()
    else:
        shipped = resources.files("smallm.documents") / "machine-learning-titles.txt"
        lines = shipped.read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip())


def _xml(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    """Articles of a MediaWiki dump, or an OpenML description."""
    found, told = False, dropped.counts.total()
    for place, element in elements(stream, dropped, "page", "data_set_description"):
        found = True
        if element.tag.endswith("page"):
            yield from _article(place, element, dropped)
        else:
            title, text = _child(element, "name"), _child(element, "description")
            yield place, {"kind": "description", "title": title, "text": text}
    if not found and dropped.counts.total() == told:
        dropped.add("XML that is neither a MediaWiki dump nor an OpenML description", stream.name)


def _article(place: str, page: _Element, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    title = _child(page, "title")
    if page.find("{*}redirect") is not None:
        dropped.add("redirect", f"{place} {title}")
    elif _child(page, "ns") not in ("", ARTICLES):
        dropped.add("page that is no article", f"{place} {title}")
    else:
        text = page.findtext("{*}revision/{*}text") or ""
        yield place, {"kind": "article", "title": title, "text": text}


def _child(element: _Element, name: str) -> str:
    return (element.findtext("{*}" + name) or "").strip()


def description_prose(text: str) -> str:
    """The prose of Markdown, as OpenML's descriptions and notes are written in."""
    return markdown_prose("".join(without_fences(text.splitlines(keepends=True))))


def _web_page(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    for place, record in records.web_page(stream, dropped):
        yield place, {"kind": "notes", **record}


def _markdown(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    readable = utf8(stream, dropped)
    content = records.whole(readable, dropped) if readable else None
    if content is not None:
        text = FRONT_MATTER.sub("", decoded(content, stream.name, dropped), count=1)
        yield stream.name, {"kind": "notes", "text": description_prose(SHORTCODE.sub("", text))}


def _pdf(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    """The text of a PDF's pages, hyphenation at line ends undone."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    content = records.whole(stream, dropped, largest=LARGEST_PDF)
    if content is None:
        return
    damage = (
        PyPdfError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        OSError,
        AssertionError,
        ArithmeticError,
    )  # what pypdf raises on damaged files
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is lost is counted below
    pages: list[str] = []
    size = 0
    try:
        for page in PdfReader(io.BytesIO(content)).pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > LARGEST_DOCUMENT:
                dropped.add(f"rest of a PDF of over {LARGEST_DOCUMENT:,} characters", stream.name)
                break
    except damage as error:
        dropped.add(
            "rest of a PDF that is damaged", f"{stream.name} page {len(pages) + 1}: {error}"
        )
    text = "\n\n".join(pages)
    yield stream.name, {"kind": "notes", "text": re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)}


READERS: Mapping[str, records.Reader] = {
    ".xml": _xml,
    "-pages-articles*.xml-p*": _xml,  # a shard as Wikimedia names it
    ".md": _markdown,
    ".markdown": _markdown,
    ".pdf": _pdf,
    ".html": _web_page,
    ".htm": _web_page,
}
