"""Whether a process died when it first loaded a model: the mark it leaves is found by the next one.

Too little memory, or a library's crash, ends a process without a word. Ray starts it again at once,
and gives up the whole server after some times.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def died_loading(name: str, home: Path) -> bool:
    """Whether one that the same Ray started here did so with a model; it is told once."""
    dead = [mark for mark in _marks(home).glob(f"{_start(name)}.*") if not _is_running(mark)]
    for mark in dead:
        with suppress(OSError):
            mark.unlink()
    return bool(dead)


@contextmanager
def mark_of_loading(name: str, home: Path) -> Iterator[None]:
    """While a model is loaded; without one where the home cannot be written."""
    mark = _marks(home) / f"{_start(name)}.{os.getpid()}"
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def _marks(home: Path) -> Path:
    return home / "loading"


def _start(name: str) -> str:
    """Of the names of marks: machines may share a home, and Ray is the parent of what it starts."""
    started = f"{socket.gethostname()} {os.getppid()} {name}"
    return hashlib.sha256(started.encode()).hexdigest()[:32]


def _is_running(mark: Path) -> bool:
    """Whether another process has that number."""
    process = int(mark.suffix[1:])
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
