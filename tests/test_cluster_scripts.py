"""What the machines of a cluster run, each script by itself."""

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

CLUSTERS = Path(__file__).parents[1] / "clusters"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"SMALLM_PYTHON": "/nowhere/python"},
            "there is no /nowhere/python with venv; install it (Debian: python3.11-venv), "
            "or set SMALLM_PYTHON",
        ),
        (
            {"SMALLM_PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"},
            "ERROR: No matching distribution found for ",
        ),
    ],
)
def test_an_installation_that_fails_says_last_where_and_why(settings, why, tmp_path):
    usual = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    quick = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0"}
    done = subprocess.run(
        ["bash", CLUSTERS / "install.sh"],
        env={**usual, **quick, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.strip()
    last = done.stderr.splitlines()[-1].strip()
    where = f"{addresses} ({socket.gethostname()})".strip()
    assert last.startswith(f"{where}: SmaLLM is not installed: {why}")


LISTENS = "(exec 3<>/dev/tcp/127.0.0.1/{}) 2>/dev/null; do sleep 0.2; done"
RAY = "python -m http.server 6379 > ray.log 2>&1 & ray=$!; until " + LISTENS.format(6379)
SILENT = "import socket, time; kept = socket.create_server(('127.0.0.1', 5000)); time.sleep(60)"
NEW = """python - <<'END'
import urllib.request
there = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/create"
headers = {"Content-Type": "application/json"}
urllib.request.urlopen(urllib.request.Request(there, b'{"name": "new"}', headers)).read()
END"""
TAKEN, FREE = (f"{word} {LISTENS.format(5000)}" for word in ("until", "while"))


@pytest.fixture
def alone(tmp_path):
    """Runs lines of bash in a network of their own, where nothing listens; all ends with them."""
    apart = "unshare --net --mount --pid --mount-proc --fork --kill-child".split()
    up = ["ip", "link", "set", "lo", "up"]
    trial = subprocess.run([*apart, *up], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"needs a network namespace, as root has one: {trial.stderr.strip()}")

    def run(*lines):
        script = "\n".join(["set -eu", " ".join(up), *lines])
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        return subprocess.run(
            [*apart, "bash", "-c", script],
            env={"PATH": path, "HOME": str(tmp_path), "mlflow": str(CLUSTERS / "mlflow.sh")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )

    return run


def experiments(database):
    with closing(sqlite3.connect(database)) as opened:
        return {name for (name,) in opened.execute("SELECT name FROM experiments")}


@pytest.mark.slow
def test_mlflow_started_again_has_the_new_settings_and_ends_with_ray(alone, tmp_path):
    done = alone(
        RAY,
        "bash $mlflow",
        "MLFLOW_BACKEND_STORE_URI=sqlite:///$HOME/other.db bash $mlflow",
        NEW,
        "pgrep -f '[m]lflow.sh supervise' | xargs ps -o pgid= | sort -u | wc -l",
        "kill $ray",
        FREE,
        "while pgrep -f '[m]lflow.sh supervise' > supervisors; do sleep 0.2; done",
        "pgrep -f '[m]lflow server' || echo all has ended",
    )
    assert done.returncode == 0, done.stderr
    kept = tmp_path / ".smallm" / "mlflow"
    assert done.stdout.splitlines() == [
        f"MLflow keeps runs in sqlite:///{kept}/mlflow.db, artifacts in {kept}/artifacts",
        f"MLflow keeps runs in sqlite:///{tmp_path}/other.db, artifacts in {kept}/artifacts",
        "1",
        "all has ended",
    ]
    assert "new" in experiments(tmp_path / "other.db")
    assert "new" not in experiments(kept / "mlflow.db")


@pytest.mark.long
def test_mlflow_of_a_supervisor_that_was_killed_is_ended_too(alone):
    done = alone(
        RAY,
        "bash $mlflow > /dev/null",
        "pkill -KILL -f '[m]lflow.sh supervise'",
        "MLFLOW_BACKEND_STORE_URI=sqlite:///$HOME/other.db bash $mlflow",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MLflow keeps runs in sqlite:///")
    assert "other.db" in done.stdout


@pytest.mark.parametrize("program", ["python -m http.server 5000", f'python -c "{SILENT}"'])
def test_another_program_on_the_port_of_mlflow_is_named(program, alone):
    done = alone(
        RAY,
        f"{program} > other.log 2>&1 &",
        TAKEN,
        "bash $mlflow",
    )
    assert done.returncode == 1
    where = f"port 5000 of {socket.gethostname()}"
    assert done.stderr == f"{where} is taken by a program that is not MLflow; end it there\n"
    assert done.stdout == ""
