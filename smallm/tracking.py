"""Records searches in MLflow: a run per search, runs of its trials below, its corpus, its champion.

Everything is an event in the journal of the search first and goes to MLflow in the background. A
run is known by a key of ours: `search`, `trial/<id>`, `confirmation/<config>`.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from smallm.errors import SmallmError
from smallm.journal import JOURNAL_NAME, Event, HeldError, Journal, Notify, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from smallm.mlflow_store import MlflowStore

Status = Literal["FINISHED", "KILLED", "FAILED"]

CHAMPION_URI = "models:/smallm@champion"
CHAMPION_FOLDER = "artifacts/model"
"""Where the Hugging Face folder lies in what MLflow downloads for the champion."""

# Quiet, private, and quick to fail: the journal tries again, so MLflow need not for minutes.
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

LOGGED_METRICS = frozenset(
    {
        "best_bits_per_byte",
        "bits_per_byte",
        "cross_entropy",
        "dead_units",
        "loss",
        "mean_activation",
        "saturated_units",
        "seconds",
        "spread",
        "tokens",
        "tokens_per_second",
    }
)


def metrics_of(values: Mapping[str, object]) -> dict[str, float]:
    """The metrics worth a series in MLflow: known names, alone or per seed (`loss/seed_42`)."""
    return {
        name: float(value)
        for name, value in values.items()
        if name.partition("/")[0] in LOGGED_METRICS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def stop_reason(
    *, tokens: int, budget: int, failure: str = "", error: str | None = None
) -> tuple[Status, str]:
    """How MLflow shows the end of a run: its status, and why it ended there."""
    if error is not None:
        return "FAILED", f"error: {error}"
    if failure:
        return "FAILED", f"{failure} (at {tokens:,} tokens)"
    if tokens < budget:
        return "KILLED", f"stopped early at {tokens:,} of {budget:,} tokens"
    return "FINISHED", "full budget"


def local_uri(home: Path) -> str:
    """The tracking URI of a home directory: a SQLite database, with the artifacts beside it."""
    folder = home.resolve() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


class SyncResult(NamedTuple):
    """How many events a sync recorded, and how many still wait."""

    pushed: int
    pending: int


def waiting(folders: Iterable[Path], uri: str, notify: Notify) -> list[Path]:
    """Those of the folders whose journals hold what the MLflow at a URI does not have.

    Left out is what another process records now: it sends that itself. A journal that cannot be
    read is told.
    """
    client = _connect(uri)
    found = []
    for folder in folders:
        try:
            if _waits(folder, client, uri):
                found.append(folder)
        except HeldError:
            pass
        except SmallmError as error:
            notify(f"left out: {error}")
    return found


def _waits(folder: Path, client: MlflowClient, uri: str) -> bool:
    journal = Journal(folder.resolve())
    try:
        opened = _first_event(journal)
        return opened is not None and journal.has_pending(
            _store(client, uri, opened, journal, lambda line: None).name
        )
    finally:
        journal.close()


def sync(folder: Path, uri: str, notify: Notify) -> SyncResult:
    """Records what the journal of an ended search holds and the MLflow at a URI does not have."""
    if not (folder / JOURNAL_NAME).is_file():
        raise SmallmError(f"{folder}: is no search folder, it holds no {JOURNAL_NAME}")
    client = _connect(uri)
    journal = Journal(folder.resolve())
    try:
        opened = _first_event(journal)
        if opened is None:
            return SyncResult(0, 0)
        store = _store(client, uri, opened, journal, notify)
        before = journal.count_pending(store.name)
        Sender(journal, store, notify).try_to_send()
        pending = journal.count_pending(store.name)
        return SyncResult(before - pending, pending)
    finally:
        journal.close()


class Tracker:
    """Takes down what a search does; none of its methods waits for MLflow."""

    def __init__(self, journal: Journal, store: MlflowStore, notify: Notify) -> None:
        self._journal = journal
        self._folder = journal.path.parent
        self._sender = Sender(journal, store, notify)
        self._logged = {
            (event.key, metric, event.data["step"])
            for event, _ in journal.events()
            if event.operation == "log"
            for metric in event.data["metrics"]
        }
        self.ended = {event.key for event, _ in journal.events() if event.operation == "end"}
        self._sender.start()

    @classmethod
    def open(
        cls, folder: Path, *, uri: str, experiment: str, search: str, notify: Notify
    ) -> Tracker:
        """Begins or resumes the record of a search; an MLflow that does not answer is an error."""
        client = _connect(uri, experiment)
        journal = Journal(folder.resolve())
        try:
            opened = _opening_event(journal, experiment, search)
        except SmallmError:
            journal.close()
            raise
        return cls(journal, _store(client, uri, opened, journal, notify), notify)

    def start_run(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> None:
        """Begins a run, or goes on with the one of that key."""
        strings = {param: str(value) for param, value in params.items()}
        self._append("start", key, name=name, parent=parent, params=strings, tags=dict(tags))

    def log(self, key: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Adds values to the series of a run, each once per step.

        A resumed trial reports again what it had reported after its last checkpoint; the first
        value stays.
        """
        new = {
            metric: float(value)
            for metric, value in metrics.items()
            if (key, metric, step) not in self._logged
        }
        if new:
            self._append("log", key, metrics=new, step=step)
            self._logged |= {(key, metric, step) for metric in new}

    def log_corpus(
        self,
        key: str,
        *,
        name: str,
        digest: str,
        source: Mapping[str, str],
        profile: Mapping[str, object],
    ) -> None:
        """Adds the corpus as the training input of a run."""
        data = {"digest": digest, "source": dict(source), "profile": dict(profile)}
        self._append("corpus", key, name=name, **data)

    def log_artifacts(self, key: str, path: Path) -> None:
        """Adds a file or a folder to a run; it must stay where it is until it is recorded."""
        self._append("artifacts", key, path=self._kept(path))

    def end_run(self, key: str, *, status: Status, reason: str) -> None:
        """Ends a run and says why it ended."""
        self._append("end", key, status=status, reason=reason)
        self.ended.add(key)

    def register_champion(self, key: str, folder: Path, *, tags: Mapping[str, str]) -> None:
        """Registers a Hugging Face folder as the champion, made by the run of that key."""
        digest = _folder_digest(folder)
        self._append("champion", key, path=self._kept(folder), digest=digest, tags=dict(tags))

    def close(self, *, timeout: float = 30) -> int:
        """Waits at most that many seconds for MLflow; says how many events are left to `sync`."""
        return self._sender.close(timeout)

    def _append(self, operation: str, key: str, **data: object) -> None:
        self._journal.append(Event(operation, key, _now(), data))

    def _kept(self, path: Path) -> str:
        # Relative paths let a search folder be moved before it is synchronized.
        path = path.resolve()
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _opening_event(journal: Journal, experiment: str, search: str) -> Event:
    """The first event of a journal: whose it is, with an id that no other journal has."""
    names = {"experiment": experiment, "search": search}
    opened = _first_event(journal)
    if opened is None:
        opened = Event("open", "search", _now(), {**names, "journal": uuid.uuid4().hex})
        journal.append(opened)
    for what, given in names.items():
        if opened.data[what] != given:
            raise SmallmError(
                f"{journal.path}: belongs to {what} {opened.data[what]!r}, not {given!r}"
            )
    return opened


def _first_event(journal: Journal) -> Event | None:
    return next((event for event, _ in journal.events()), None)


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _connect(uri: str, experiment: str | None = None) -> MlflowClient:
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Not before: importing MLflow takes seconds, and it reads its environment then.
    from smallm.mlflow_store import answering_client

    return answering_client(uri, experiment)


def _store(
    client: MlflowClient, uri: str, opened: Event, journal: Journal, notify: Notify
) -> MlflowStore:
    from smallm.mlflow_store import MlflowStore

    return MlflowStore(client, uri, opened, journal.path.parent, notify)
