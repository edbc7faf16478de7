"""One place for tapes, checkpoints and results that all machines reach: a shared folder or bucket.

    tapes/NAME/            a tape, its tokens in tokens/NAME/
    searches/NAME/         what the home holds of a search, and `tune`: its trials and checkpoints

A machine works in its home, a disk of its own, and brings what is not there from the storage.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from smallm.errors import SmallmError
from smallm.files import whole_folder
from smallm.journal import JOURNAL_NAME, POSITION_NAME

SCHEMES = ("", "file", "s3", "gs")
ALLOWED = "a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
LAST = "manifest.json"  # of a folder's files: where it is, all are
APART = ("replication", "tokens", "tune")  # speeds of one machine, and what travels by itself
PATIENCE = 20  # seconds that Google's bucket has to answer; its library would try for 15 minutes
SEARCHES = "searches"
LOCAL = (POSITION_NAME, Path(POSITION_NAME).with_suffix(".tmp").name)  # what this machine has sent
PIECE = 2**24  # bytes of a file in memory
WAITS = (1, 2, 4, 8, 16, 30)  # seconds before a failed write is tried again
EVERY = 10.0  # seconds between two looks at what a search has written


class Storage:
    """A folder that all machines reach, by its URI; names in it are paths with slashes."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES or (not parts.scheme and not uri.startswith("/")):
            raise SmallmError(f"storage {uri}: is not known; allowed is {ALLOWED}")
        if parts.scheme in ("s3", "gs") and not parts.netloc:
            raise SmallmError(f"storage {uri}: names no bucket; allowed is {ALLOWED}")
        patient = f"{'&' if parts.query else '?'}retry_limit_seconds={PATIENCE}"
        self.uri = uri
        with self._told("opened"):
            self.filesystem, root = fs.FileSystem.from_uri(
                uri + patient if parts.scheme == "gs" else uri
            )
        self._root = PurePosixPath(root)

    def path(self, name: str) -> str:
        """The path of a name in the file system."""
        return str(self._root / name)

    def check(self, mark: str | None = None) -> None:
        """Raises SmallmError where this machine may not write, read or delete here.

        Also where the file `mark`, of another machine, is not seen: then this is another folder.
        """
        if mark and not self.file(mark):
            raise SmallmError(f"storage {self.uri}: is not the folder that the driver writes to")
        with self.marked() as name, self._told("read"):
            self.filesystem.open_input_file(self.path(name)).read()

    @contextmanager
    def marked(self) -> Iterator[str]:
        """The name of a small file that is there for as long as the block runs."""
        name = f".mark-{uuid.uuid4().hex}"
        with self._told("written"):
            self._write(name, b"smallm")
        try:
            yield name
        finally:
            with self._told("deleted from"):
                self.filesystem.delete_file(self.path(name))

    def file(self, name: str) -> fs.FileInfo | None:
        """What is known of a file, or None where there is none."""
        with self._told("read"):
            found = self.filesystem.get_file_info(self.path(name))
        return found if found.type == fs.FileType.File else None

    def names(self, folder: str) -> list[str]:
        """Names of the folders in a folder, none where it does not exist."""
        with self._told("read"):
            inside = self.filesystem.get_file_info(
                fs.FileSelector(self.path(folder), allow_not_found=True)
            )
        return sorted(each.base_name for each in inside if each.type == fs.FileType.Directory)

    def fetch(self, name: str, folder: Path) -> None:
        """Brings a folder, whole or not at all, unless it is there; subfolders APART stay."""
        if folder.exists():
            return
        with whole_folder(folder) as temporary, self._told("read"):
            for each in self._files(name):
                target = temporary / PurePosixPath(each.path).relative_to(self.path(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                with (
                    self.filesystem.open_input_file(each.path) as source,
                    target.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, PIECE)
                os.utime(target, ns=(each.mtime_ns, each.mtime_ns))

    def keep(self, folder: Path, name: str) -> None:
        """Takes a folder with a manifest, which is written last; nothing where it is already."""
        if self.file(f"{name}/{LAST}"):
            return
        files = [each for each in sorted(folder.rglob("*")) if each.is_file()]
        for path in sorted(files, key=lambda each: each == folder / LAST):
            inside = path.relative_to(folder)
            if inside.parts[0] not in APART:
                self.keep_file(path, f"{name}/{inside.as_posix()}")

    def delete(self, name: str) -> None:
        """Deletes a folder, if it is there."""
        path = self.path(name)
        with self._told("deleted from"):
            if self.filesystem.get_file_info(path).type == fs.FileType.Directory:
                self.filesystem.delete_dir(path)

    def keep_file(self, path: Path, name: str) -> None:
        """Takes a file, in place of one of that name."""
        with path.open("rb") as file, self._told("written"):
            self._write(name, file)

    def _write(self, name: str, content: bytes | IO[bytes]) -> None:
        path, local = self.path(name), isinstance(self.filesystem, fs.LocalFileSystem)
        temporary = f"{path}.{uuid.uuid4().hex}" if local else path  # a bucket shows whole files
        if local:
            self.filesystem.create_dir(str(PurePosixPath(path).parent))
        with self.filesystem.open_output_stream(temporary) as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                shutil.copyfileobj(content, stream, PIECE)
        if local:
            self.filesystem.move(temporary, path)

    def _files(self, name: str) -> Iterator[fs.FileInfo]:
        found = self.filesystem.get_file_info(fs.FileSelector(self.path(name), recursive=True))
        for each in found:
            inside = PurePosixPath(each.path).relative_to(self.path(name))
            if each.type == fs.FileType.File and inside.parts[0] not in APART:
                yield each

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns what a file system says into one line that names the storage."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            said = " ".join(re.sub(r"\(Request ID: [^)]*\)", "", str(error)).split())
            raise SmallmError(f"storage {self.uri}: cannot be {what}: {said}") from error


@contextmanager
def kept_in(storage: Storage | None, folder: Path, home: Path) -> Iterator[None]:
    """Brings a folder of the home before it would be made, and keeps it afterwards."""
    name = folder.relative_to(home).as_posix()
    if storage and not folder.exists() and storage.file(f"{name}/{LAST}"):
        storage.fetch(name, folder)
    yield
    if storage:
        storage.keep(folder, name)


class Mirror:
    """Copies what a search writes into its folder to the storage, every few seconds and at its end.

    `notify` is told once when the storage stops to take files, and once when it takes them again.
    """

    def __init__(self, storage: Storage, folder: Path, notify: Callable[[str], None]) -> None:
        self._storage, self._folder, self._notify = storage, folder, notify
        self._kept: dict[Path, tuple[int, int]] = {}
        self._failing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Copies once, which raises SmallmError, then in the background."""
        self.copy()
        self._thread.start()

    def close(self) -> None:
        """Copies what is left; what cannot be copied is told."""
        self._ended.set()
        self._thread.join()
        self._try_to_copy()

    def copy(self) -> None:
        """Copies all files that have changed since they were copied."""
        for path in sorted(self._folder.rglob("*")):
            inside = path.relative_to(self._folder)
            if inside.parts[0] in APART or path.name in LOCAL or not path.is_file():
                continue
            if any(part.startswith(".") for part in inside.parts):
                continue  # is being written
            state = path.stat()
            seen = (state.st_mtime_ns, state.st_size)
            if self._kept.get(path) != seen:
                self._storage.keep_file(path, f"{SEARCHES}/{self._folder.name}/{inside}")
                self._kept[path] = seen

    def _run(self) -> None:
        while not self._ended.wait(EVERY):
            self._try_to_copy()

    def _try_to_copy(self) -> None:
        try:
            self.copy()
        except (SmallmError, OSError) as error:
            if not self._failing or self._ended.is_set():
                self._notify(f"not all results are in the storage yet: {error}")
            self._failing = True
            return
        if self._failing:
            self._notify(f"storage {self._storage.uri} takes files again")
        self._failing = False


def fetch_search(storage: Storage, home: Path, name: str) -> None:
    """Brings the search of a name, or the `newest`, unless the home has it as far or further.

    The journal tells how far: it only grows.
    """
    if name == "newest":
        started = {
            found.mtime_ns: each
            for each in storage.names(SEARCHES)
            if (found := storage.file(f"{SEARCHES}/{each}/search.json"))
        }
        if not started:
            return
        name = started[max(started)]
    there = storage.file(f"{SEARCHES}/{name}/{JOURNAL_NAME}")
    folder = home / SEARCHES / name
    journal = folder / JOURNAL_NAME
    if there is None or (journal.exists() and journal.stat().st_size >= there.size):
        return
    before = home / f"{SEARCHES}-before" / name
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        before.parent.mkdir(exist_ok=True)
        folder.rename(before)  # of a search that went on elsewhere since
    storage.fetch(f"{SEARCHES}/{name}", folder)


def trying_again(write: Callable[[], None], waits: Sequence[float] = WAITS) -> None:
    """Does what writes to a storage; one that fails gets about a minute to come back."""
    for seconds in waits:
        try:
            return write()
        except OSError:
            time.sleep(seconds)
    return write()
