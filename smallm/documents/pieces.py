"""Long texts cut into documents: otherwise one long text could not have a held-out part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PIECE = 8_000  # characters


def pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """A text that comes in blocks, cut into pieces of at most `size` that together are the text."""
    buffer = ""
    for block in blocks:
        buffer += block
        while len(buffer) > 2 * size:
            cut = _cut(buffer, size)
            yield buffer[:cut]
            buffer = buffer[cut:]
    while buffer:
        cut = _cut(buffer, size) if len(buffer) > size else len(buffer)
        yield buffer[:cut]
        buffer = buffer[cut:]


def _cut(text: str, size: int) -> int:
    """Where a document may end: after a paragraph, a line or a word, in this order."""
    for end in ("\n\n", "\r\n\r\n", "\n", " "):
        place = text.rfind(end, size // 2, size)
        if place >= 0:
            return place + len(end)
    return size
