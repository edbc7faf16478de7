"""MLflow has every run, value and file of a search exactly once, whatever happened on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from ports import free_port

from smallm import journal as journal_module
from smallm import tracking
from smallm.errors import SmallmError
from smallm.journal import JOURNAL_NAME, POSITION_NAME
from smallm.mlflow_store import fetched_version, registered_version
from smallm.tracking import CHAMPION_FOLDER, CHAMPION_URI, Tracker, local_uri, sync

EXPERIMENT = "smallm"
SEEDS = (42, 43, 44)


@pytest.fixture(scope="module")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once because that takes seconds."""
    uri = local_uri(tmp_path_factory.mktemp("new"))
    tracking._connect(uri)
    return Path(uri.removeprefix("sqlite:///"))


@pytest.fixture
def uri(new_database: Path, tmp_path: Path) -> str:
    uri = local_uri(tmp_path / "home")
    shutil.copy(new_database, uri.removeprefix("sqlite:///"))
    return uri


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Hugging Face folder: a tiny random GPT-2 with a tokenizer trained on one sentence."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        ["once upon a time there was a model"], trainers.WordLevelTrainer(special_tokens=["?"])
    )
    folder = tmp_path_factory.mktemp("models") / "a-champion"
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=words.get_vocab_size(), n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def open_tracker(
    folder: Path,
    uri: str,
    notify: Callable[[str], None] = pytest.fail,
    *,
    experiment: str = EXPERIMENT,
    search: str = "quick-1",
) -> Tracker:
    return Tracker.open(folder, uri=uri, experiment=experiment, search=search, notify=notify)


def record_trial(tracker: Tracker, trial: int, steps: range) -> None:
    """What a trial of three replicates reports."""
    key = f"trial/{trial}"
    params = {"activation": "relu2", "seeds": SEEDS, "trial": trial}
    tracker.start_run(key, name=f"trial-{trial}", parent="search", params=params, tags={"a": "b"})
    for step in steps:
        metrics = {f"bits_per_byte/seed_{seed}": 2 + seed / step for seed in SEEDS}
        tracker.log(key, {**metrics, "bits_per_byte": 2 + 43 / step}, step=step)
    status, reason = tracking.stop_reason(tokens=steps[-1], budget=1000)
    tracker.end_run(key, status=status, reason=reason)


def record_search(tracker: Tracker, folder: Path, champion: Path) -> None:
    """A whole small search with two trials, a corpus, files and a champion."""
    tracker.start_run("search", name="quick-1", params={"space": "quick"}, tags={"digest": "abc"})
    tracker.log_corpus(
        "search",
        name="docs",
        digest="f" * 64,
        source={"source": "docs", "torch": "2.13"},
        profile={"bytes": 9_000_000},
    )
    for trial in range(2):
        record_trial(tracker, trial, range(100, 600, 100))
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "plots" / "curves.svg").write_text("<svg/>")
    (folder / "report.html").write_text("<html/>")
    tracker.log_artifacts("search", folder / "report.html")
    tracker.log_artifacts("search", folder / "plots")
    tracker.register_champion("search", champion, tags={"corpus": "f" * 64})
    tracker.end_run("search", status="FINISHED", reason="all trials ended")


def recorded(client: MlflowClient, name: str = EXPERIMENT) -> dict[str, Run]:
    """All runs of an experiment by our key, as MLflow shows them."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags["smallm.key"] for run in runs]
    assert len(set(keys)) == len(keys), "a run exists twice"
    return dict(zip(keys, runs, strict=True))


def series(client: MlflowClient, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, metric)]


def assert_search_recorded_once(uri: str, experiment: str = EXPERIMENT) -> None:
    client = MlflowClient(uri, uri)
    runs = recorded(client, experiment)
    assert set(runs) == {"search", "trial/0", "trial/1"}
    for trial in (runs["trial/0"], runs["trial/1"]):
        assert trial.data.tags["mlflow.parentRunId"] == runs["search"].info.run_id
        assert (trial.info.status, trial.data.tags["smallm.stop_reason"]) == (
            "KILLED",
            "stopped early at 500 of 1,000 tokens",
        )
        for seed in SEEDS:
            assert series(client, trial, f"bits_per_byte/seed_{seed}") == [
                (step, 2 + seed / step) for step in range(100, 600, 100)
            ]
    search = runs["search"]
    assert search.info.status == "FINISHED"
    assert len(search.inputs.dataset_inputs) == 1
    run_id = search.info.run_id
    assert {file.path for file in client.list_artifacts(run_id)} >= {"report.html", "plots"}
    [version] = client.search_model_versions(f"name = 'smallm' and run_id = '{run_id}'")
    assert client.get_model_version_by_alias("smallm", "champion").version == version.version


def rewind(folder: Path) -> None:
    """Makes the journal forget that anything was sent, as a kill right after sending does."""
    (folder / POSITION_NAME).unlink()


def test_a_search_becomes_a_tree_of_runs_with_all_that_belongs_to_it(
    tmp_path: Path, uri: str, champion: Path
) -> None:
    tracker = open_tracker(tmp_path / "search", uri)
    record_search(tracker, tmp_path / "search", champion)
    assert tracker.close() == 0

    assert_search_recorded_once(uri)
    client = MlflowClient(uri)
    runs = recorded(client)
    assert runs["search"].data.tags["smallm.search"] == "quick-1"
    assert runs["search"].data.tags["digest"] == "abc"
    assert runs["trial/0"].data.params == {
        "activation": "relu2",
        "seeds": "(42, 43, 44)",
        "trial": "0",
    }
    [corpus] = runs["search"].inputs.dataset_inputs
    assert (corpus.dataset.name, corpus.dataset.digest) == ("docs", "f" * 36)
    assert json.loads(corpus.dataset.profile) == {"bytes": 9_000_000, "digest": "f" * 64}
    assert mlflow.data.get_source(corpus).to_dict() == {"tags": {"source": "docs", "torch": "2.13"}}
    assert [(tag.key, tag.value) for tag in corpus.tags] == [("mlflow.data.context", "training")]
    assert runs["search"].info.artifact_uri.startswith(str(tmp_path / "home/mlflow/artifacts"))


def test_the_champion_is_a_hugging_face_folder_behind_a_model_that_predicts(
    tmp_path: Path, uri: str, champion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tracker = open_tracker(tmp_path / "search", uri)
    tracker.start_run("search", name="quick-1", params={}, tags={})
    tracker.register_champion("search", champion, tags={"corpus": "abc"})
    assert tracker.close() == 0

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    download = Path(mlflow.artifacts.download_artifacts(CHAMPION_URI))
    files = {path.name: path.read_bytes() for path in (download / CHAMPION_FOLDER).iterdir()}
    assert files == {path.name: path.read_bytes() for path in champion.iterdir()}
    assert not list(download.rglob("*.pkl"))
    for _ in range(2):  # the second time it is there
        version = registered_version(uri, CHAMPION_URI)
        assert version == registered_version(uri, "models:/smallm/1") == "1"
        fetched = fetched_version(uri, CHAMPION_URI, version, tmp_path / "home")
        assert files == {path.name: path.read_bytes() for path in fetched.iterdir()}

    model = mlflow.pyfunc.load_model(str(download), model_config={"k": 3})
    [first, second] = model.predict(["once upon a", "time"])
    hf_model = AutoModelForCausalLM.from_pretrained(champion)
    tokenizer = AutoTokenizer.from_pretrained(champion)
    with torch.inference_mode():
        logits = hf_model(tokenizer("once upon a", return_tensors="pt").input_ids).logits[0, -1]
    expected = logits.softmax(-1).sort(descending=True)
    assert [each["token"] for each in first] == [
        tokenizer.decode([token]) for token in expected.indices[:3]
    ]
    assert [each["probability"] for each in first] == pytest.approx(expected.values[:3].tolist())
    assert len(second) == 3


def test_what_was_sent_but_not_marked_is_sent_again_and_changes_nothing(
    tmp_path: Path, uri: str, champion: Path
) -> None:
    folder = tmp_path / "search"
    tracker = open_tracker(folder, uri)
    record_search(tracker, folder, champion)
    assert tracker.close() == 0
    before = {key: run.to_dictionary() for key, run in recorded(MlflowClient(uri)).items()}
    events = len((folder / JOURNAL_NAME).read_text().splitlines())

    rewind(folder)
    assert sync(folder, uri, pytest.fail) == (events, 0)

    assert_search_recorded_once(uri)
    assert {key: run.to_dictionary() for key, run in recorded(MlflowClient(uri)).items()} == before
    assert sync(folder, uri, pytest.fail) == (0, 0)


def test_a_search_killed_in_the_middle_resumes_into_the_same_runs(
    tmp_path: Path, uri: str, champion: Path
) -> None:
    folder = tmp_path / "search"
    program = (
        "import os, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_tracking import open_tracker, record_trial\n"
        "tracker = open_tracker(Path(sys.argv[2]), sys.argv[3])\n"
        "tracker.start_run('search', name='quick-1', params={'space': 'quick'}, tags={})\n"
        "record_trial(tracker, 0, range(100, 400, 100))\n"
        f"while not Path(sys.argv[2], {POSITION_NAME!r}).exists(): time.sleep(0.01)\n"
        "record_trial(tracker, 1, range(100, 300, 100))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", program, tests, folder, uri], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert "trial/0" in recorded(MlflowClient(uri))
    with (folder / JOURNAL_NAME).open("ab") as journal:
        journal.write(b'{"operation": "end", "ke')
    rewind(folder)

    tracker = open_tracker(folder, uri)
    record_search(tracker, folder, champion)
    assert tracker.close() == 0

    assert_search_recorded_once(uri)


def test_a_resumed_run_is_running_until_it_ends_again(tmp_path: Path, uri: str) -> None:
    statuses = []
    for reason in ("interrupted", "full budget"):
        tracker = open_tracker(tmp_path / "search", uri)
        tracker.start_run("search", name="quick-1", params={}, tags={})
        tracker._sender.send()
        statuses.append(recorded(MlflowClient(uri))["search"].info.status)
        tracker.end_run("search", status="FINISHED", reason=reason)
        assert tracker.close() == 0

    assert statuses == ["RUNNING", "RUNNING"]
    run = recorded(MlflowClient(uri))["search"]
    assert (run.info.status, run.data.tags["smallm.stop_reason"]) == ("FINISHED", "full budget")


def test_searches_of_the_same_name_keep_apart(tmp_path: Path, uri: str) -> None:
    for folder in ("one", "two"):
        tracker = open_tracker(tmp_path / folder, uri)
        tracker.start_run("search", name="quick-1", params={"folder": folder}, tags={})
        assert tracker.close() == 0

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["folder"] for run in runs} == {"one", "two"}


def test_a_folder_belongs_to_one_search(tmp_path: Path, uri: str) -> None:
    open_tracker(tmp_path / "search", uri).close()

    with pytest.raises(SmallmError, match="belongs to search 'quick-1', not 'other'"):
        open_tracker(tmp_path / "search", uri, search="other")
    with pytest.raises(SmallmError, match="is no search folder"):
        sync(tmp_path, uri, pytest.fail)


def test_a_deleted_experiment_is_one_line(tmp_path: Path, uri: str) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))

    with pytest.raises(SmallmError, match="the experiment 'gone' is deleted; restore it or"):
        open_tracker(tmp_path / "search", uri, experiment="gone")


def test_many_params_and_metrics_fit_into_calls_of_the_allowed_size(
    tmp_path: Path, uri: str
) -> None:
    tracker = open_tracker(tmp_path / "search", uri)
    params = {f"param_{number}": number for number in range(250)}
    tracker.start_run("search", name="quick-1", params=params, tags={})
    for step in range(300):
        tracker.log("search", {f"loss/seed_{seed}": step + seed for seed in range(10)}, step=step)
    tracker.log("search", {"loss": float("nan")}, step=1)
    assert tracker.close() == 0

    client = MlflowClient(uri)
    run = recorded(client)["search"]
    assert len(run.data.params) == 250
    assert series(client, run, "loss/seed_7") == [(step, step + 7) for step in range(300)]
    assert run.data.metrics["loss"] != run.data.metrics["loss"]


def test_what_mlflow_refuses_is_told_and_does_not_block_the_rest(tmp_path: Path, uri: str) -> None:
    told: list[str] = []
    tracker = open_tracker(tmp_path / "search", uri, told.append)
    tracker.start_run("search", name="quick-1", params={"space": "quick"}, tags={})
    tracker.start_run("search", name="quick-1", params={"space": "full"}, tags={})
    tracker.log_artifacts("search", tmp_path / "gone.html")
    tracker.end_run("trial/7", status="FINISHED", reason="never began")
    tracker.log("search", {"loss": 1.0}, step=1)
    assert tracker.close() == 0

    assert len(told) == 3
    gone, never, again = sorted(told)
    assert gone.endswith("gone.html does not exist any more")
    assert never == "MLflow refuses `end` of trial/7: run trial/7 was never started"
    assert again.startswith("MLflow refuses `start` of search: ")
    assert recorded(MlflowClient(uri))["search"].data.metrics == {"loss": 1.0}


def test_a_champion_recorded_late_does_not_depose_a_later_one(
    tmp_path: Path, uri: str, champion: Path
) -> None:
    for name in ("early", "late"):
        tracker = open_tracker(tmp_path / name, uri)
        tracker.start_run("search", name=name, params={}, tags={})
        tracker.register_champion("search", champion, tags={"who": name})
        assert tracker.close() == 0

    rewind(tmp_path / "early")
    client = MlflowClient(uri, uri)
    client.delete_model_version("smallm", "1")
    assert sync(tmp_path / "early", uri, pytest.fail).pending == 0

    assert len(client.search_model_versions("name = 'smallm'")) == 2
    assert client.get_model_version_by_alias("smallm", "champion").tags["who"] == "late"


def test_only_known_metrics_become_series() -> None:
    reported = {
        "bits_per_byte": 2,
        "loss/seed_42": 3.5,
        "trial_id": "a",
        "done": False,
        "seconds": True,
        "time_total_s": 1.0,
    }

    assert tracking.metrics_of(reported) == {"bits_per_byte": 2.0, "loss/seed_42": 3.5}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"tokens": 10, "budget": 10}, ("FINISHED", "full budget")),
        ({"tokens": 5, "budget": 10}, ("KILLED", "stopped early at 5 of 10 tokens")),
        (
            {"tokens": 5, "budget": 10, "failure": "seed 1 lost"},
            ("FAILED", "seed 1 lost (at 5 tokens)"),
        ),
        ({"tokens": 5, "budget": 10, "error": "no memory"}, ("FAILED", "error: no memory")),
    ],
)
def test_the_end_of_a_run_has_a_status_and_a_reason(
    facts: dict[str, int], expected: tuple[str, str]
) -> None:
    assert tracking.stop_reason(**facts) == expected


def test_importing_tracking_does_not_import_mlflow() -> None:
    program = "import sys, smallm.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_new_home_is_recorded_in_without_a_word_on_the_console(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_tracking import local_uri, open_tracker\n"
        "home, folder = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "tracker = open_tracker(home / 'search', local_uri(home))\n"
        "tracker.start_run('search', name='quick-1', params={}, tags={})\n"
        "tracker.register_champion('search', folder, tags={})\n"
        "sys.exit(tracker.close())\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent, tmp_path, tmp_path / "model"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow", "model", "search"}


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_uri_that_does_not_answer_is_one_line_and_leaves_nothing(
    tmp_path: Path, mute_port: int
) -> None:
    (tmp_path / "no.db").write_text("this is no database, whatever its name says" * 50)
    for uri, reason in {
        f"http://user:secret@127.0.0.1:{free_port()}": "Connection refused",
        f"http://127.0.0.1:{mute_port}": "timed out",
        f"sqlite:///{tmp_path}/no.db": "file is not a database",
        f"sqlite:///{tmp_path}/no/folder/mlflow.db": "unable to open database file",
        str(tmp_path / "mlruns"): "",
        "gopher://somewhere": "",
    }.items():
        started = time.monotonic()
        with pytest.raises(SmallmError, match=f"does not answer: .*{reason}") as raised:
            open_tracker(tmp_path / "search", uri)
        assert time.monotonic() - started < 15
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["no.db"]


class Server:
    """A real `mlflow server` that can be stopped and started again on the same port and data."""

    def __init__(self, folder: Path, new_database: Path) -> None:
        shutil.copy(new_database, folder / "server.db")
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        self._command += ["--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200)
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), new_database)
    server.start()
    yield server
    server.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 seconds"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_server_stopped_and_started_again_has_everything_once(
    tmp_path: Path,
    server: Server,
    champion: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_module, "LONGEST_WAIT_SECONDS", 0.5)
    told: list[str] = []
    folder = tmp_path / "search"
    tracker = open_tracker(folder, server.uri, told.append, experiment="stopped")
    tracker.start_run("search", name="quick-1", params={"space": "quick"}, tags={})
    record_trial(tracker, 0, range(100, 300, 100))
    until(lambda: tracker._journal.count_pending(server.uri) == 0)

    server.stop()
    started = time.monotonic()
    record_search(tracker, folder, champion)
    assert time.monotonic() - started < 10, "recording waited for the server"
    until(lambda: told)
    server.start()
    until(lambda: len(told) == 2)
    assert tracker.close() == 0

    assert told[0].startswith(f"MLflow at {server.uri} takes no records: ")
    assert told[1].startswith(f"{server.uri} answers again: ")
    assert_search_recorded_once(server.uri, "stopped")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_what_a_server_missed_is_recorded_by_sync(
    tmp_path: Path, server: Server, champion: Path
) -> None:
    told: list[str] = []
    folder = tmp_path / "search"
    tracker = open_tracker(folder, server.uri, told.append, experiment="missed")
    tracker.start_run("search", name="quick-1", params={"space": "quick"}, tags={})
    until(lambda: tracker._journal.count_pending(server.uri) == 0)
    server.stop()
    record_search(tracker, folder, champion)
    left = tracker.close(timeout=1)

    assert left > 0
    assert len(told) == 1
    with pytest.raises(SmallmError, match="does not answer"):
        sync(folder, server.uri, pytest.fail)
    folder = folder.rename(tmp_path / "moved")
    server.start()
    assert sync(folder, server.uri, pytest.fail) == (left, 0)
    assert_search_recorded_once(server.uri, "missed")
