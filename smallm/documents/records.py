"""What the dump sources share: records from JSON lines, XML and the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import orjson

from smallm.documents import LARGEST_DOCUMENT, Dropped, hub, paths
from smallm.documents.streams import BLOCK, Stream, streams
from smallm.settings import CorpusSettings

if TYPE_CHECKING:
    from lxml.etree import _Element

PROLOGUE = 65_536  # bytes within which the first element of an XML file must begin

Record = Mapping[str, Any]
Reader = Callable[[Stream, Dropped], Iterator[tuple[str, Record]]]


def fingerprint(settings: CorpusSettings, dataset: Mapping[str, str]) -> Mapping[str, str]:
    """Identifies the dump files when there is a path, else the dataset."""
    if settings.path is not None:
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
    lines = stream.lines(LARGEST_DOCUMENT)
    for number, line in lines:
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            yield from _array(line, lines, stream, dropped)
            return
        if not line.strip():
            continue
        record = _json(line.removeprefix(b"\xef\xbb\xbf"))
        place = f"{stream.name}#{number}"
        if isinstance(record, dict):
            yield place, record
        else:
            dropped.add("line that is not a JSON object", place)


def _array(
    first: bytes, lines: Iterator[tuple[int, bytes]], stream: Stream, dropped: Dropped
) -> Iterator[tuple[str, Record]]:
    content = [first.removeprefix(b"\xef\xbb\xbf")]
    size = 0
    for _, line in lines:
        size += len(line)
        content.append(line)
        if size > LARGEST_DOCUMENT:
            dropped.add(f"JSON array over {LARGEST_DOCUMENT:,} bytes: use JSON lines", stream.name)
            return
    found = _json(b"\n".join(content))
    if not isinstance(found, list):
        dropped.add("JSON array that does not parse", stream.name)
        return
    for number, record in enumerate(found, 1):
        if isinstance(record, dict):
            yield f"{stream.name}#{number}", record
        else:
            dropped.add("line that is not a JSON object", f"{stream.name}#{number}")


def _json(text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:  # bytes outside UTF-8 become replacement characters
        return orjson.loads(text.decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return None


def elements(stream: Stream, dropped: Dropped, *tags: str) -> Iterator[tuple[str, _Element]]:
    """The elements of these names in an XML stream, in one pass and flat memory.

    A document type, and with it every entity, is refused before it is read. What does not parse
    ends the stream; both are counted.
    """
    from lxml import etree

    parser = etree.XMLPullParser(
        events=("end",),
        tag=["{*}" + tag for tag in tags],
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=True,  # libxml2's own bounds would end a long dump; ours are below
    )
    first, number, fed, found_at = True, 0, 0, 0
    while block := stream.read(min(BLOCK, PROLOGUE if first else BLOCK)):
        if first:
            if refused := refusal(block):
                dropped.add(refused, stream.name)
                return
            first = False
        try:
            parser.feed(block)
            fed += len(block)
        except etree.XMLSyntaxError as error:
            yield from _ended(parser, stream, number)
            place = f"{stream.name} before byte {stream.offset:,}: {error.msg}"
            dropped.add("rest of a file: not well-formed XML", place)
            return
        for _, element in parser.read_events():
            number, found_at = number + 1, fed
            yield f"{stream.name}#{number}", element
            _forget(element)
        if fed - found_at > 4 * LARGEST_DOCUMENT:
            place = f"{stream.name} before byte {fed:,}"
            dropped.add(
                f"rest of a file: no <{tags[0]}> ends within {fed - found_at:,} bytes", place
            )
            return
    try:
        parser.close()
    except etree.XMLSyntaxError as error:
        yield from _ended(parser, stream, number)
        if fed and not any("rest of a file" in reason for reason in dropped.counts):
            place = f"{stream.name} after {fed:,} bytes: {error.msg}"
            dropped.add("rest of a file: truncated or damaged", place)


def _ended(parser: Any, stream: Stream, number: int) -> Iterator[tuple[str, _Element]]:
    for _, element in parser.read_events():
        number += 1
        yield f"{stream.name}#{number}", element


def _forget(element: _Element) -> None:
    """Frees an element that was read, and those before it."""
    element.clear()
    parent = element.getparent()
    if parent is not None:
        while element.getprevious() is not None:
            del parent[0]


def refusal(head: bytes) -> str | None:
    """Why an XML file that begins so is not read: a document type, which alone defines entities."""
    seen: list[str] = []
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = lambda *_: seen.append("doctype")
    parser.StartElementHandler = lambda *_: seen.append("element")
    try:
        parser.Parse(head)
    except expat.ExpatError as error:
        if not seen:
            return f"file that is not XML ({error})"
    if not seen:
        return f"XML file without an element in its first {len(head):,} bytes"
    if seen[0] == "doctype":
        return "XML with a document type, which may define entities: refused"
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
    """A whole number, as a number or in digits; None when there is none."""
    try:
        return int(float(record[name]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
