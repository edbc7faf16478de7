"""The whole search, as a user runs it: real Ray, a real MLflow store, real processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny_models
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

SEARCH = Path(__file__).parents[1] / "tune" / "search.py"
SPACE = """
trials: 5
seeds: [1, 2]
confirmation_seeds: [11, 12]
settings:
  {training_tokens: %d, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
   evaluate_at: [0.1111, 0.3333, 1.0], evaluation_bytes: 3000}
search:
  activation: {choices: [relu, gelu]}
  split_ratio: {choices: [0.75, 0.8]}
  learning_rate: {low: 0.001, high: 0.02, log: true}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def place(tmp_path, small_corpus):
    """An empty folder with nothing but search.py, as `ray submit` leaves it, and a space."""
    shutil.copy(SEARCH, tmp_path / "search.py")
    (tmp_path / "small.yaml").write_text(SPACE % 4608)
    (tmp_path / "long.yaml").write_text(SPACE % 150_000)
    shutil.copytree(small_corpus, tmp_path / "corpus")
    return tmp_path


def start(place, *arguments, compare_with="none", program="search.py", **environment):
    options = ["--source", "folder", "--path", "corpus", "--compare-with", compare_with]
    if "--resume" in arguments:
        options = []
    return subprocess.Popen(
        [sys.executable, program, *options, *arguments],
        cwd=place,
        env={**os.environ, "SMALLM_HOME": str(place / "home"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, *, code=0, timeout=240):
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def read_until(process, words, *, timeout=120):
    """Reads the program's lines until one holds the words."""
    lines, deadline = [], time.monotonic() + timeout
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        lines.append(line)
        if words in line:
            return "".join(lines)
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"never said {words!r}:\n{''.join(lines)}")


def only_search(place):
    (folder,) = (place / "home" / "searches").iterdir()
    return folder, json.loads((folder / "result.json").read_text())


def smallm_of(place, *arguments, **environment):
    """A command of the command line in the home of a search."""
    return subprocess.run(
        [sys.executable, "-m", "smallm.cli", *arguments],
        cwd=place,
        env={**os.environ, "SMALLM_HOME": str(place / "home"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def runs_of(uri):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("smallm")
    return client, client.search_runs([experiment.experiment_id], max_results=1000)


def local_uri(place):
    return f"sqlite:///{place / 'home' / 'mlflow' / 'mlflow.db'}"


def keys_of(runs):
    return sorted(run.data.tags["smallm.key"] for run in runs)


def expected_keys(result):
    trials = [f"trial/{trial['id']}" for trial in result["trials"]]
    confirmed = [f"confirmation/{each['name']}" for each in result["finalists"]]
    return sorted(["search", *trials, *confirmed])


def test_a_search_ends_with_a_champion_a_report_and_one_mlflow_run_a_trial(place):
    for part in tiny_models.gpt2(context=512):
        part.save_pretrained(place / "pretrained")
    output = finish(start(place, "--space", "small.yaml", compare_with="pretrained,gpt2"))
    folder, result = only_search(place)
    assert "The champion is" in output
    assert "better than pretrained by" in output
    assert "gpt2: not available" in output
    compared = {each["name"]: each for each in result["comparison"]["models"]}
    assert set(compared) == {"champion", "pretrained", "gpt2"}
    assert "Beside pretrained models" in (folder / "report.html").read_text()
    assert "overhead" in output
    assert len(result["trials"]) == 5
    assert result["finalists"][0]["role"] == "champion"
    assert result["trials"][0]["settings"]["activation"] == "relu"  # the default comes first
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "plots" / "learning_curves.svg").exists()
    assert len(pd.read_csv(folder / "leaderboard.csv")) >= 5
    assert all(point["activity"] for trial in result["trials"] for point in trial["curve"])
    assert (folder / "plots" / "activations.svg").exists()
    assert (folder / "plots" / "embeddings.svg").exists()
    assert (folder / "champion" / "word-map.json").exists()
    learned = json.loads((folder / "champion" / "learning-curves.json").read_text())
    shown = [curve["trial"] for group in learned["groups"] for curve in group["curves"]]
    assert sorted(shown) == [f"trial {number}" for number in range(5)]
    assert "Inside the champion" in (folder / "report.html").read_text()

    client, runs = runs_of(local_uri(place))
    beside = ["search/champion", "search/pretrained"]
    assert keys_of(runs) == sorted([*expected_keys(result), *beside])
    by_key = {run.data.tags["smallm.key"]: run for run in runs}
    search = by_key["search"]
    found = by_key["search/pretrained"].data.metrics["bits_per_byte"]
    assert found == pytest.approx(compared["pretrained"]["bits_per_byte"]["value"])
    assert search.inputs.dataset_inputs[0].dataset.digest
    for trial in result["trials"]:
        run = by_key[f"trial/{trial['id']}"]
        assert run.data.tags["mlflow.parentRunId"] == search.info.run_id
        assert run.data.params["activation"] == trial["settings"]["activation"]
        for seed, bits in trial["bits_per_byte"]["per_seed"].items():
            series = client.get_metric_history(run.info.run_id, f"bits_per_byte/seed_{seed}")
            assert len(series) == len(trial["curve"])
            assert series[-1].value == pytest.approx(bits)
            dead = client.get_metric_history(run.info.run_id, f"dead_units/seed_{seed}")
            assert len(dead) == len(trial["curve"])
        wanted = "FINISHED" if trial["status"] == "completed" else "KILLED"
        assert run.info.status == wanted
        assert run.data.params["source"] == "folder"
    evaluated = smallm_of(place, "evaluate", "--models", "champion", "--bytes", "3000", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["corpus"]["digest"] == result["corpus"]["digest"]
    champion = client.get_model_version_by_alias("smallm", "champion")
    assert champion.run_id == by_key[f"confirmation/{result['finalists'][0]['name']}"].info.run_id

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import smallm  # noqa: F401  registers the model

    tokenizer = AutoTokenizer.from_pretrained(folder / "champion")
    model = AutoModelForCausalLM.from_pretrained(folder / "champion")
    ids = tokenizer("the", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == len(ids[0]) + 3


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_driver_resumes_with_the_same_trials_and_no_second_run(place):
    process = start(place, "--space", "long.yaml")
    before = read_until(process, "trial 1 ended")
    kill(process)
    (folder,) = (place / "home" / "searches").iterdir()
    assert not (folder / "result.json").exists()
    output = finish(start(place, "--resume"))
    assert "rung 3/3" in output  # of those that go on, too
    assert "5/5 trials" in output
    _, result = only_search(place)
    assert result["overhead"]["ratio"] > 1  # without the work that was done before
    check_five_trials(place, result)
    told = re.findall(r"trial (\d) rung (\d)/3: (\S+) ", before)
    assert len(told) > 2
    for number, rung, bits in told:  # nothing that was known is lost or another number now
        curve = result["trials"][int(number)]["curve"]
        assert f"{curve[int(rung) - 1]['mean']:.3f}" == bits


def check_five_trials(place, result):
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3, 4]
    assert result["champion"]
    _, runs = runs_of(local_uri(place))
    assert keys_of(runs) == expected_keys(result)


@pytest.mark.long
def test_what_was_confirmed_is_not_trained_again_after_the_drivers_death(place):
    process = start(place, "--space", "long.yaml")
    read_until(process, "confirmation 1/")
    kill(process)
    folder, early = only_search(place)
    assert "The confirmation has not ended" in early["conclusion"][0]
    path = sorted((folder / "confirmed").iterdir())[0]
    columns = load_file(path)
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    save_file({**columns, "final.nll": 2 * columns["final.nll"]}, path, header)
    output = finish(start(place, "--resume"))
    assert "5/5 trials ended before" in output
    assert " starts: " not in output
    _, result = only_search(place)
    assert result["trials"] == early["trials"]
    finals = [each["final"]["bits_per_byte"]["per_seed"] for each in result["finalists"]]
    bits = sorted(value for each in finals for value in each.values())
    assert bits[-1] > 1.8 * bits[-2]  # the one that was doubled has been taken as it was
    assert result["overhead"]["ratio"] > 1  # without the work that was done before
    assert not (folder / "confirmed").exists()
    check_five_trials(place, result)


def test_control_c_ends_cleanly_with_what_is_known(place):
    process = start(place, "--space", "long.yaml")
    read_until(process, "rung 2/3")
    process.send_signal(signal.SIGINT)
    output = finish(process, code=130)
    assert "interrupted" in output
    assert "Traceback" not in output
    folder, result = only_search(place)
    assert result["champion"] is None
    assert any(trial["curve"] for trial in result["trials"])
    assert (folder / "report.html").exists()
    _, runs = runs_of(local_uri(place))
    (search,) = (run for run in runs if run.data.tags["smallm.key"] == "search")
    assert search.info.status == "KILLED"


@pytest.mark.long
def test_actors_are_reused_and_no_state_leaks_between_trials(place):
    """With one worker process for all, equal configs give equal numbers to the last bit."""
    same = "\n".join(
        line for line in (SPACE % 4608).splitlines() if "activation" not in line
    ).replace("split_ratio: {choices: [0.75, 0.8]}", "dropout: {choices: [0.1]}")
    same = same.replace(
        "learning_rate: {low: 0.001, high: 0.02, log: true}", "clip: {choices: [1.0]}"
    )
    (place / "same.yaml").write_text(same)
    finish(start(place, "--space", "same.yaml"))
    _, result = only_search(place)
    first = [trial["curve"][0]["per_seed"] for trial in result["trials"]]
    assert all(each == first[0] for each in first)


@pytest.mark.long
def test_a_tracking_server_that_is_down_for_a_minute_loses_nothing(place, free_port):
    server = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"),
        *("--port", str(free_port), "--backend-store-uri", f"sqlite:///{place / 'server.db'}"),
        *("--artifacts-destination", str(place / "artifacts")),
    ]
    uri = f"http://127.0.0.1:{free_port}"
    with serving(server, uri, place):
        process = start(place, "--space", "long.yaml", MLFLOW_TRACKING_URI=uri)
        early = read_until(process, "rung 1/3")
    stopped = time.monotonic()
    read_until(process, "trial 3 ended")
    time.sleep(max(0.0, stopped + 60 - time.monotonic()))
    with serving(server, uri, place):
        output = finish(process)
        folder, result = only_search(place)
        synced = smallm_of(place, "sync", folder.name, MLFLOW_TRACKING_URI=uri)
        assert synced.returncode == 0, synced.stderr
        client, runs = runs_of(uri)
        assert keys_of(runs) == expected_keys(result)
        by_key = {run.data.tags["smallm.key"]: run for run in runs}
        for trial in result["trials"]:
            run = by_key[f"trial/{trial['id']}"]
            series = client.get_metric_history(run.info.run_id, "bits_per_byte")
            assert len(series) == len(trial["curve"])
        assert client.get_model_version_by_alias("smallm", "champion")
    assert "corpus" in early
    assert "champion" in output


class serving:
    """A real MLflow server as a context; leaving it kills the whole process group."""

    def __init__(self, command, uri, folder):
        self.command, self.uri, self.folder = command, uri, folder

    def __enter__(self):
        import urllib.request

        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
            except OSError:
                time.sleep(0.25)
            else:
                return self
        raise AssertionError("the MLflow server did not start")

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--activation", "rellu"], "did you mean relu"),
        (["--space", "quik"], "did you mean quick"),
        (["--split-ratio", "1.5"], "split_ratio"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--resume", "nothing"], "known: none"),
        (
            ["--resume", "--trials", "9", "--dry-run", "--hidden", "8"],
            "--hidden, --trials, --dry-run",
        ),
        (["--name", "team/run"], "--name team/run: may have letters"),
        (["--compare-with", "gtp2"], "did you mean"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    tmp_path, capsys, monkeypatch, arguments, words
):
    from smallm.options import run_program
    from tune.search import main

    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not list(tmp_path.glob("home/searches/*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_ends_the_search_with_one_line_that_names_the_place(place, small_disk):
    output = finish(
        start(place, "--space", "small.yaml", "--hidden", "4096", SMALLM_HOME=str(small_disk)),
        code=1,
    )
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(small_disk) in last
    assert "no space left" in last.lower()
    assert "Traceback" not in output


def test_a_tracking_server_that_does_not_answer_is_one_line(place, free_port):
    process = start(
        place, "--space", "small.yaml", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port}"
    )
    output = finish(process, code=1)
    assert len(output.strip().splitlines()) == 1
    assert str(free_port) in output


def test_a_dry_run_prints_the_plan_and_leaves_only_the_corpus(place):
    output = finish(start(place, "--space", "small.yaml", "--dry-run"))
    assert "search: 5 trials of 2 seeds, up to 4,608 tokens a seed" in output
    assert "each trial takes 1 CPU" in output
    assert f"corpus, searches and champion: {place / 'home'}" in output
    assert not (place / "home" / "searches").exists()
    assert not list((place / "home").glob(".plan-*"))


def test_ray_that_cannot_start_is_one_line(place, free_port):
    process = start(place, "--space", "small.yaml", RAY_ADDRESS=f"127.0.0.1:{free_port}")
    output = finish(process, code=1)
    assert "error: Ray cannot start" in output.strip().splitlines()[-1]
    assert "Traceback" not in output


def test_a_cluster_too_small_for_one_trial_is_one_line(place):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        output = finish(start(place, "--space", "small.yaml", RAY_ADDRESS=nodes.address), code=1)
    finally:
        nodes.shutdown()
    last = output.strip().splitlines()[-1]
    assert last == "error: a trial takes 1 CPU, more than any machine has (0 CPU)"
    assert "Traceback" not in output
