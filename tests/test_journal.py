"""The journal keeps every event through kills and full disks, and sends all of them in order."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from smallm import journal as journal_module
from smallm.errors import SmallmError
from smallm.journal import Event, Journal, Sender, StoreError


def event(number: int) -> Event:
    return Event(
        "log", f"trial/{number}", 1_000 + number, {"metrics": {"loss": 0.5}, "step": number}
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path)
    yield journal
    journal.close()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Makes the kernel refuse to write files beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class ListStore:
    """A store in memory that is away while told so."""

    name = "a list"

    def __init__(self) -> None:
        self.away = False
        self.batches: list[list[Event]] = []

    def apply(self, events: Sequence[Event]) -> None:
        if self.away:
            raise StoreError("the list is away")
        self.batches.append(list(events))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited for 5 seconds"
        time.sleep(0.005)


def test_events_come_back_as_they_were_written(tmp_path: Path, journal: Journal) -> None:
    strange = Event("start", "trial/ü\n", 1, {"name": 'a "b"\u2028', "nan": float("inf")})
    for each in (event(1), strange, event(2)):
        journal.append(each)
    journal.close()

    again = Journal(tmp_path)

    assert [each for each, _ in again.events()] == [event(1), strange, event(2)]
    again.close()


def test_half_a_line_at_the_end_is_cut_off_and_the_next_event_is_whole(
    tmp_path: Path, journal: Journal
) -> None:
    journal.append(event(1))
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"operation": "log", "key": "tri')

    again = Journal(tmp_path)
    again.append(event(2))

    assert [each for each, _ in again.events()] == [event(1), event(2)]
    again.close()


def test_a_reader_waits_for_the_rest_of_a_line(journal: Journal) -> None:
    journal.append(event(1))
    with journal.path.open("ab") as file:
        file.write(b'{"operation"')
        file.flush()
        assert [each for each, _ in journal.events()] == [event(1)]


@pytest.mark.parametrize("line", ["no event\n", '{"operation": "log"}\n', "[]\n"])
def test_a_damaged_line_is_named(journal: Journal, line: str) -> None:
    journal.append(event(1))
    with journal.path.open("a") as file:
        file.write(line)

    with pytest.raises(SmallmError, match=r"tracking\.jsonl: holds no event in the line before"):
        list(journal.events())


def test_only_one_process_holds_a_journal(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(SmallmError, match="another process records this search"):
        Journal(tmp_path)

    journal.close()
    Journal(tmp_path).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_lock_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(SmallmError, match=f"cannot be locked: {os.strerror(code)}") as refused:
        Journal(tmp_path)
    assert "another process" not in str(refused.value)


def test_opening_a_journal_leaves_the_time_of_its_last_event(
    tmp_path: Path, journal: Journal
) -> None:
    journal.append(event(1))
    journal.close()
    os.utime(journal.path, (1_000_000, 1_000_000))

    Journal(tmp_path).close()

    assert journal.path.stat().st_mtime == 1_000_000


def test_a_process_killed_right_after_an_event_has_lost_none(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from smallm.journal import Event, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for number in range(50): journal.append(Event('log', 'search', number, {}))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)

    assert ended.returncode == -signal.SIGKILL
    journal = Journal(tmp_path)
    assert [each.time for each, _ in journal.events()] == list(range(50))
    journal.close()


def test_a_full_disk_is_one_line_and_leaves_no_half_event(journal: Journal) -> None:
    journal.append(event(1))
    size = journal.path.stat().st_size

    with largest_file(size + 10), pytest.raises(SmallmError, match="cannot be written"):
        journal.append(event(2))

    assert journal.path.stat().st_size == size
    journal.append(event(3))
    assert [each for each, _ in journal.events()] == [event(1), event(3)]


def test_every_store_has_its_own_position(tmp_path: Path, journal: Journal) -> None:
    for number in range(3):
        journal.append(event(number))
    behind_two = [offset for _, offset in journal.pending("one")][1]
    journal.mark("one", behind_two)
    journal.close()

    again = Journal(tmp_path)

    assert [each for each, _ in again.pending("one")] == [event(2)]
    assert again.count_pending("other") == 3
    assert again.has_pending("one")
    again.mark("one", again.path.stat().st_size)
    assert not again.has_pending("one")
    again.close()


def test_a_new_journal_does_not_inherit_the_position_of_an_old_one(
    tmp_path: Path, journal: Journal
) -> None:
    journal.append(event(1))
    journal.mark("store", journal.path.stat().st_size)
    journal.close()
    journal.path.unlink()

    again = Journal(tmp_path)
    again.append(event(2))

    assert again.count_pending("store") == 1
    again.close()


def test_a_damaged_position_says_what_to_do(tmp_path: Path, journal: Journal) -> None:
    journal.append(event(1))
    journal.close()
    (tmp_path / journal_module.POSITION_NAME).write_text("")

    with pytest.raises(SmallmError, match="delete it to send everything again"):
        Journal(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SmallmError, match="cannot be written"):
        Journal(tmp_path / "file" / "search")


def test_events_are_sent_in_order_in_batches_and_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BATCH", 4)
    store = ListStore()
    sender = Sender(journal, store, pytest.fail)
    for number in range(10):
        journal.append(event(number))

    assert sender.send() == 10
    assert sender.send() == 0
    assert [len(batch) for batch in store.batches] == [4, 4, 2]
    assert [each for batch in store.batches for each in batch] == [event(n) for n in range(10)]


def test_an_outage_is_told_once_and_so_is_its_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(journal_module, "LONGEST_WAIT_SECONDS", 0.02)
    store, told = ListStore(), list[str]()
    store.away = True
    sender = Sender(journal, store, told.append)
    sender.start()

    journal.append(event(1))
    until(lambda: told)
    journal.append(event(2))
    time.sleep(0.1)
    store.away = False
    until(lambda: len(told) == 2)

    assert sender.close(timeout=1) == 0
    assert told == [
        f"the list is away; {journal.path} keeps them until it does",
        "a list answers again: 2 waiting events are recorded",
    ]
    assert store.batches == [[event(1), event(2)]]


def test_what_a_store_did_not_take_at_the_end_stays_and_is_counted(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "TICK_SECONDS", 0.2)
    store = ListStore()
    store.away = True
    sender = Sender(journal, store, lambda _: None)
    sender.start()
    journal.append(event(1))

    started = time.monotonic()
    assert sender.close(timeout=0.5) == 1
    assert time.monotonic() - started < 10

    again = Journal(tmp_path)
    assert [each for each, _ in again.pending(store.name)] == [event(1)]
    again.close()
