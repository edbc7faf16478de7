"""A command that a person starts, recorded in a folder of the home and as a run in MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from smallm.files import write_json, write_text
from smallm.tracking import Tracker, local_uri

SECONDS_FOR_MLFLOW = 30


class RecordedRun:
    """A folder under the home and a run in MLflow, whose key is the kind.

    Entering raises SmallmError when MLflow does not answer, before anything is computed.
    """

    kind: ClassVar[str]

    def __init__(self, home: Path, *, tell: Callable[[str], None]) -> None:
        self.home = home
        self.folder = new_folder(home / f"{self.kind}s")
        self.record = self.folder / f"{self.kind}.json"
        self.page = self.folder / f"{self.kind}.html"
        self.tell = tell

    def __enter__(self) -> Self:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(self.home)
        self.tracker = Tracker.open(
            self.folder, uri=uri, experiment="smallm", search=self.folder.name, notify=self.tell
        )
        self.tracker.start_run(
            self.kind, name=self.folder.name, params={}, tags={"smallm.kind": self.kind}
        )
        return self

    def write(self, record: Mapping[str, Any], page: str) -> None:
        """Writes the record and its page."""
        write_json(self.record, record)
        write_text(self.page, page)

    def end(self) -> None:
        """Ends the run, with the record and its page as artifacts."""
        for path in (self.record, self.page):
            self.tracker.log_artifacts(self.kind, path)
        self.tracker.end_run(self.kind, status="FINISHED", reason="done")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.tracker.end_run(self.kind, status="FAILED", reason=str(error) or kind.__name__)
            if self.page.exists():
                self.tell(f"what was reached before: {self.page}")
        pending = self.tracker.close(timeout=SECONDS_FOR_MLFLOW)
        if pending:
            name = self.folder.name
            self.tell(f"{pending} records wait for MLflow: `smallm sync {name}` sends them")


def new_folder(parent: Path) -> Path:
    """A folder that does not exist yet, named after the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    number = 1
    while (folder := parent / (stamp if number == 1 else f"{stamp}-{number}")).exists():
        number += 1
    return folder
