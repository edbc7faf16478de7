"""One storage for tapes, checkpoints and results: a folder, and a bucket of a real S3 server."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3
from test_search import finish, read_until

from smallm.errors import SmallmError
from smallm.files import read_json
from smallm.journal import JOURNAL_NAME
from smallm.ledger import built_corpus
from smallm.parcels import folders_of
from smallm.settings import CorpusSettings
from smallm.space import load_space
from smallm.storage import LAST, Mirror, Storage, fetch_search, trying_again


@pytest.fixture(scope="module")
def bucket():
    with s3.server() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path):
    if request.param == "folder":
        return Storage(f"{tmp_path}/shared")
    request.getfixturevalue("bucket")
    return Storage(f"s3://{s3.BUCKET}/{tmp_path.name}")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_comes_back_as_it_was_and_its_manifest_is_written_last(storage, tmp_path):
    storage.check()
    folder = tmp_path / "tape"
    (folder / "deep").mkdir(parents=True)
    (folder / LAST).write_text("{}")
    (folder / "deep" / "z.bin").write_bytes(b"z" * 100_000)
    (folder / "empty").touch()
    (folder / "tokens").mkdir()
    (folder / "tokens" / "apart").touch()
    written = []
    keep_file = storage.keep_file
    storage.keep_file = lambda path, name: (written.append(path.name), keep_file(path, name))
    storage.keep(folder, "tapes/one")
    storage.keep(folder, "tapes/one")
    assert written == ["z.bin", "empty", LAST]
    storage.fetch("tapes/one", tmp_path / "other")
    expected = contents(folder)
    del expected["tokens/apart"]
    assert contents(tmp_path / "other") == expected
    assert storage.names("tapes") == ["one"]
    assert storage.names("nothing") == []


def test_a_corpus_is_built_once_and_fetched_by_a_machine_without_it(
    storage, small_corpus, tmp_path, monkeypatch
):
    corpus, space = CorpusSettings(source="folder", path=small_corpus), load_space("quick")
    space = space.model_copy(update={"settings": {**space.settings, "vocabulary": 400}})
    tape, folders = built_corpus(corpus, space, home=tmp_path / "first", storage=storage)
    monkeypatch.setattr("smallm.ledger.build_tape", lambda *_, home, **__: _opened(tape, home))
    monkeypatch.setattr("smallm.ledger.tokenize_tape", lambda *_, **__: None)
    _, others = built_corpus(corpus, space, home=tmp_path / "second", storage=storage)
    for here, there in zip(folders_of(folders.values()), folders_of(others.values()), strict=True):
        assert contents(there) == contents(here)


def _opened(tape, home):
    """Only opens, for it was fetched."""
    return type(tape)(home / "tapes" / tape.folder.name)


def test_a_search_is_mirrored_and_goes_on_elsewhere_but_never_back(storage, tmp_path):
    said = []
    folder = tmp_path / "first" / "searches" / "one"
    (folder / "plots").mkdir(parents=True)
    (folder / "search.json").write_text("{}")
    (folder / JOURNAL_NAME).write_text("1\n")
    (folder / "tracking.position").write_text("{}")
    mirror = Mirror(storage, folder, said.append)
    mirror.start()
    (folder / JOURNAL_NAME).write_text("1\n2\n")
    (folder / "plots" / "a.svg").write_text("<svg/>")
    mirror.close()
    assert not said
    other = tmp_path / "second"
    fetch_search(storage, other, "newest")
    found = contents(other / "searches" / "one")
    assert sorted(found) == ["plots/a.svg", "search.json", JOURNAL_NAME]
    assert found[JOURNAL_NAME] == b"1\n2\n"
    journal = other / "searches" / "one" / JOURNAL_NAME
    journal.write_text("1\n2\n3\n")
    fetch_search(storage, other, "one")
    assert journal.read_text() == "1\n2\n3\n"
    fetch_search(storage, other, "unknown")
    assert [each.name for each in (other / "searches").iterdir()] == ["one"]


def test_another_folder_of_the_same_name_is_not_the_shared_one(tmp_path):
    storage = Storage(f"{tmp_path}/shared")
    with storage.marked() as mark:
        Storage(f"{tmp_path}/shared").check(mark)
        with pytest.raises(SmallmError, match="is not the folder that the driver writes to"):
            Storage(f"{tmp_path}/other").check(mark)
    with pytest.raises(SmallmError, match="is not the folder"):
        storage.check(mark)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://absent/x", "storage s3://absent/x: cannot be written: .*does not exist"),
        ("ftp://host/x", "storage ftp://host/x: is not known; allowed is a folder, s3://"),
        ("s3:///x", "names no bucket"),
        ("relative", "is not known"),
        ("/proc/nowhere", "storage /proc/nowhere: cannot be written"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(bucket, uri, words):
    with pytest.raises(SmallmError, match=words) as raised:
        Storage(uri).check()
    assert "\n" not in str(raised.value)


def test_a_bucket_without_permission_is_one_line(bucket, monkeypatch):
    import boto3

    boto3.client("s3").put_bucket_policy(Bucket=s3.BUCKET, Policy=DENIED)
    try:
        with pytest.raises(SmallmError, match=r"cannot be written: .*ACCESS_DENIED"):
            Storage(f"s3://{s3.BUCKET}/denied").check()
    finally:
        boto3.client("s3").delete_bucket_policy(Bucket=s3.BUCKET)


DENIED = """{"Version": "2012-10-17", "Statement": [
  {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::bucket/denied/*"}
]}"""


SPACE = """
trials: 4
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11]
settings:
  {training_tokens: 150000, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
   evaluate_at: [0.1111, 0.3333, 1.0], evaluation_bytes: 3000}
search:
  learning_rate: {low: 0.001, high: 0.02, log: true}
"""


def test_a_write_is_tried_again_until_the_bucket_is_back(tmp_path, free_port):
    with s3.server(free_port) as first:
        storage = Storage(f"s3://{s3.BUCKET}/{tmp_path.name}")
        first.stop()
        tried = []

        def write():
            tried.append(storage)
            if len(tried) == 2:
                first.start()
            storage.filesystem.open_output_stream(storage.path("x")).close()

        trying_again(write)
        assert len(tried) == 2
        assert storage.file("x")
    with pytest.raises(OSError, match="no"):
        trying_again(refused, waits=())


def test_a_trial_goes_on_from_a_checkpoint_in_the_storage(storage, tmp_path):
    from ray import tune

    from tune.search import state_of

    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "training.json").write_text("{}")
    name = "searches/one/tune/trial/checkpoint_000000"
    storage.keep_file(tmp_path / "state" / "training.json", f"{name}/state/training.json")
    checkpoint = tune.Checkpoint(storage.path(name), filesystem=storage.filesystem)
    with state_of(checkpoint) as state:
        assert (state / "training.json").read_text() == "{}"
    with state_of(None) as state:
        assert state is None


def refused():
    raise OSError("no")


SEARCH = Path(__file__).parents[1] / "tune" / "search.py"


def start(place, home, *arguments, **environment):
    corpus = ["--source", "folder", "--path", place / "corpus", "--compare-with", "none"]
    stored = ["--storage", f"s3://{s3.BUCKET}/{place.name}"]
    new = [] if "--resume" in arguments else [*corpus, "--space", place / "space.yaml"]
    return subprocess.Popen(
        [sys.executable, SEARCH, *new, *stored, *arguments],
        env={
            **os.environ,
            "SMALLM_HOME": str(place / home),
            "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_whole(place, home, storage, search):
    """Nothing is lost or doubled: in the home, in the bucket, in MLflow."""
    import mlflow

    result = read_json(place / home / "searches" / search / "result.json")
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3]
    assert result["champion"]
    for name in ("result.json", "report.html", "champion/model.safetensors"):
        assert storage.file(f"searches/{search}/{name}"), name
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("smallm").experiment_id])
    keys = ["search", *(f"trial/{trial['id']}" for trial in result["trials"])]
    keys += [f"confirmation/{each['name']}" for each in result["finalists"]]
    assert sorted(run.data.tags["smallm.key"] for run in runs) == sorted(keys)


@pytest.mark.ray
@pytest.mark.long
def test_a_search_goes_on_after_its_bucket_was_away(tmp_path, small_corpus, free_port):
    shutil.copytree(small_corpus, tmp_path / "corpus")
    (tmp_path / "space.yaml").write_text(SPACE)
    with s3.server(free_port) as server:
        storage = Storage(f"s3://{s3.BUCKET}/{tmp_path.name}")
        process = start(tmp_path, "home")
        read_until(process, " rung 1/3")
        server.stop()
        time.sleep(20)
        server.start()
        output = finish(process)
        (search,) = storage.names("searches")
        check_whole(tmp_path, "home", storage, search)
    assert "not all results are in the storage yet" in output
    assert "takes files again" in output
    assert "Traceback" not in output


@pytest.mark.ray
@pytest.mark.long
def test_a_search_whose_machine_is_lost_goes_on_from_the_bucket_on_another(
    bucket, tmp_path, small_corpus
):
    shutil.copytree(small_corpus, tmp_path / "corpus")
    (tmp_path / "space.yaml").write_text(SPACE)
    storage = Storage(f"s3://{s3.BUCKET}/{tmp_path.name}")
    first = start(tmp_path, "first")
    read_until(first, " rung 2/3")
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    (search,) = storage.names("searches")
    trials = storage.names(f"searches/{search}/tune")
    assert any(storage.names(f"searches/{search}/tune/{each}") for each in trials)  # checkpoints
    shutil.rmtree(tmp_path / "first")

    finish(start(tmp_path, "second", "--resume"))
    check_whole(tmp_path, "second", storage, search)
