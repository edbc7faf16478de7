"""Source `arxiv`: titles and abstracts of papers, from the metadata snapshot or the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from smallm.documents import Document, Dropped, records
from smallm.settings import CorpusSettings

DATASET = {"dataset": "gfissore/arxiv-abstracts-2021"}
WITHDRAWN = re.compile(r"\b(?:paper|article|manuscript|submission)\b.{0,40}\bwithdrawn\b", re.I)
LONGEST_WITHDRAWAL = 400  # characters: longer ones are about withdrawals, or hold an abstract


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "arXiv abstracts: --path of the metadata snapshot, or the hub (--categories cs.LG)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The snapshot's state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(settings: CorpusSettings, dropped: Dropped, *, workers: int) -> Iterator[Document]:
    """Yields a document a paper: its title and its abstract without the hard line breaks."""
    choice = records.Choice("category", settings.categories)
    readers = {".json": records.json_records, ".jsonl": records.json_records}
    papers = 0
    for place, record in records.records(settings, DATASET, dropped, readers=readers):
        abstract = records.text_in(record, "abstract")
        if "abstract" not in record:
            dropped.add("record without an abstract", place)
            continue
        papers += 1
        categories = _categories(record.get("categories"))
        if not choice.keeps(categories):
            dropped.add("not in --categories", place)
        elif len(abstract) < LONGEST_WITHDRAWAL and WITHDRAWN.search(abstract):
            dropped.add("withdrawn paper", place)
        else:
            parts = [_flowing(records.text_in(record, "title")), _paragraphs(abstract)]
            if settings.latex == "normalize":
                parts = [_normalized(part) for part in parts]
            yield from records.document(
                "arxiv", place, parts, dropped, categories=" ".join(categories)
            )
    if papers:
        choice.check()


def _categories(value: object) -> list[str]:
    """Blank-separated names; the hub has a list of such strings."""
    listed = value if isinstance(value, list) else [value]
    return [name for each in listed if isinstance(each, str) for name in each.split()]


def _flowing(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(abstract: str) -> str:
    """Lines joined; an indented line begins a paragraph, as arXiv writes them."""
    parts = re.split(r"\n(?=[ \t]+\S)|\n\s*\n", abstract.strip())
    return "\n".join(_flowing(part) for part in parts)


def _normalized(text: str) -> str:
    """LaTeX as plain text: accents, Greek and signs in Unicode, commands without their names."""
    from pylatexenc.latex2text import LatexNodes2Text
    from pylatexenc.latexwalker import LatexWalkerError

    try:
        plain = LatexNodes2Text(math_mode="text", strict_latex_spaces=False).latex_to_text(text)
    except (LatexWalkerError, ValueError, IndexError, RecursionError):
        return text
    return re.sub(r"[ \t]+", " ", plain)
