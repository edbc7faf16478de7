"""The journal of a search: every tracking event as one JSON line, and how far each store has them.

Events are written here before they are sent anywhere, so no outage, crash or kill loses one. What
was sent but not yet marked is sent again: a store must take an event twice and change nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from smallm.errors import SmallmError

JOURNAL_NAME = "tracking.jsonl"
POSITION_NAME = "tracking.position"

BATCH = 1000
TICK_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
HELD = {errno.EWOULDBLOCK, errno.EACCES}  # of a lock that another process has

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to record: what, for which run, when (milliseconds since 1970), with which data."""

    operation: str
    key: str
    time: int
    data: Mapping[str, Any]


class HeldError(SmallmError):
    """Another process holds the journal."""


class Journal:
    """An append-only file of events that one process at a time holds, and a position per store."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        self._positions_path = folder / POSITION_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise SmallmError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self._cut_torn_line()
            if not self.path.stat().st_size:
                self._positions_path.unlink(missing_ok=True)
            self._positions = self._read_positions()
        except SmallmError:
            self.close()
            raise

    def append(self, event: Event) -> None:
        """Writes one event; it survives this process from here on."""
        line = json.dumps(asdict(event), ensure_ascii=False).encode() + b"\n"
        size = self.path.stat().st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(None, "no space left on device")
        except OSError as error:
            self._file.truncate(size)
            raise SmallmError(f"{self.path}: cannot be written: {error.strerror}") from None

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Yields the complete events from an offset on, each with the offset behind it."""
        with self.path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):
                    offset += len(line)
                    yield _parsed(line, self.path, offset), offset

    def pending(self, store: str) -> Iterator[tuple[Event, int]]:
        """Yields the events that a store does not have yet, safe on disk before they are sent."""
        os.fsync(self._file.fileno())
        return self.events(self._positions.get(store, 0))

    def has_pending(self, store: str) -> bool:
        """Whether there are events that a store does not have yet."""
        return any(True for _ in self.events(self._positions.get(store, 0)))

    def count_pending(self, store: str) -> int:
        """Says how many events a store does not have yet."""
        return sum(1 for _ in self.events(self._positions.get(store, 0)))

    def mark(self, store: str, offset: int) -> None:
        """Remembers that a store has everything before an offset."""
        self._positions[store] = offset
        temporary = self._positions_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._positions), encoding="utf-8")
        temporary.replace(self._positions_path)

    def close(self) -> None:
        """Lets another process hold the journal."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise HeldError(
                    f"{self.path}: another process records this search; wait until it has ended"
                ) from None
            raise SmallmError(
                f"{self.path}: cannot be locked: {error.strerror}; keep the home on a disk that "
                "can lock files"
            ) from None

    def _cut_torn_line(self) -> None:
        # A process killed while it wrote leaves half a line, which nobody was promised.
        written = self.path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):  # only then: the time of the last event stays that of the file
            self._file.truncate(whole)

    def _read_positions(self) -> dict[str, int]:
        if not self._positions_path.exists():
            return {}
        try:
            positions: dict[str, int] = json.loads(self._positions_path.read_bytes())
        except ValueError:
            raise SmallmError(
                f"{self._positions_path}: is damaged; delete it to send everything again"
            ) from None
        return positions


def _parsed(line: bytes, path: Path, offset: int) -> Event:
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        raise SmallmError(f"{path}: holds no event in the line before byte {offset}") from None


class StoreError(Exception):
    """A store did not take events now; they can be sent again."""


class Store(Protocol):
    """Where events end up."""

    name: str

    def apply(self, events: Sequence[Event]) -> None:
        """Records events in order; raises StoreError, after which all of them are sent again."""


class Sender:
    """Sends the events of a journal to a store, in order and in batches, in the background.

    `notify` is called from that thread: once when the store stops to take events, once when it is
    back.
    """

    def __init__(self, journal: Journal, store: Store, notify: Notify) -> None:
        self._journal = journal
        self._store = store
        self._notify = notify
        self._failing = False
        self._wait = TICK_SECONDS
        self._deadline = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def send(self) -> int:
        """Sends all that is pending and says how many events it was; raises StoreError."""
        sent = 0
        while batch := list(islice(self._journal.pending(self._store.name), BATCH)):
            self._store.apply([event for event, _ in batch])
            self._journal.mark(self._store.name, batch[-1][1])
            sent += len(batch)
        return sent

    def close(self, timeout: float) -> int:
        """Sends for at most that many seconds what is left, and says how many events stay."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout)
        pending = self._journal.count_pending(self._store.name)
        # A thread that hangs in a request may still record something: keep others away from it.
        if not self._thread.is_alive():
            self._journal.close()
        return pending

    def _run(self) -> None:
        while not self._closing.wait(self._wait):
            self.try_to_send()
        while not self.try_to_send() and time.monotonic() + TICK_SECONDS < self._deadline:
            time.sleep(TICK_SECONDS)

    def try_to_send(self) -> bool:
        """Sends all that is pending, and says whether the store took it."""
        try:
            sent = self.send()
        except (StoreError, OSError) as error:
            if not self._failing:
                self._notify(f"{error}; {self._journal.path} keeps them until it does")
            self._failing = True
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
            return False
        if self._failing:
            self._notify(f"{self._store.name} answers again: {sent} waiting events are recorded")
        self._failing = False
        self._wait = TICK_SECONDS
        return True
