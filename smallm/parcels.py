"""A tape and its tokens in pieces, for machines that do not share the disk they lie on.

A folder arrives whole or not at all, under the path it had; one that is there already stays, for
its name says what is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from smallm.files import whole_folder

PIECE = 2**26  # bytes of a file that travel together


class Piece(NamedTuple):
    """A stretch of a file; the pieces of a file come in order, one after the other."""

    name: str
    """Path of the file inside the folder, with slashes."""
    content: bytes


def folders_of(tokens: Iterable[str]) -> list[Path]:
    """The folders that trials read, outer ones first: the tape and its tokens folders."""
    inner = [Path(folder) for folder in tokens]
    return [*dict.fromkeys(folder.parents[1] for folder in inner), *inner]


def pieces(folder: Path) -> Iterator[Piece]:
    """All files of a folder but its `tokens`, which are parcels of their own."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or name.parts[0] == "tokens":
            continue
        with path.open("rb") as file:
            first = True
            while (content := file.read(PIECE)) or first:
                yield Piece(name.as_posix(), content)
                first = False


def unpack(folder: Path, arriving: Iterable[Piece]) -> None:
    """Writes a folder from its pieces, unless it is there."""
    if folder.exists():
        return
    with whole_folder(folder) as temporary:
        for name, content in arriving:
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(content)
