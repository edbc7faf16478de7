"""The exact bytes that each id of a tokenizer stands for, nothing for special tokens.

Strings of tokens will not do: a token may hold half a character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import tokenizers

from smallm.errors import SmallmError
from smallm.tokens import BYTE_SIGNS, FINAL, UNKNOWN_ID

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte fallback


def token_bytes(tokenizer: Any, ids: int) -> tuple[bytes, ...]:
    """The bytes of ids 0 .. ids-1; ids without a token stand for nothing.

    Raises SmallmError for kinds of tokenizers whose text cannot be told token by token.
    """
    if hasattr(tokenizer, "words"):
        return _of_words(tokenizer.words)
    backend: tokenizers.Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    convert = _converter(backend) if backend is not None else None
    if backend is None or convert is None:
        raise SmallmError(
            f"{type(tokenizer).__name__}: neither byte-level BPE nor SentencePiece: it does not "
            "tell the bytes of a token"
        )
    found = {n: convert(token) for token, n in backend.get_vocab(with_added_tokens=True).items()}
    for number, added in backend.get_added_tokens_decoder().items():
        found[number] = b"" if added.special else added.content.encode()
    return tuple(found.get(number, b"") for number in range(ids))


def _of_words(words: list[str]) -> tuple[bytes, ...]:
    texts = [b"" if i <= UNKNOWN_ID else word.encode() for i, word in enumerate(words)]
    return (*texts, *(bytes([symbol % FINAL]) for symbol in range(2 * FINAL)))


def _converter(backend: tokenizers.Tokenizer) -> Callable[[str], bytes] | None:
    """How a token becomes bytes, by the decoder of the tokenizer."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    kinds = {decoder.get("type"), *(each["type"] for each in decoder.get("decoders", ()))}
    if "ByteLevel" in kinds:
        return lambda token: bytes(BYTE_SIGNS[sign] for sign in token if sign in BYTE_SIGNS)
    if kinds & {"Metaspace", "ByteFallback"}:
        return _of_piece
    return None


def _of_piece(token: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
