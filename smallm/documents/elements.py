"""Elements of XML dumps, in one pass and flat memory; a document type is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from smallm.documents import LARGEST_DOCUMENT, Dropped
from smallm.documents.streams import Stream

if TYPE_CHECKING:
    from lxml.etree import _Element

PROLOGUE = 65_536  # bytes within which the first element of an XML file must begin
MOST_TAGS = 1_000_000  # between two elements that are read: each takes memory until then


def elements(stream: Stream, dropped: Dropped, *tags: str) -> Iterator[tuple[str, _Element]]:
    """The elements of these names in an XML stream.

    A document type, and with it every entity, is refused before it is read. What does not parse
    ends the stream; both are counted.
    """
    from lxml import etree

    head = stream.peek(PROLOGUE)
    if not head and stream.damaged:  # that is told
        return
    if refused := refusal(head):
        dropped.add(refused, stream.name)
        return
    parser = etree.XMLPullParser(
        events=("end",),
        tag=["{*}" + tag for tag in tags],
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=True,  # libxml2's own bounds would end a long dump; ours are below
    )
    number = fed = size = opened = 0
    trouble = ""
    while not trouble:
        block = stream.read()
        try:
            parser.feed(block) if block else parser.close()
        except etree.XMLSyntaxError as error:
            trouble = str(error.msg)
        fed, size, opened = fed + len(block), size + len(block), opened + block.count(b"<")
        for _, element in parser.read_events():
            number, size, opened = number + 1, 0, 0
            yield f"{stream.name}#{number}", element
            _forget(element)
        if size > LARGEST_DOCUMENT or opened > MOST_TAGS:
            trouble = f"no <{tags[0]}> ends in {size:,} bytes and {opened:,} tags"
        if not block:
            break
    if trouble and not stream.damaged:  # that is told
        place = f"{stream.name} after {fed:,} bytes: {trouble}"
        dropped.add("rest of a file: truncated or damaged", place)


def _forget(element: _Element) -> None:
    """Frees an element that was read, and those before it."""
    element.clear()
    parent = element.getparent()
    if parent is not None:
        while element.getprevious() is not None:
            del parent[0]


def refusal(head: bytes) -> str | None:
    """Why an XML file that begins so is not read: a document type, which alone defines entities."""
    from lxml import etree

    parser: Any = etree.XMLPullParser(
        events=("start",), resolve_entities=False, no_network=True, load_dtd=False
    )
    trouble = ""
    try:
        parser.feed(head)
    except etree.XMLSyntaxError as error:
        trouble = str(error.msg)
    element = next((element for _, element in parser.read_events()), None)
    if element is None:
        if b"<!DOCTYPE" in head:
            return DOCTYPE
        return f"file that is not XML ({trouble or 'no element at its beginning'})"
    about = element.getroottree().docinfo
    return DOCTYPE if about.internalDTD is not None or about.doctype else None


DOCTYPE = "XML with a document type, which may define entities: refused"
