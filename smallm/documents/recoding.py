"""Streams of text in any encoding as UTF-8; a guess is announced, what does not fit is counted."""

from __future__ import annotations

import codecs

from smallm.documents import Dropped
from smallm.documents.encodings import BYTE_ORDER_MARKS, guessed
from smallm.documents.streams import Stream

HEAD = 65_536


def utf8(stream: Stream, dropped: Dropped) -> Stream | None:
    """The same text as UTF-8 without a mark; None, counted, for what is no text."""
    head = stream.peek(HEAD)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            if encoding != "utf-8-sig":
                return _Recoded(stream, encoding, dropped)
            stream.read(len(mark))
            return stream
    if b"\0" in head:
        dropped.add("binary file", stream.name)
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        encoding = guessed(head) or "utf-8"
        if encoding != "utf-8":
            dropped.add(f"encoding of a file, guessed as {encoding}", stream.name)
            return _Recoded(stream, encoding, dropped)
    return stream


def decoded(line: bytes, place: str, dropped: Dropped) -> str:
    """A line of UTF-8 as text; bytes that do not fit are replaced and counted."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        dropped.add("bytes outside the file's encoding, replaced", place)
        return line.decode("utf-8", "replace")


class _Recoded(Stream):
    """A stream whose bytes are turned into UTF-8 as they come."""

    def __init__(self, stream: Stream, encoding: str, dropped: Dropped) -> None:
        super().__init__(stream._file, stream.name, dropped)
        self._inner = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")

    def _more(self, size: int) -> bytes:
        while block := self._inner.read(size):
            self.offset += len(block)
            if text := self._decoder.decode(block):
                return text.encode("utf-8", "replace")
        self.damaged = self._inner.damaged
        return self._decoder.decode(b"", final=True).encode("utf-8", "replace")
