"""Source `folder`: files of plain text, Markdown, HTML, JSON lines or CSV.

Files are read in blocks, so a huge one needs no more memory than a small one. A long text is cut
into documents at paragraph ends: otherwise one huge file could not have a held-out part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

from upath import UPath

from smallm.documents import Document, Dropped, paths
from smallm.documents.encodings import encoding_of
from smallm.documents.markup import FRONT_MATTER, html_prose, markdown_prose, without_fences
from smallm.documents.paths import files_below, name_of, root_of
from smallm.documents.pieces import pieces
from smallm.documents.tables import rows
from smallm.settings import CorpusSettings

MARKDOWN_PIECE = 2**20  # parsed at once
BLOCK = 65_536
LARGEST_HTML = 32 * 2**20  # parsed whole
LARGEST_LINE = 64 * 2**20  # of JSON lines or CSV

fingerprint = paths.fingerprint
HEEDS = ("path", "text_field")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "a file or folder of .txt, .md, .html, .jsonl or .csv (--path, --text-field)"


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Document]:
    """Yields the documents of all files in the order of their paths."""
    root = root_of(settings)
    columns = _Columns(settings.text_field, dropped)
    for path in files_below(root, dropped):
        name = name_of(path, root)
        said, number = dropped.counts.total(), -1
        for number, text in enumerate(_texts(path, name, columns, dropped)):
            if not text.strip():
                dropped.add("empty text", name)
                continue
            yield Document(f"{name}#{number}", "folder", _unicode(text, name, dropped))
        if number < 0 and dropped.counts.total() == said:
            dropped.add("file without a text", name)


class _Columns:
    """The text column looked for; when no record has it, those found instead are named."""

    def __init__(self, wanted: str, dropped: Dropped) -> None:
        self.wanted = wanted
        self.choice = dropped.choice("text column", [wanted])

    def text(self, record: object, place: str, dropped: Dropped) -> str | None:
        """The text of a record; None, counted, when it has none."""
        if not isinstance(record, dict):
            dropped.add("record that is no object", place)
            return None
        self.choice.keeps(str(each) for each in record)
        if self.wanted not in record:
            dropped.add(f"record without a column {self.wanted!r}", place)
            return None
        value = record[self.wanted]
        if not isinstance(value, str):
            dropped.add(f"record whose {self.wanted!r} is no text", place)
            return None
        return value


def _texts(path: Path | UPath, name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    """The texts of one file; what cannot be used is counted, never raised."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        dropped.add(f"unknown kind of file {path.suffix or '(no suffix)'}", name)
        return
    try:
        if not path.stat().st_size:
            dropped.add("empty file", name)
            return
        encoding = encoding_of(path)
        if encoding is None:
            dropped.add("binary file", name)
            return
        with path.open(encoding=encoding, errors="replace", newline="") as file:
            yield from reader(file, name, columns, dropped)
    except OSError as error:
        dropped.add(f"unreadable file ({error.strerror})", name)


def _unicode(text: str, name: str, dropped: Dropped) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold; replacements are counted."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        dropped.add("lone surrogates, replaced", name)
        text = text.encode("utf-8", "replace").decode("utf-8")
    if "\ufffd" in text:
        dropped.add("bytes outside the file's encoding, replaced", name)
    return text


def _plain(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    return pieces(iter(lambda: file.read(BLOCK), ""))


def _markdown(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    lines = without_fences(line for _, line in _lines(file, name, dropped))
    for number, piece in enumerate(pieces(lines, MARKDOWN_PIECE)):
        text = piece if number else FRONT_MATTER.sub("", piece, count=1)
        yield from pieces([markdown_prose(text)])


def _html(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    page = file.read(LARGEST_HTML + 1)
    if len(page) > LARGEST_HTML:
        dropped.add(f"HTML file over {LARGEST_HTML // 2**20} MB", name)
        return
    yield from pieces([html_prose(page)])


def _lines(file: IO[str], name: str, dropped: Dropped) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file, without those too long to be held in memory."""
    number = 0
    whole = True
    while line := file.readline(LARGEST_LINE):
        starts, whole = whole, line.endswith(("\n", "\r")) or len(line) < LARGEST_LINE
        number += starts
        if starts and whole:
            yield number, line
        elif starts:
            dropped.add(f"line over {LARGEST_LINE:,} characters", f"{name}:{number}")


def _json_lines(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    for number, line in _lines(file, name, dropped):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            dropped.add("line that is not JSON", f"{name}:{number}")
            continue
        text = columns.text(record, f"{name}:{number}", dropped)
        if text is not None:
            yield text


def _csv(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    lines = (line for _, line in _lines(file, name, dropped))
    found = rows(lines, name, dropped, columns={columns.wanted.lower()})
    header = next(found, [])
    for number, row in enumerate(found, 2):
        record = dict(zip_longest(header, row[: len(header)]))
        text = columns.text(record, f"{name}:{number}", dropped) if row else None
        if text is not None:
            yield text


Reader = Callable[[IO[str], str, _Columns, Dropped], Iterator[str]]
READERS: dict[str, Reader] = {
    ".txt": _plain,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
