"""What the dump sources share: records from JSON lines, XML and the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import orjson

from smallm.documents import LARGEST_DOCUMENT, Dropped, hub, paths
from smallm.documents.recoding import decoded, utf8
from smallm.documents.streams import Stream, streams
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

LARGEST_NUMBER = 2**63
_DECODER = json.JSONDecoder()
PLACES = ("path", *hub.DATASET)
"""The settings that say where a dump or a dataset is."""

Record = Mapping[str, Any]
Reader = Callable[[Stream, Dropped], Iterator[tuple[str, Record]]]


def fingerprint(settings: CorpusSettings, dataset: Mapping[str, str]) -> Mapping[str, str]:
    """Identifies the dump files when there is a path, else the dataset."""
    if settings.path is not None:
        if settings.dataset is not None:
            raise SmallmError("--path and --dataset are two places to read from: give one")
        return paths.fingerprint(settings)
    return hub.fingerprint(on_the_hub(settings, dataset))


def records(
    settings: CorpusSettings,
    dataset: Mapping[str, str],
    dropped: Dropped,
    *,
    readers: Mapping[str, Reader],
) -> Iterator[tuple[str, Record]]:
    """Each record with its place, from the dump files at the path, else from the hub.

    `readers` holds how files are read by the end of their names, without that of a compression.
    """
    if settings.path is None:
        yield from hub.rows(on_the_hub(settings, dataset))
        return
    root = paths.root_of(settings)
    for path in paths.files_below(root, dropped):
        name = paths.name_of(path, root)
        said = dropped.counts.total()
        used = found = False
        for stream in streams(
            path, name, dropped, wanted=lambda each: bool(_reader(each, readers))
        ):
            reader = _reader(stream.name, readers)
            if reader is not None:
                used = True
                for record in reader(stream, dropped):
                    found = True
                    yield record
        if found or dropped.counts.total() > said:
            continue
        if used:
            dropped.add("file without a record", name)
        else:
            known = ", ".join(readers)
            dropped.add(f"file that is none of {known}, nor an archive of them", name)


def on_the_hub(settings: CorpusSettings, dataset: Mapping[str, str]) -> CorpusSettings:
    """The settings with the source's own dataset, where the person named none."""
    return settings if settings.dataset else settings.model_copy(update=dict(dataset))


def _reader(name: str, readers: Mapping[str, Reader]) -> Reader | None:
    bare = re.sub(r"\.(gz|bz2|xz|zst)$", "", name.lower())
    return next((read for end, read in readers.items() if fnmatchcase(bare, f"*{end}")), None)


def json_records(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, Record]]:
    """The objects in JSON lines, or in one JSON array that fits into a document's bounds."""
    text = utf8(stream, dropped)
    if text is None:
        return
    lines = text.lines(LARGEST_DOCUMENT)
    for number, line in lines:
        place = f"{stream.name}#{number}"
        if number == 1 and line.lstrip().startswith(b"["):
            yield from _array(line, lines, stream, dropped)
            return
        if not line.strip():
            continue
        record = _json(line, place, dropped)
        if isinstance(record, dict):
            yield place, record
        elif text.cut and not text.damaged:
            offset = f"{place}, after {text.offset - len(line):,} bytes"
            dropped.add("rest of a file: truncated or damaged", offset)
        else:
            dropped.add("line that is not a JSON object", place)


def _array(
    first: bytes, lines: Iterator[tuple[int, bytes]], stream: Stream, dropped: Dropped
) -> Iterator[tuple[str, Record]]:
    content, size = [first], len(first)
    for _, line in lines:
        size += len(line)
        content.append(line)
        if size > LARGEST_DOCUMENT:
            dropped.add(f"JSON array over {LARGEST_DOCUMENT:,} bytes: use JSON lines", stream.name)
            return
    found = _json(b"\n".join(content), stream.name, dropped)
    if not isinstance(found, list):
        found = _first_of(b"\n".join(content), stream, dropped)
    for number, record in enumerate(found, 1):
        if isinstance(record, dict):
            yield f"{stream.name}#{number}", record
        else:
            dropped.add("line that is not a JSON object", f"{stream.name}#{number}")


def _first_of(array: bytes, stream: Stream, dropped: Dropped) -> Iterator[object]:
    """What a JSON array holds before the place where it does not parse, which is counted."""
    text = decoded(array, stream.name, dropped)
    place, size = text.index("[") + 1, len(text)
    while True:
        while place < size and text[place] in ", \t\r\n":
            place += 1
        try:
            found, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            if not stream.damaged:  # that is told
                offset = f"{stream.name} after {len(text[:place].encode()):,} bytes"
                dropped.add("rest of a file: truncated or damaged", offset)
            return
        yield found


def _json(text: bytes, place: str, dropped: Dropped) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        text.decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    try:
        return orjson.loads(decoded(text, place, dropped))
    except orjson.JSONDecodeError:
        return None


def whole(stream: Stream, dropped: Dropped, *, largest: int = LARGEST_DOCUMENT) -> bytes | None:
    """All of a small file; None, counted, when it is larger than that many bytes."""
    parts = []
    while block := stream.read():
        parts.append(block)
        if stream.offset > largest:
            dropped.add(f"file over {largest:,} bytes", stream.name)
            return None
    return b"".join(parts)


def web_page(stream: Stream, dropped: Dropped) -> Iterator[tuple[str, Record]]:
    """The main text of a web page, without navigation and comments; nothing is fetched."""
    import trafilatura

    content = whole(stream, dropped)
    if content is None:
        return
    text = trafilatura.extract(content, include_comments=False, include_tables=False)
    if text:
        yield stream.name, {"text": text}
    else:
        dropped.add("page without a main text", stream.name)


def text_in(record: Record, *names: str) -> str:
    """The first of these fields that holds text; empty when none does."""
    return next((v for name in names if isinstance(v := record.get(name), str) and v), "")


def number_in(record: Record, name: str) -> int | None:
    """A whole number of at most 64 bits, as a number or in digits; None when there is none."""
    value = record.get(name)
    try:
        number = int(value) if isinstance(value, str) else int(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < LARGEST_NUMBER else None
