"""Source `news`: AG News, CC-News and their like, RSS and Atom files, folders of web pages."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator, Mapping

from smallm.documents import LARGEST_DOCUMENT, Draft, Dropped, records
from smallm.documents.markup import html_prose
from smallm.documents.streams import Stream, text_of
from smallm.settings import CorpusSettings

DATASET = {"dataset": "fancyzhx/ag_news"}
AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
TITLES = ("title", "headline")
TEXTS = ("text", "maintext", "body", "content", "article", "description", "summary")
BROKEN_ENTITY = re.compile(r"(?<![&\w])\s?#(\d{2,5});")  # " #36;": AG News lost the ampersand
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "news: --path of .csv, .jsonl, .rss, .atom, .xml or .html files, or the hub"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The files' state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(settings: CorpusSettings, dropped: Dropped, *, workers: int) -> Iterator[Draft]:
    """Yields a document an article: its title and its text."""
    choice = dropped.choice("category", settings.categories)
    for place, record in records.records(settings, DATASET, dropped, readers=READERS):
        text = records.text_in(record, *TEXTS)
        if not text:
            dropped.add("record without a text", place)
            continue
        categories = _categories(record)
        if choice.keeps(categories):
            title = records.text_in(record, *TITLES)
            about = {"categories": " ".join(categories)}
            yield Draft(place, "news", ((clean, title), (clean, text)), about)
        else:
            dropped.add("not in --categories", place)


def clean(text: str) -> str:
    """The text without remnants of HTML and of AG News' own escapes."""
    text = html.unescape(BROKEN_ENTITY.sub(r"&#\1;", text)).replace("\\", " ")
    if MARKUP.search(text):
        text = html_prose(text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


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
    csv.field_size_limit(LARGEST_DOCUMENT)
    with text_of(stream, "utf-8-sig") as text:
        rows = csv.reader(text)
        names = ["class", "title", "text"]
        number = 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                dropped.add(f"rest of a CSV file ({error})", f"{stream.name}#{number}")
                return
            if (
                number == 1
                and row
                and not row[0].strip().isdigit()
                and {each.strip().lower() for each in row} & {*TITLES, *TEXTS}
            ):
                names = [each.strip().lower() for each in row]
            elif row:
                yield f"{stream.name}#{number}", dict(zip(names, row, strict=False))


def _feed(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    """The entries of an RSS or Atom file; nothing that it links to is fetched."""
    import feedparser

    content = records.whole(stream, dropped)
    if content is None:
        return
    if refused := records.refusal(content[: records.PROLOGUE]):
        dropped.add(refused, stream.name)
        return
    parsed = feedparser.parse(  # of bytes alone it would look for a file of that name
        io.BytesIO(content), sanitize_html=False, resolve_relative_uris=False
    )
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
