"""Source `folder`: files of plain text, Markdown, HTML, JSON lines or CSV.

Files are read in blocks, so a huge one needs no more memory than a small one. A long text is cut
into documents at paragraph ends: otherwise one huge file could not have a held-out part.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import charset_normalizer

from smallm.documents import Document, Dropped
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

PIECE = 8_000  # characters of a document cut from a longer text
BLOCK = 65_536
LARGEST_HTML = 32 * 2**20  # parsed whole
LARGEST_FIELD = 64 * 2**20
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "a file or folder of .txt, .md, .html, .jsonl or .csv (--path, --text-field)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """Every file's path with its size and time of change."""
    content = hashlib.sha256()
    files = _files(_root(settings), Dropped())
    for path in files:
        status = path.stat()
        content.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return {"path": str(_root(settings)), "files": str(len(files)), "state": content.hexdigest()}


def read(settings: CorpusSettings, dropped: Dropped, *, workers: int) -> Iterator[Document]:
    """Yields the documents of all files in the order of their paths."""
    root = _root(settings)
    columns = _Columns(settings.text_field)
    found = False
    for path in _files(root, dropped):
        name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
        for number, text in enumerate(_texts(path, name, columns, dropped)):
            if not text.strip():
                dropped.add("empty text", name)
                continue
            found = True
            yield Document(f"{name}#{number}", "folder", _unicode(text, name, dropped))
    if columns.missing and not found:
        raise SmallmError(
            f"{root}: no record has a text column {settings.text_field!r}; "
            f"columns found: {', '.join(sorted(columns.missing)) or 'none'}"
        )


class _Columns:
    """The text column looked for, and the names of those found instead."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.missing: set[str] = set()

    def text(self, record: object, name: str, place: str, dropped: Dropped) -> str | None:
        """The text of a record; None, counted, when it has none."""
        if not isinstance(record, dict):
            dropped.add("record that is no object", f"{name}:{place}")
            return None
        if self.wanted not in record:
            self.missing |= {str(each) for each in record}
            dropped.add(f"record without a column {self.wanted!r}", f"{name}:{place}")
            return None
        value = record[self.wanted]
        if not isinstance(value, str):
            dropped.add(f"record whose {self.wanted!r} is no text", f"{name}:{place}")
            return None
        return value


def _root(settings: CorpusSettings) -> Path:
    if settings.path is None:
        raise SmallmError("source 'folder' needs --path, a file or a folder")
    root = settings.path.expanduser().resolve()
    if not root.exists():
        raise SmallmError(f"{root}: does not exist")
    return root


def _files(root: Path, dropped: Dropped) -> list[Path]:
    if root.is_file():
        return [root]
    found = []
    for folder, folders, names in os.walk(root):
        for hidden in [each for each in folders if each.startswith(".")]:
            dropped.add("hidden folder", str(Path(folder, hidden)))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in names:
            if name.startswith("."):
                dropped.add("hidden file", str(Path(folder, name)))
            elif Path(folder, name).is_file():
                found.append(Path(folder, name))
            else:
                dropped.add("neither file nor folder", str(Path(folder, name)))
    return sorted(found)


def _texts(path: Path, name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    """The texts of one file; what cannot be used is counted, never raised."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        dropped.add(f"unknown kind of file {path.suffix or '(no suffix)'}", name)
        return
    try:
        encoding = _encoding(path)
        if encoding is None:
            dropped.add("binary file", name)
        elif encoding == "empty":
            dropped.add("empty file", name)
        else:
            with path.open(encoding=encoding, errors="replace", newline="") as file:
                yield from reader(file, name, columns, dropped)
    except OSError as error:
        dropped.add(f"unreadable file ({os.strerror(error.errno or 0)})", name)


def _encoding(path: Path) -> str | None:
    """The encoding of a file, from its first block; None for binary ones."""
    with path.open("rb") as file:
        sample = file.read(BLOCK)
    if not sample:
        return "empty"
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return _guessed(sample)
    return "utf-8"


def _guessed(sample: bytes) -> str | None:
    """The likeliest old encoding; among about equal ones the most common, cp1252."""
    guesses = charset_normalizer.from_bytes(sample)
    best = guesses.best()
    if best is None:
        return None
    near = {guess.encoding for guess in guesses if guess.chaos < best.chaos + 0.05}
    return "cp1252" if "cp1252" in near else best.encoding


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
    buffer = ""
    while block := file.read(BLOCK):
        buffer += block
        while len(buffer) > 2 * PIECE:
            cut = _cut(buffer)
            yield buffer[:cut]
            buffer = buffer[cut:]
    while buffer:
        cut = _cut(buffer) if len(buffer) > PIECE else len(buffer)
        yield buffer[:cut]
        buffer = buffer[cut:]


def _cut(text: str) -> int:
    """Where a document may end: after a paragraph, a line or a word, in this order."""
    for end in ("\n\n", "\r\n\r\n", "\n", " "):
        place = text.rfind(end, PIECE // 2, PIECE)
        if place >= 0:
            return place + len(end)
    return PIECE


def _markdown(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    for piece in _plain(file, name, columns, dropped):
        inline = (token for token in parser.parse(piece) if token.type == "inline")
        yield "\n\n".join(_prose(token.children or []) for token in inline)


def _prose(children: list[Any]) -> str:
    kinds = {"softbreak": " ", "hardbreak": "\n"}
    kept = ("text", "code_inline", "softbreak", "hardbreak")
    return "".join(kinds.get(child.type, child.content) for child in children if child.type in kept)


def _html(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    import io

    from selectolax.lexbor import LexborHTMLParser

    page = file.read(LARGEST_HTML + 1)
    if len(page) > LARGEST_HTML:
        dropped.add(f"HTML file over {LARGEST_HTML // 2**20} MB", name)
        return
    tree = LexborHTMLParser(page)
    tree.strip_tags(["script", "style", "noscript", "template"])
    body = tree.body
    lines = body.text(separator="\n").splitlines() if body else []
    text = "\n".join(line.strip() for line in lines if line.strip())
    yield from _plain(io.StringIO(text), name, columns, dropped)


def _json_lines(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            dropped.add("line that is not JSON", f"{name}:{number}")
            continue
        text = columns.text(record, name, str(number), dropped)
        if text is not None:
            yield text


def _csv(file: IO[str], name: str, columns: _Columns, dropped: Dropped) -> Iterator[str]:
    csv.field_size_limit(LARGEST_FIELD)
    rows = csv.DictReader((line.replace("\0", "") for line in file), restkey="")
    number = 1
    try:
        for number, row in enumerate(rows, 2):
            text = columns.text(row, name, str(number), dropped)
            if text is not None:
                yield text
    except csv.Error as error:
        dropped.add(f"rest of a CSV file ({error})", f"{name}:{number}")


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
