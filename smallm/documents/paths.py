"""The files that a person points at with --path, in a stable order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from smallm.documents import Dropped
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """Every file's path with its size and time of change."""
    root = root_of(settings)
    content = hashlib.sha256()
    files = files_below(root, Dropped())
    for path in files:
        status = path.stat()
        content.update(os.fsencode(path))
        content.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return {"path": shown(root), "files": str(len(files)), "state": content.hexdigest()}


def root_of(settings: CorpusSettings) -> Path:
    """The file or folder of the settings; raises SmallmError when there is none."""
    if settings.path is None:
        raise SmallmError(f"source {settings.source!r} needs --path, a file or a folder")
    root = settings.path.expanduser().resolve()
    if not root.exists():
        raise SmallmError(f"{shown(root)}: does not exist")
    return root


def shown(path: str | Path) -> str:
    """A path as UTF-8 can hold it, whatever bytes the name is made of."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "replace")


def name_of(path: Path, root: Path) -> str:
    """The path of a file below the root, for the ids of documents."""
    return shown(path.relative_to(root if root.is_dir() else root.parent))


def files_below(root: Path, dropped: Dropped) -> list[Path]:
    """All files below a folder, also behind links to folders, each folder once."""
    if root.is_file():
        return [root]
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
