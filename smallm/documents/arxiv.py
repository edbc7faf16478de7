"""Source `arxiv`: titles and abstracts of papers, from the metadata snapshot or the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from smallm.documents import Draft, Dropped, records
from smallm.settings import CorpusSettings

DATASET = {"dataset": "gfissore/arxiv-abstracts-2021"}
WITHDRAWN = re.compile(r"\b(?:paper|article|manuscript|submission)\b.{0,40}\bwithdrawn\b", re.I)
LONGEST_WITHDRAWAL = 400  # characters: longer ones are about withdrawals, or hold an abstract
HEEDS = (*records.PLACES, "categories", "drop", "latex")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "arXiv abstracts: --path of the metadata snapshot, or the hub (--categories cs.LG)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The snapshot's state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Draft]:
    """Yields a document a paper: its title and its abstract without the hard line breaks."""
    choice = dropped.choice("category", settings.categories)
    readers = {".json": records.json_records, ".jsonl": records.json_records}
    forms = FORMS[settings.latex]
    for place, record in records.records(settings, DATASET, dropped, readers=readers):
        abstract = records.text_in(record, "abstract")
        if "abstract" not in record:
            dropped.add("record without an abstract", place)
            continue
        categories = _categories(record.get("categories"))
        if not choice.keeps(categories):
            dropped.add("not in --categories", place)
        elif "withdrawn" in settings.drop and _withdrawn(abstract):
            dropped.add("withdrawn paper", place)
        else:
            title = records.text_in(record, "title")
            yield Draft(place, "arxiv", ((forms[0], title), (forms[1], abstract)))


def _withdrawn(abstract: str) -> bool:
    return len(abstract) < LONGEST_WITHDRAWAL and bool(WITHDRAWN.search(abstract))


def _categories(value: object) -> list[str]:
    """Blank-separated names; the hub has a list of such strings."""
    listed = value if isinstance(value, list) else [value]
    return [name for each in listed if isinstance(each, str) for name in each.split()]


def flowing(text: str) -> str:
    """The text without hard line breaks."""
    return " ".join(text.split())


def paragraphs(abstract: str) -> str:
    """Lines joined; an indented line begins a paragraph, as arXiv writes them."""
    parts = re.split(r"\n(?=[ \t]+\S)|\n\s*\n", abstract.strip())
    return "\n".join(flowing(part) for part in parts)


def plain_title(text: str) -> str:
    """A title whose LaTeX became plain text."""
    return _normalized(flowing(text))


def plain_abstract(text: str) -> str:
    """An abstract whose LaTeX became plain text."""
    return _normalized(paragraphs(text))


FORMS = {"keep": (flowing, paragraphs), "normalize": (plain_title, plain_abstract)}
"""What is made of a title and of an abstract, by the setting `latex`."""


def _normalized(text: str) -> str:
    """LaTeX as plain text: accents, Greek and signs in Unicode, commands without their names."""
    from pylatexenc.latex2text import LatexNodes2Text

    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)  # it tells of every odd command
    try:
        plain = LatexNodes2Text(math_mode="text", strict_latex_spaces=False).latex_to_text(text)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return text  # cut-off commands: LaTeX as it stands is better than nothing
    if "%s" in plain and "%s" not in text:  # what it makes of a command without its arguments
        return text
    return re.sub(r"[ \t]+", " ", plain)
