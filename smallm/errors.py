"""Errors that a person can act on, and the sentence for a name nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 300  # characters of what a library says
NO_PROBABILITIES = "the model gives no probabilities here: its weights may be damaged"


class SmallmError(Exception):
    """Bad input or surroundings: one line that says what, where and what is allowed."""


class DamagedModelError(SmallmError):
    """A model gives no probabilities: it is not what was asked of it that is bad."""


def in_one_line(error: BaseException) -> str:
    """What an error says, as the end of a line; its type where it says nothing."""
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Says that a name is unknown, which known ones are near, and which exist."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"unknown {kind} {str(name)!r}{hint}; known: {', '.join(names)}"
