"""The encoding of a text file, found by reading all of it; binary files are told apart."""

from __future__ import annotations

import codecs
from itertools import chain
from pathlib import Path

from upath import UPath

BLOCK = 65_536
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's mark, so it is looked for first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(path: Path | UPath) -> str | None:
    """By its mark, UTF-8 where that fits, else the likeliest old encoding; None for binary."""
    with path.open("rb") as file:
        head = file.read(BLOCK)
        for mark, encoding in BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                return encoding
        decoder = codecs.getincrementaldecoder("utf-8")()
        misfit = b""
        for block in chain([head], iter(lambda: file.read(BLOCK), b"")):
            if b"\0" in block:
                return None
            try:
                if not misfit:
                    decoder.decode(block)
            except UnicodeDecodeError:
                misfit = block
    return guessed(misfit) if misfit else "utf-8"


def guessed(sample: bytes) -> str | None:
    """UTF-8 when only a few bytes are damaged, else the likeliest; near a tie, common cp1252."""
    import charset_normalizer

    readable = sample.decode("utf-8", "replace")
    damaged = readable.count("\ufffd")
    if sum(not character.isascii() for character in readable) > 2 * damaged:
        return "utf-8"
    guesses = charset_normalizer.from_bytes(sample)
    best = guesses.best()
    if best is None:
        return None
    near = {guess.encoding for guess in guesses if guess.chaos < best.chaos + 0.05}
    return "cp1252" if "cp1252" in near else best.encoding
