"""Errors that a person can act on, and the sentence for a name nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SmallmError(Exception):
    """Bad input or surroundings: one line that says what, where and what is allowed."""


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Says that a name is unknown, which known ones are near, and which exist."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"unknown {kind} {str(name)!r}{hint}; known: {', '.join(names)}"
