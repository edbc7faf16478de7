"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from smallm.errors import SmallmError

# What file systems without hard links answer: exFAT, SMB, Google Drive in Colab.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def whole_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes if not.

    When somebody else finished the same target meanwhile, theirs stays: equal content is equal.
    With `replace`, an older one goes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with disk_errors(target):
            yield temporary
        try:
            if replace and target.exists():
                older = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                target.rename(older)
                temporary.rename(target)
                shutil.rmtree(older, ignore_errors=True)
            else:
                temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path that becomes the file `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with disk_errors(target):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns a full or forbidden disk into one line that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise SmallmError(f"{target}: cannot be written: {os.strerror(error.errno)}") from error
    except SafetensorError as error:  # its writer's error for the same
        raise SmallmError(f"{target}: cannot be written: {error}") from error


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file; raises SmallmError that names it when it can't."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SmallmError(f"{path}: is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise SmallmError(f"{path}: cannot be read: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def keep_first_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole unless there is one: of several writers the first counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path), suppress(FileExistsError):
            temporary.write_text(json.dumps(content), encoding="utf-8")
            _put_first(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _put_first(temporary: Path, path: Path) -> None:
    """Gives a whole file its name; FileExistsError where there is one of that name."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("xb") as file:  # a reader may come in between: these disks offer no better
            try:
                file.write(temporary.read_bytes())
                file.flush()
            except OSError:
                path.unlink()
                raise


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises SmallmError that names it when it can't."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SmallmError(f"{path}: does not exist") from None
    except (OSError, ValueError) as error:
        raise SmallmError(f"{path}: cannot be read as JSON: {error}") from None
