"""A machine on which the installation fails is named: by the check, and by a search with why."""

import sys
from pathlib import Path

import pytest

from .conftest import wait_until_nothing_runs
from .hosts import HOME

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def names():
    """One machine beside the head."""
    return ["head", "worker-1"]


def test_a_machine_without_python_is_named_with_what_the_installation_said(
    hosts, laptop, small_corpus
):
    head, worker = hosts.hosts
    head.run("cp", "-r", small_corpus, HOME / "corpus")
    worker.run("bash", "-c", "echo export SMALLM_PYTHON=/nowhere/python >> ~/.bashrc")
    worker.run("rm", HOME / ".smallm" / "environment" / "installed")
    laptop("ray", "get-auth-token", "--generate")
    laptop("ray", "up", "--yes", "cluster.yaml")
    python = Path(sys.prefix) / "bin" / "python"
    said = laptop(python, "clusters/check.py", "cluster.yaml", code=1)
    assert said.startswith(f"error: {worker.address}: has no /nowhere/python with venv (Debian: ")
    assert len(said.splitlines()) == 1
    plan = ["--source", "folder", "--path", "~/corpus", "--dry-run", "--wait", "45"]
    said = laptop("ray", "submit", "cluster.yaml", "tune/search.py", "--", *plan)
    (line,) = [line for line in said.splitlines() if "has not joined" in line]
    where = f"{worker.address} (worker-1): SmaLLM is not installed: there is no /nowhere/python"
    assert f"{worker.address} has not joined ({where}" in line
    laptop("ray", "down", "--yes", "cluster.yaml")
    wait_until_nothing_runs([head])
