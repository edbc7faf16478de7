"""Applies the events of a journal to MLflow, so that applying one twice changes nothing.

Runs are looked up by our tags before they are created, times come from the events, and a champion
is known by the digest of its files. Importing this file imports MLflow, which takes seconds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

import smallm
from smallm.errors import SmallmError
from smallm.files import whole_folder
from smallm.journal import Event, Notify, StoreError

T = TypeVar("T")

KEY_TAG = "smallm.key"
SEARCH_TAG = "smallm.search"
JOURNAL_TAG = "smallm.journal"
STOP_TAG = "smallm.stop_reason"
CROWNED_TAG = "smallm.crowned"
DIGEST_TAG = "smallm.model_digest"

MODEL = "smallm"
CHAMPION = "champion"
MODEL_CODE = Path(__file__).with_name("mlflow_model.py")
NEXT_TOKENS = 10

MODEL_URI = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")

ANSWER_SECONDS = 5
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
RUNS_PER_CALL = 1000
GIVEN_BY = {"params": "start", "metrics": "log", "tags": "end"}  # the operations of a journal
DATASET_DIGEST_LENGTH = 36

# OSError covers what requests raises.
ERRORS = (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError)
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}


def answering_client(uri: str, experiment: str | None = None) -> mlflow.MlflowClient:
    """A client of the MLflow at that URI, which has just answered; SmallmError if it has not."""
    _silence()
    try:
        if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
            # MLflow would try a database that it cannot open for 100 seconds.
            sqlalchemy.inspect(sqlalchemy.create_engine(uri)).get_table_names()
        with _request_timeout(ANSWER_SECONDS):
            client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = client.get_experiment_by_name(experiment or "Default")
    except ERRORS as error:
        raise SmallmError(f"MLflow at {_shown(uri)} does not answer: {_reason(error)}") from None
    if experiment and found and found.lifecycle_stage == "deleted":
        raise SmallmError(
            f"MLflow at {_shown(uri)}: the experiment {experiment!r} is deleted; restore it or"
            " choose another name"
        )
    return client


def _silence() -> None:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # What goes wrong in a database is raised as well, and told by whoever catches it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextmanager
def _request_timeout(seconds: int) -> Iterator[None]:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(seconds)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _reason(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join(str(error).split())


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _database(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path).resolve()


@dataclass
class Waiting:
    """What a run is given at the end of a batch of events."""

    params: list[list[Param]] = field(default_factory=list)
    """In calls: a start that names others is refused alone."""
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, RunTag] = field(default_factory=dict)
    end: Event | None = None


class MlflowStore:
    """The runs of one journal in one MLflow."""

    def __init__(
        self, client: mlflow.MlflowClient, uri: str, opened: Event, folder: Path, notify: Notify
    ) -> None:
        database = _database(uri)
        self.name = f"sqlite:///{database}" if database else _shown(uri)
        self._client = client
        # Beside a local database; a server decides for itself.
        self._artifact_root = str(database.parent / "artifacts") if database else None
        self._names: Mapping[str, str] = opened.data
        self._folder = folder
        self._notify = notify
        self._experiment: str | None = None
        self._run_ids: dict[str, str] | None = None
        self._waiting: defaultdict[str, Waiting] = defaultdict(Waiting)

    def apply(self, events: Sequence[Event]) -> None:
        """Records events in order; what belongs to a run goes in few calls, at the end."""
        self._waiting.clear()
        try:
            for event in events:
                with self._refusals_told(event.operation, event.key):
                    OPERATIONS[event.operation](self, event)
            for key, waiting in self._waiting.items():
                self._send(key, waiting)
        except ERRORS as error:
            # A call that failed may have done its work: look again before repeating it.
            self._run_ids = self._experiment = None
            raise StoreError(f"MLflow at {self.name} takes no records: {_reason(error)}") from error

    def _send(self, key: str, waiting: Waiting) -> None:
        """Params, metrics and tags of a run in one call, unless they are many or one is refused."""
        parts: dict[str, list[Any]] = {
            "params": waiting.params,
            "metrics": list(_chunks(waiting.metrics, METRICS_PER_CALL)),
            "tags": list(_chunks(waiting.tags.values(), PARAMS_PER_CALL)),
        }
        try:
            for together in zip_longest(*parts.values(), fillvalue=()):
                self._client.log_batch(self._run_id(key), **dict(zip(parts, together, strict=True)))
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            for kind, calls in parts.items():
                for part in calls:
                    with self._refusals_told(GIVEN_BY[kind], key):
                        self._client.log_batch(self._run_id(key), **{kind: part})
        if end := waiting.end:
            with self._refusals_told("end", key):
                status = end.data["status"]
                self._client.set_terminated(self._run_id(key), status, end_time=end.time)

    @contextmanager
    def _refusals_told(self, operation: str, key: str) -> Iterator[None]:
        """What MLflow will never accept is told and must not block the rest."""
        try:
            yield
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self._notify(f"MLflow refuses `{operation}` of {key}: {_reason(error)}")

    def _open(self, event: Event) -> None:
        """Makes the experiment."""
        self._experiment_id()

    def _start(self, event: Event) -> None:
        if event.key in self._runs():
            self._client.update_run(self._run_id(event.key), status="RUNNING")
        else:
            self._create_run(event)
        waiting = self._waiting[event.key]
        params = [Param(name, value) for name, value in event.data["params"].items()]
        waiting.params += _chunks(params, PARAMS_PER_CALL)
        waiting.end = None

    def _create_run(self, event: Event) -> None:
        tags = {
            **event.data["tags"],
            KEY_TAG: event.key,
            SEARCH_TAG: self._names["search"],
            JOURNAL_TAG: self._names["journal"],
        }
        if parent := event.data["parent"]:
            tags[MLFLOW_PARENT_RUN_ID] = self._run_id(parent)
        run = self._client.create_run(
            self._experiment_id(), start_time=event.time, tags=tags, run_name=event.data["name"]
        )
        self._runs()[event.key] = run.info.run_id

    def _log(self, event: Event) -> None:
        self._run_id(event.key)
        self._waiting[event.key].metrics += [
            Metric(name, value, event.time, event.data["step"])
            for name, value in event.data["metrics"].items()
        ]

    def _corpus(self, event: Event) -> None:
        data = event.data
        dataset = Dataset(
            name=data["name"],
            digest=data["digest"][:DATASET_DIGEST_LENGTH],
            source_type="code",
            source=json.dumps({"tags": data["source"]}),
            profile=json.dumps({**data["profile"], "digest": data["digest"]}),
        )
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
        self._client.log_inputs(self._run_id(event.key), datasets=[DatasetInput(dataset, tags)])

    def _artifacts(self, event: Event) -> None:
        path = self._existing(event)
        run_id = self._run_id(event.key)
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), path.name)
        else:
            self._client.log_artifact(run_id, str(path))

    def _end(self, event: Event) -> None:
        self._run_id(event.key)
        waiting = self._waiting[event.key]
        waiting.tags[STOP_TAG] = RunTag(STOP_TAG, event.data["reason"])
        waiting.end = event

    def _champion(self, event: Event) -> None:
        if not self._client.search_registered_models(f"name = '{MODEL}'"):
            self._client.create_registered_model(MODEL)
        run_id = self._run_id(event.key)
        found = self._client.search_model_versions(
            f"name = '{MODEL}' and run_id = '{run_id}'"
            f" and tags.`{DIGEST_TAG}` = '{event.data['digest']}'"
        )
        version = found[0].version if found else self._register(event, run_id)
        if self._last_crowned() <= event.time:
            self._client.set_registered_model_alias(MODEL, CHAMPION, version)

    def _register(self, event: Event, run_id: str) -> str:
        artifacts = f"champion-{event.data['digest'][:12]}"
        with tempfile.TemporaryDirectory() as temporary:
            packed = _packed_model(self._existing(event), Path(temporary))
            self._client.log_artifacts(run_id, str(packed), artifacts)
        tags = {
            **event.data["tags"],
            DIGEST_TAG: event.data["digest"],
            CROWNED_TAG: str(event.time),
        }
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{artifacts}"
        version = self._client.create_model_version(MODEL, source, run_id=run_id, tags=tags)
        return str(version.version)

    def _last_crowned(self) -> int:
        """When the champion was crowned: a record sent late must not depose a later champion."""
        version = self._client.get_registered_model(MODEL).aliases.get(CHAMPION)
        if version is None:
            return 0
        return int(self._client.get_model_version(MODEL, version).tags.get(CROWNED_TAG, 0))

    def _existing(self, event: Event) -> Path:
        path = self._folder / str(event.data["path"])
        if not path.exists():
            raise MlflowException.invalid_parameter_value(f"{path} does not exist any more")
        return path

    def _experiment_id(self) -> str:
        if self._experiment is None:
            name = self._names["experiment"]
            found = self._client.get_experiment_by_name(name)
            self._experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(name, artifact_location=self._artifact_root)
            )
        return self._experiment

    def _run_id(self, key: str) -> str:
        if key not in self._runs():
            raise MlflowException.invalid_parameter_value(f"run {key} was never started")
        return self._runs()[key]

    def _runs(self) -> dict[str, str]:
        if self._run_ids is None:
            self._run_ids = {run.data.tags[KEY_TAG]: run.info.run_id for run in self._recorded()}
        return self._run_ids

    def _recorded(self) -> Iterator[Run]:
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [self._experiment_id()],
                filter_string=f"tags.`{JOURNAL_TAG}` = '{self._names['journal']}'",
                run_view_type=ViewType.ALL,
                max_results=RUNS_PER_CALL,
                page_token=token or None,
            )
            yield from page
            token = page.token or None


def registered_version(uri: str, model_uri: str) -> str:
    """The version that models:/NAME/VERSION or models:/NAME@ALIAS means now."""
    name, alias, version = _named(model_uri)
    client = answering_client(uri)
    try:
        if version:
            return str(client.get_model_version(name, version).version)
        return str(client.get_model_version_by_alias(name, alias).version)
    except ERRORS as error:
        raise _no_model(uri, model_uri, error) from None


def fetched_version(uri: str, model_uri: str, version: str, home: Path) -> Path:
    """The model folder of a version of a registered model, fetched into the home once."""
    client = answering_client(uri)
    name, _, _ = _named(model_uri)
    try:
        found = client.get_model_version(name, version)
        digest = found.tags.get(DIGEST_TAG) or found.run_id or "untagged"
        folder = home / "fetched" / f"{name}-{version}-{digest[:12]}"
        if not folder.exists():
            source = client.get_model_version_download_uri(name, version)
            with whole_folder(folder) as temporary:
                packed = mlflow.artifacts.download_artifacts(
                    artifact_uri=source, dst_path=str(temporary), tracking_uri=uri
                )
                Path(packed).rename(temporary / "packed")
    except ERRORS as error:
        raise _no_model(uri, model_uri, error) from None
    return folder / "packed" / "artifacts" / "model"


def _named(model_uri: str) -> tuple[str, str, str]:
    """The name, the alias and the version, one of which is empty."""
    found = MODEL_URI.fullmatch(model_uri)
    if found is None:
        raise SmallmError(
            f"{model_uri}: a registered model is written models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    name, alias, version = found.groups(default="")
    return name, alias, version


def _no_model(uri: str, model_uri: str, error: Exception) -> SmallmError:
    hint = ": run `make search`" if model_uri == f"models:/{MODEL}@{CHAMPION}" else ""
    return SmallmError(f"MLflow at {_shown(uri)} gives no {model_uri} ({_reason(error)}){hint}")


OPERATIONS: Mapping[str, Callable[[MlflowStore, Event], None]] = {
    "open": MlflowStore._open,
    "start": MlflowStore._start,
    "log": MlflowStore._log,
    "corpus": MlflowStore._corpus,
    "artifacts": MlflowStore._artifacts,
    "end": MlflowStore._end,
    "champion": MlflowStore._champion,
}


def _packed_model(folder: Path, temporary: Path) -> Path:
    """A Hugging Face folder behind the model code, as MLflow stores it."""
    # MLflow keeps the name of the folder: this gives every champion the same one.
    model = shutil.copytree(folder, temporary / "model")
    packed = temporary / "packed"
    mlflow.pyfunc.save_model(
        packed,
        python_model=str(MODEL_CODE),
        artifacts={"model": str(model)},
        model_config={"k": NEXT_TOKENS},
        pip_requirements=[f"smallm=={smallm.__version__}", f"mlflow=={mlflow.__version__}"],
    )
    return packed


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cuts values into lists that one call of MLflow takes."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
