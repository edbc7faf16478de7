"""Source `stackoverflow`: questions with their answers, from `Posts.xml`, its .7z, or the hub.

Answers may stand before their question, and the largest dump is far larger than memory: posts wait
in a temporary database until their thread can be joined.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from smallm.documents import LARGEST_DOCUMENT, Draft, Dropped, Form, records
from smallm.documents.choice import Choice
from smallm.documents.elements import elements
from smallm.documents.markup import html_with_code
from smallm.documents.streams import Stream
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

DATASET = {"dataset": "HuggingFaceH4/stack-exchange-preferences"}
QUESTION, ANSWER = "1", "2"
ORPHANS = """
select count(*), min(site || ' post ' || id) from answer where not exists
(select * from question where site = answer.site and id = answer.parent)
"""
Thread = tuple[str, str, list[str]]
"""Place, title, the HTML of the question and its answers."""
TABLES = """
create table question (
    site text, id integer, accepted integer, title text, body text,
    primary key (site, id)
);
create table answer (
    site text, id integer, parent integer, score integer, body text, primary key (site, id)
);
"""
HEEDS = (*records.PLACES, "tags", "minimum_score")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "StackExchange: --path *Posts.xml or its .7z, or the hub (--tags, --minimum-score)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The dump's state, or the dataset's."""
    return records.fingerprint(settings, DATASET)


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Draft]:
    """Yields a document a question: title, text, then the answers, best first, code kept."""
    choice = dropped.choice("tag", settings.tags)
    found = records.records(settings, DATASET, dropped, readers={"posts.xml": _rows})
    if settings.path is None:
        threads = _hub_threads(found, settings, choice, dropped)
    else:
        threads = _dump_threads(found, settings, choice, dropped, scratch)
    for place, title, bodies in threads:
        parts: list[tuple[Form, str]] = [(str, title)]
        parts += [(html_with_code, body) for body in bodies]
        yield Draft(place, "stackoverflow", tuple(parts))


def _rows(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, records.Record]]:
    for place, row in elements(stream, dropped, "row"):
        size = sum(len(value) for value in row.attrib.values())
        if size > LARGEST_DOCUMENT:
            dropped.add(f"post over {LARGEST_DOCUMENT:,} characters", place)
        elif records.number_in(row.attrib, "Id") is None or row.get("Body") is None:
            dropped.add("row that is no post", place)
        else:
            yield place, dict(row.attrib)


def _dump_threads(
    rows: Iterator[tuple[str, records.Record]],
    settings: CorpusSettings,
    choice: Choice,
    dropped: Dropped,
    scratch: Path | None,
) -> Iterator[Thread]:
    with (
        tempfile.NamedTemporaryFile(prefix="smallm-posts-", dir=scratch) as file,
        closing(sqlite3.connect(file.name)) as posts,
    ):
        try:
            posts.executescript(f"pragma journal_mode=off; pragma synchronous=off; {TABLES}")
            for place, row in rows:
                reason = _store(posts, place.rpartition("#")[0], row, settings, choice)
                if reason:
                    dropped.add(reason, place)
            posts.execute("create index thread on answer (site, parent)")
            yield from _joined(posts)
            orphans, first = posts.execute(ORPHANS).fetchone()
        except sqlite3.Error as error:  # such as a full disk
            raise SmallmError(f"{file.name}: cannot be written: {error}") from error
    if orphans:
        dropped.add("answer whose question is not kept", first, orphans)


def _store(
    posts: sqlite3.Connection,
    site: str,
    row: records.Record,
    settings: CorpusSettings,
    choice: Choice,
) -> str | None:
    """Keeps a post, or says why not."""
    minimum = settings.minimum_score
    number = records.number_in(row, "Id")
    kind, score = row.get("PostTypeId"), records.number_in(row, "Score")
    if kind not in (QUESTION, ANSWER):
        return "post that is neither question nor answer"
    # tags first, so that one which only low-scored questions have is not called unknown
    if kind == QUESTION and not choice.keeps(_tags(row.get("Tags", ""))):
        return "not in --tags"
    if minimum is not None and (score is None or score < minimum):
        return "below --minimum-score"
    if kind == ANSWER:
        parent = records.number_in(row, "ParentId")
        values: tuple[Any, ...] = (site, number, parent, score or 0, row["Body"])
        posts.execute("insert or ignore into answer values (?, ?, ?, ?, ?)", values)
        return None
    accepted = records.number_in(row, "AcceptedAnswerId")
    values = (site, number, accepted, row.get("Title", ""), row["Body"])
    posts.execute("insert or ignore into question values (?, ?, ?, ?, ?)", values)
    return None


def _joined(posts: sqlite3.Connection) -> Iterator[Thread]:
    """Threads by site and the id of their question; the accepted answer first, then by score."""
    questions = posts.execute("select * from question order by site, id")
    for site, number, accepted, title, body in questions:
        answers = posts.execute(
            "select body from answer where site = ? and parent = ? "
            "order by id = ? desc, score desc, id",
            (site, number, accepted or 0),
        )
        bodies = [body, *(answer for (answer,) in answers)]
        yield f"{site} question {number}", title, bodies


def _tags(value: str) -> list[str]:
    """`<a><b>` or `|a|b|`, by the age of the dump."""
    return re.findall(r"[^<>|\s]+", value)


def _hub_threads(
    rows: Iterator[tuple[str, records.Record]],
    settings: CorpusSettings,
    choice: Choice,
    dropped: Dropped,
) -> Iterator[Thread]:
    """Rows that hold a question and a list of answers, as stack-exchange-preferences has them."""
    for place, row in rows:
        question = records.text_in(row, "question", "question_body", "body")
        if not question:
            dropped.add("row without a question", place)
            continue
        if settings.tags and "tags" not in row:
            raise SmallmError(
                f"--tags: the dataset has no tags, its columns are {', '.join(row)}; read a dump "
                "with --path"
            )
        listed = row.get("tags") or ()
        tags = _tags(listed) if isinstance(listed, str) else [str(each) for each in listed]
        if not choice.keeps(tags):
            dropped.add("not in --tags", place)
            continue
        answers = [each for each in row.get("answers") or () if isinstance(each, dict)]
        kept = [each for each in answers if _high_enough(each, settings.minimum_score)]
        if len(kept) < len(answers):
            dropped.add("below --minimum-score", place, len(answers) - len(kept))
        kept.sort(key=lambda each: (not each.get("selected"), -_score(each)))
        bodies = [records.text_in(each, "text", "body") for each in kept]
        title = records.text_in(row, "title", "question_title")
        yield place, title, [question, *bodies]


def _score(answer: records.Record) -> int:
    return records.number_in(answer, "pm_score") or records.number_in(answer, "score") or 0


def _high_enough(answer: records.Record, minimum: int | None) -> bool:
    return minimum is None or _score(answer) >= minimum
