"""The files that a person points at with --path, in a stable order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from upath import UPath

from smallm.documents import Dropped
from smallm.errors import SmallmError, in_one_line
from smallm.settings import CorpusSettings


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """Every file's path with its size and time of change."""
    root = root_of(settings)
    content = hashlib.sha256()
    files = files_below(root, Dropped())
    for path in files:
        status = path.stat()
        content.update(os.fsencode(str(path)))
        content.update(f" {status.st_size} {status.st_mtime}\n".encode())
    return {"path": shown(root), "files": str(len(files)), "state": content.hexdigest()}


def root_of(settings: CorpusSettings) -> Path | UPath:
    """The file or folder of the settings; raises SmallmError when there is none."""
    if settings.path is None:
        raise SmallmError(f"source {settings.source!r} needs --path, a file or a folder")
    if "://" not in settings.path:
        root = Path(settings.path).expanduser().resolve()
        if not root.exists():
            raise SmallmError(f"{shown(root)}: does not exist")
        return root
    try:
        found = UPath(settings.path)
        exists = found.exists()
    except (ImportError, OSError, ValueError) as error:  # the last: no such kind of URL
        raise SmallmError(f"{settings.path}: cannot be read: {in_one_line(error)}") from None
    if not exists:
        raise SmallmError(f"{settings.path}: does not exist")
    return found


def shown(path: str | Path | UPath) -> str:
    """A path as UTF-8 can hold it, whatever bytes the name is made of."""
    return os.fsencode(str(path)).decode("utf-8", "replace")


def name_of(path: Path | UPath, root: Path | UPath) -> str:
    """The path of a file below the root, for the ids of documents."""
    base = root if root.is_dir() else root.parent
    return shown(str(path).removeprefix(str(base)).lstrip("/"))


def files_below(root: Path | UPath, dropped: Dropped) -> Sequence[Path | UPath]:
    """All files below a folder, also behind links to folders, each folder once."""
    if root.is_file():
        return [root]
    if isinstance(root, UPath):  # a bucket has no links and no permissions of its own
        return sorted((each for each in root.rglob("*") if each.is_file()), key=str)
    found = []
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_counter(dropped)):
        if os.path.realpath(folder) in seen:
            dropped.add("folder already read under another name", shown(folder))
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        for hidden in [each for each in folders if each.startswith(".")]:
            dropped.add("hidden folder", shown(Path(folder, hidden)))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in names:
            if name.startswith("."):
                dropped.add("hidden file", shown(Path(folder, name)))
            elif Path(folder, name).is_file():
                found.append(Path(folder, name))
            else:
                dropped.add("neither file nor folder", shown(Path(folder, name)))
    return sorted(found)


def _counter(dropped: Dropped) -> Callable[[OSError], None]:
    def count(error: OSError) -> None:
        dropped.add(f"unreadable folder ({error.strerror})", shown(str(error.filename)))

    return count
