"""Source `news`: AG News, CC-News and their like, RSS and Atom files, folders of web pages."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from smallm.documents import LARGEST_DOCUMENT, Draft, Dropped, records
from smallm.documents.elements import PROLOGUE, refusal
from smallm.documents.markup import html_prose
from smallm.documents.recoding import decoded, utf8
from smallm.documents.streams import Stream
from smallm.documents.tables import rows
from smallm.settings import CorpusSettings

DATASET = {"dataset": "fancyzhx/ag_news"}
AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
TITLES = ("title", "headline")
TEXTS = ("text", "maintext", "body", "content", "article", "description", "summary")
BROKEN_ENTITY = re.compile(r"(?<![&\w])\s?#(\d{2,5});")  # " #36;": AG News lost the ampersand
MARKUP = re.compile(
    r"</?(?:a|b|i|u|p|em|br|hr|div|img|pre|sub|sup|font|span|strong|small|code|cite|blockquote|"
    r"[uod]l|li|d[td]|h[1-6]|table|t[rdh]|tbody|thead|section|article|figure|script|style)"
    r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>]+))*\s*/?>",
    re.IGNORECASE,
)
HEEDS = (*records.PLACES, "categories")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "news: --path of .csv, .jsonl, .rss, .atom, .xml or .html files, or the hub"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The files' state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Draft]:
    """Yields a document an article: its title and its text."""
    choice = dropped.choice("category", settings.categories)
    for place, record in records.records(settings, DATASET, dropped, readers=READERS):
        text = records.text_in(record, *TEXTS)
        if "subreddit" in record:
            dropped.add("comment of Reddit: it has a source of its own", place)
            continue
        if not text:
            dropped.add("record without a text", place)
            continue
        categories = _categories(record)
        if choice.keeps(categories):
            form = clean_ag_news if "class" in record or "label" in record else clean
            title = records.text_in(record, *TITLES)
            yield Draft(place, "news", ((form, title), (form, text)))
        else:
            dropped.add("not in --categories", place)


def clean(text: str) -> str:
    """The text without remnants of HTML."""
    text = html.unescape(text)
    if MARKUP.search(text):
        text = html_prose(text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def clean_ag_news(text: str) -> str:
    """The same for AG News, which has escapes of its own: "\\" for a line end, "#36;" for "$"."""
    return clean(BROKEN_ENTITY.sub(r"&#\1;", text).replace("\\", " "))


def _categories(record: records.Record) -> list[str]:
    """AG News' class by name and number, or what else the record calls its category."""
    label = records.number_in(record, "label")
    number = records.number_in(record, "class") if label is None else label + 1
    if number is not None and 1 <= number <= len(AG_NEWS):
        return [AG_NEWS[number - 1], str(number)]
    named = records.text_in(record, "category", "section")
    tags = record.get("tags")
    listed = [str(each) for each in tags] if isinstance(tags, list) else []
    return [named, *listed] if named else listed


def _csv(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    """Rows by the names in the header; without one, AG News' class, title and text."""
    text = utf8(stream, dropped)
    if text is None:
        return
    lines = (
        decoded(line + (b"" if text.cut else b"\n"), f"{stream.name}#{number}", dropped)
        for number, line in text.lines(LARGEST_DOCUMENT)
    )
    names = ["class", "title", "text"]
    for number, row in enumerate(rows(lines, stream.name, dropped, columns=TEXTS, headed=False), 1):
        lowered = [each.strip().lower() for each in row]
        if number == 1 and {*lowered} & {*TITLES, *TEXTS} and not lowered[0].isdigit():
            names = lowered
        elif row:
            yield f"{stream.name}#{number}", dict(zip(names, row, strict=False))


def _feed(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    """The entries of an RSS or Atom file; nothing that it links to is fetched."""
    import feedparser

    content = records.whole(stream, dropped)
    if content is None:
        return
    if refused := refusal(content[:PROLOGUE]):
        dropped.add(refused, stream.name)
        return
    try:
        parsed = feedparser.parse(  # of bytes alone it would look for a file of that name
            io.BytesIO(content), sanitize_html=False, resolve_relative_uris=False
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        dropped.add("feed that does not parse", f"{stream.name}: {error}")
        return
    if not parsed.version:
        dropped.add("XML file that is no RSS or Atom feed", stream.name)
    elif parsed.bozo:
        dropped.add("feed that is damaged, read as far as possible", stream.name)
    for number, entry in enumerate(parsed.entries, 1):
        longest = max(
            [
                entry.get("summary", ""),
                *(each.get("value", "") for each in entry.get("content", ())),
            ],
            key=len,
        )
        tags = [tag.term for tag in entry.get("tags", ()) if tag.get("term")]
        yield (
            f"{stream.name}#{number}",
            {"title": entry.get("title", ""), "text": longest, "tags": tags},
        )


READERS: Mapping[str, records.Reader] = {
    ".csv": _csv,
    ".jsonl": records.json_records,
    ".json": records.json_records,
    ".rss": _feed,
    ".atom": _feed,
    ".xml": _feed,
    ".html": records.web_page,
    ".htm": records.web_page,
}
