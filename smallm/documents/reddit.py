"""Source `reddit`: comments of the monthly dumps (`RC_*.zst`) or of a hub dataset."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from smallm.documents import Draft, Dropped, records
from smallm.documents.choice import Choice
from smallm.documents.markup import markdown_prose, without_fences
from smallm.settings import CorpusSettings

DATASET: Mapping[str, str] = {}  # the public ones come and go: --dataset must name one
# The dumps have no ending but that of their compression: RC_2015-01.zst.
READERS = dict.fromkeys((".json", ".jsonl", ".ndjson", "rc_????-??"), records.json_records)
GONE = frozenset({"[deleted]", "[removed]"})
BOT = re.compile(r"(?:^|[_-])[Bb]ot$|[a-z]Bot$|^AutoModerator$|^AutoMod")
QUOTED = re.compile(r"^\s*(?:>|&gt;)", re.M)
BOT_SAYS = re.compile(r"\bI(?:.| a)m a bot\b|\bthis action was performed automatically\b", re.I)
HEEDS = (*records.PLACES, "subreddits", "minimum_score", "drop")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "Reddit comments: --path RC_*.zst, or --dataset (--subreddits, --minimum-score)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The dump's state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Draft]:
    """Yields a document a comment: its prose, without quoted parents."""
    choice = dropped.choice("subreddit", settings.subreddits)
    for place, record in records.records(settings, DATASET, dropped, readers=READERS):
        body = record.get("body")
        if not isinstance(body, str):
            dropped.add("record without a body", place)
            continue
        reason = _reason(record, body.strip(), choice, settings)
        if reason:
            dropped.add(reason, place)
            continue
        form = prose if "quotes" in settings.drop else prose_with_quotes
        if form is prose and QUOTED.search(body):
            dropped.add("quoted lines, cut out of a comment", place)
        yield Draft(place, "reddit", ((form, body),))


def _reason(
    record: records.Record, body: str, choice: Choice, settings: CorpusSettings
) -> str | None:
    """Why a comment is left out; None when it stays."""
    if not choice.keeps([records.text_in(record, "subreddit")]):
        return "not in --subreddits"
    if "removed" in settings.drop and body in GONE:
        return "deleted or removed comment"
    author = records.text_in(record, "author")
    if "bots" in settings.drop and (BOT.search(author) or BOT_SAYS.search(body)):
        return "comment of a bot"
    if (minimum := settings.minimum_score) is not None:
        score = records.number_in(record, "score")
        if score is None or score < minimum:
            return "below --minimum-score"
    return None


def prose(body: str) -> str:
    """The prose of a comment's Markdown: entities resolved, quoted lines and code left out."""
    lines = html.unescape(body).splitlines(keepends=True)
    own = [line for line in lines if not line.lstrip().startswith(">")]
    return markdown_prose("".join(without_fences(own)))


def prose_with_quotes(body: str) -> str:
    """The same with the quoted lines."""
    return markdown_prose("".join(without_fences(html.unescape(body).splitlines(keepends=True))))
