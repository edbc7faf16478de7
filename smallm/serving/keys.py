"""API keys: read once, held only as digests; and the addresses that are safe without any."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from smallm.errors import SmallmError

VARIABLE = "SMALLM_API_KEYS"
SHORTEST = 16  # characters: less could be guessed


class Keys:
    """Knows keys again without holding them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(dict.fromkeys(map(_digest, keys)))

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"<{len(self)} keys>"

    def owner(self, authorization: str | None) -> str | None:
        """Whose key the header holds: key-2 for the second; None for a wrong or missing one."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, found = _digest(token.strip(" ")), None
        for number, digest in enumerate(self._digests, start=1):  # all: time tells nothing
            if hmac.compare_digest(digest, given):
                found = f"key-{number}"
        return found


def given_keys(file: Path | None) -> Keys | None:
    """The keys of the file, else those of SMALLM_API_KEYS; None where neither is given."""
    if file is not None:
        return keys_of(_private_lines(file), place=f"{file}, line")
    if VARIABLE in os.environ:
        pieces = os.environ[VARIABLE].encode("utf-8", "surrogateescape").split(b",")
        return keys_of(pieces, place=f"{VARIABLE}, key")
    return None


def keys_of(lines: Iterable[bytes], *, place: str) -> Keys:
    """The keys on the lines, without blank ones and comments; errors number the line."""
    keys = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if key and not key.startswith(b"#"):
            keys.append(_checked(key, f"{place} {number}"))
    if not keys:
        raise SmallmError(f"{place.partition(',')[0]}: holds no key")
    return Keys(keys)


def _checked(key: bytes, place: str) -> str:
    if not all(33 <= byte <= 126 for byte in key):
        raise SmallmError(f"{place}: a key is of ASCII characters without white space")
    if len(key) < SHORTEST:
        raise SmallmError(f"{place}: a key has at least {SHORTEST} characters")
    return key.decode("ascii")


def _private_lines(file: Path) -> list[bytes]:
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise SmallmError(
                    f"{file}: others than its owner can get at it: "
                    f"run `chmod 600 {shlex.quote(str(file))}`"
                )
            return opened.read().splitlines()
    except OSError as error:
        raise SmallmError(f"{file}: cannot be read: {error.strerror}") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_address(host: str, *, keys: Keys | None, fast_front: bool) -> None:
    """SmallmError for a server that others could reach and that asks for no key."""
    if keys or (is_loopback(host) and not fast_front):
        return
    place, instead = (
        ("the fast front listens on all addresses", "leave the fast front out")
        if fast_front
        else (f"{host or 'an empty host'} can be reached by others", "listen on 127.0.0.1")
    )
    raise SmallmError(f"{place}: give a file of keys, or set {VARIABLE}, or {instead}")


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
