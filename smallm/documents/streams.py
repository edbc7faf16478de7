"""The bytes inside dump files: plain, compressed, or members of an archive; always bounded.

A stream that is damaged or ends too early gives what was readable: the place is counted, never
raised. Archives are read in place, so no member can be written anywhere.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from upath import UPath

from smallm.documents import Dropped
from smallm.documents.paths import shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 2**20
LARGEST_WINDOW = 31  # of zstd, as a power of two: Reddit's dumps need it
# A stream that unpacks to far more than it holds is a bomb; text rarely shrinks by more than 20.
LARGEST_EXPANSION, HARMLESS = 1_000, 64 * 2**20
DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, zstd.ZstdError)
# The modules for archives meet garbage in an index, and locks, with nearly any kind of error.
BROKEN_ARCHIVE = (
    *DAMAGE,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,  # NotImplementedError too
    TypeError,
    ValueError,  # UnicodeDecodeError too
    struct.error,
)
NO_INDEX = "archive whose index, at its end, is missing, damaged or locked"


class Stream:
    """A binary stream whose damaged end is counted, with the offset, instead of raised.

    `packed` gives the bytes it was unpacked from, `before` those that its archive unpacked to so
    far: an archive whose members share their packed bytes is a bomb as a whole.
    """

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        dropped: Dropped,
        *,
        packed: Callable[[], int] | None = None,
        before: int = 0,
    ) -> None:
        self.name = name
        self.offset = 0
        self._file = file
        self._dropped = dropped
        self._packed = packed
        self._before = before
        self._ahead = b""
        self.damaged = False
        """Whether it ended before its end, which is counted."""
        self.cut = False
        """Whether the last of its lines had no line end."""

    def read(self, size: int = BLOCK) -> bytes:
        """The next bytes, at most `size`; none at the end, wherever that is."""
        if self._ahead:
            block, self._ahead = self._ahead[:size], self._ahead[size:]
            return block
        return self._more(size)

    def peek(self, size: int) -> bytes:
        """The next bytes, `size` of them unless the end comes first, which stay to be read."""
        while len(self._ahead) < size and (block := self._more(size)):
            self._ahead += block
        return self._ahead[:size]

    def _more(self, size: int) -> bytes:
        if self.damaged:
            return b""
        try:
            # not read: what it had before the damage would be lost
            block: bytes = cast("Any", self._file).read1(size)
        except DAMAGE as error:
            self._end("truncated or damaged", str(error) or type(error).__name__)
            return b""
        self.offset += len(block)
        unpacked = self._before + self.offset
        if self._packed and unpacked > HARMLESS + LARGEST_EXPANSION * self._packed():
            self._end(f"unpacks to over {LARGEST_EXPANSION} times its size", "a bomb")
            return b""
        return block

    def _end(self, reason: str, detail: str) -> None:
        self.damaged = True
        self._dropped.add(
            f"rest of a file: {reason}",
            f"{self.name} after {self.offset:,} bytes of text: {detail}",
        )

    def lines(self, longest: int) -> Iterator[tuple[int, bytes]]:
        """The numbered lines; one longer than `longest` bytes is counted and left out."""
        number, rest, skipping = 1, b"", False
        while block := self.read():
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                if not skipping and len(line) <= longest:
                    yield number, line
                elif not skipping:
                    self._too_long(longest, number)
                skipping = False
                number += 1
            if len(rest) > longest:
                if not skipping:
                    self._too_long(longest, number)
                rest, skipping = b"", True
        if rest and not skipping:
            self.cut = True
            yield number, rest

    def _too_long(self, longest: int, number: int) -> None:
        self._dropped.add(f"line over {longest:,} bytes", f"{self.name}:{number}")


def streams(
    path: Path | UPath,
    name: str,
    dropped: Dropped,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[Stream]:
    """The streams in a file: itself, unpacked, or those members of an archive that are wanted."""
    try:
        with path.open("rb") as opened:
            # files of a bucket come without read1
            file = (
                opened
                if hasattr(opened, "read1")
                else io.BufferedReader(cast("Any", opened), BLOCK)
            )
            head = file.read(8)
            file.seek(0)
            yield from _opened(file, head, name, dropped, wanted)
    except OSError as error:
        dropped.add(f"unreadable file ({error.strerror or error})", name)


def _opened(
    file: IO[bytes], head: bytes, name: str, dropped: Dropped, wanted: Callable[[str], bool]
) -> Iterator[Stream]:
    if head.startswith(b"PK\x03\x04"):
        yield from _zip(file, name, dropped, wanted)
    elif head.startswith(b"7z\xbc\xaf\x27\x1c"):
        yield from _seven_zip(file, name, dropped, wanted)
    else:
        unpack = _unpacker(head)
        yield Stream(unpack(file), name, dropped, packed=file.tell if unpack != _plain else None)


def _unpacker(head: bytes) -> Callable[[IO[bytes]], IO[bytes]]:
    return next((each for magic, each in UNPACKERS.items() if head.startswith(magic)), _plain)


def _plain(file: IO[bytes]) -> IO[bytes]:
    return file


def _zstd(file: IO[bytes]) -> IO[bytes]:
    window = {int(zstd.DecompressionParameter.window_log_max): LARGEST_WINDOW}
    return cast("IO[bytes]", zstd.open(file, options=window))


def _xz(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", lzma.open(file))


UNPACKERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"BZh": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    b"\xfd7zXZ\0": _xz,
    b"\x1f\x8b": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""How a file is unpacked, by its first bytes."""


def _zip(
    file: IO[bytes], name: str, dropped: Dropped, wanted: Callable[[str], bool]
) -> Iterator[Stream]:
    try:
        archive = zipfile.ZipFile(file)
    except BROKEN_ARCHIVE as error:
        dropped.add(NO_INDEX, f"{name}: {error}")
        return
    packed = partial(int, file.seek(0, os.SEEK_END))
    unpacked = 0
    with archive:
        for member in archive.infolist():
            if member.is_dir() or not wanted(member.filename):
                continue
            place = f"{name}/{shown(member.filename)}"
            try:
                opened = archive.open(member)
                head = opened.read(8)
                opened.seek(0)
            except BROKEN_ARCHIVE as error:
                dropped.add("member of an archive that cannot be unpacked", f"{place}: {error}")
                continue
            with opened:
                inside = _unpacker(head)(opened)
                stream = Stream(inside, place, dropped, packed=packed, before=unpacked)
                yield stream
            unpacked += stream.offset


def _seven_zip(
    file: IO[bytes], name: str, dropped: Dropped, wanted: Callable[[str], bool]
) -> Iterator[Stream]:
    import py7zr
    from py7zr.exceptions import ArchiveError, PasswordRequired

    packed = partial(int, file.seek(0, os.SEEK_END))
    file.seek(0)
    try:
        with py7zr.SevenZipFile(cast("Any", file)) as archive:
            members = [each.filename for each in archive.list() if not each.is_directory]
    except (*BROKEN_ARCHIVE, ArchiveError, PasswordRequired) as error:
        dropped.add(NO_INDEX, f"{name}: {error}")
        return
    unpacked = 0
    for member in filter(wanted, members):
        with closing(_Pipe(file, member)) as pipe:
            inside = cast("IO[bytes]", pipe)
            place = f"{name}/{shown(member)}"
            stream = Stream(inside, place, dropped, packed=packed, before=unpacked)
            yield stream
        unpacked += stream.offset


class _Pipe:
    """A member of a .7z as a stream: py7zr pushes it from a thread, in bounded memory."""

    def __init__(self, file: IO[bytes], member: str) -> None:
        reading, writing = os.pipe()
        self._reader = os.fdopen(reading, "rb")
        self._writer = os.fdopen(writing, "wb", buffering=BLOCK)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._unpack, args=(file, member), daemon=True)
        self._thread.start()

    def _unpack(self, file: IO[bytes], member: str) -> None:
        import py7zr
        from py7zr.io import Py7zIO, WriterFactory

        writer = self._writer

        class Member(Py7zIO):
            written = 0

            def write(self, data: Any) -> int:
                self.written += len(data)
                return writer.write(data)

            def read(self, size: int | None = None) -> bytes:
                return b""

            def seek(self, offset: int, whence: int = 0) -> int:
                return offset

            def flush(self) -> None:
                writer.flush()

            def size(self) -> int:
                return self.written

        class Factory(WriterFactory):
            def create(self, filename: str) -> Py7zIO:
                return Member()

        try:
            file.seek(0)
            with py7zr.SevenZipFile(cast("Any", file)) as archive:
                archive.extract(targets=[member], factory=Factory())
        except BrokenPipeError:
            pass  # the reader has enough
        except Exception as error:  # told by the reader, in whose thread it can be counted
            self._error = error
        finally:
            with suppress(BrokenPipeError):
                writer.close()

    def read1(self, size: int) -> bytes:
        """The next bytes of the member; raises OSError where unpacking failed, at the end."""
        block = self._reader.read1(size)
        if not block:
            self._thread.join()
            if self._error:
                what = f"{type(self._error).__name__}: {self._error}"
                raise OSError(what) from self._error
        return block

    def close(self) -> None:
        """Ends the thread, wherever it is."""
        self._reader.close()
        self._thread.join()
