"""A listed machine that cannot be reached: it is named with the reason, and nobody waits on."""

import pytest
import yaml

from .conftest import wait_until_nothing_runs
from .hosts import HOME, NETWORK

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NOBODY = f"{NETWORK}.99"


@pytest.fixture(scope="module")
def names():
    """The head alone is there."""
    return ["head"]


def test_a_machine_that_cannot_be_reached_is_named_with_what_ssh_said(hosts, laptop, small_corpus):
    (head,) = hosts.hosts
    head.run("cp", "-r", small_corpus, HOME / "corpus")
    file = laptop.project / "cluster.yaml"
    cluster = yaml.safe_load(file.read_text())
    cluster["provider"]["worker_ips"] = [NOBODY]
    file.write_text(yaml.safe_dump(cluster))
    laptop("ray", "get-auth-token", "--generate")
    laptop("ray", "up", "--yes", "cluster.yaml")
    plan = ["--source", "folder", "--path", "~/corpus", "--dry-run", "--wait", "45"]
    said = laptop("ray", "submit", "cluster.yaml", "tune/search.py", "--", *plan)
    (line,) = [line for line in said.splitlines() if "has not joined" in line]
    assert NOBODY in line
    assert "the search goes on without it" in line
    assert "ssh" in line.lower()
    assert "search: " in said  # the plan comes all the same
    laptop("ray", "down", "--yes", "cluster.yaml")
    wait_until_nothing_runs([head])
