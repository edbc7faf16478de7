"""From a list of machines to a champion by the commands of the README, on hosts of this machine."""

import json
import time

import pytest

from .hosts import HOME

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SPACE = """
trials: 8
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11, 12]
settings:
  {training_tokens: 900000, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
   evaluate_at: [0.5, 1.0], evaluation_bytes: 3000}
search:
  activation: {choices: [relu, gelu]}
  split_ratio: {choices: [0.75, 0.8]}
  learning_rate: {low: 0.001, high: 0.02, log: true}
"""
REGISTERED = """
import mlflow
version = mlflow.MlflowClient().get_model_version_by_alias('smallm', 'champion')
folder = mlflow.artifacts.download_artifacts('models:/smallm@champion')
print('registered', version.tags['smallm.search'], version.run_id, folder)
"""


@pytest.fixture(scope="module")
def cluster(hosts, laptop, small_corpus):
    """A cluster that `ray up` has started; the corpus and a space lie on its head."""
    head = hosts.hosts[0]
    head.run("cp", "-r", small_corpus, HOME / "corpus")
    (hosts.folder / "space.yaml").write_text(SPACE)
    head.run("cp", hosts.folder / "space.yaml", HOME / "space.yaml")
    laptop("ray", "get-auth-token", "--generate")
    laptop("ray", "up", "--yes", "cluster.yaml")
    yield hosts
    laptop("ray", "down", "--yes", "cluster.yaml")
    wait_until_nothing_runs(hosts.hosts)


def wait_until_nothing_runs(hosts, patience=150):
    """A worker notices within a minute that its head is gone."""
    deadline = time.monotonic() + patience
    while left := [line for host in hosts for line in host.processes()]:
        assert time.monotonic() < deadline, "\n".join(left)
        time.sleep(2)


SEARCH = ["--source", "folder", "--path", "~/corpus", "--space", "~/space.yaml"]


def test_three_commands_go_from_machines_to_a_champion_that_every_machine_worked_for(
    cluster, laptop
):
    submit = ["ray", "submit", "cluster.yaml", "tune/search.py", "--", *SEARCH]
    said = laptop(*submit, "--compare-with", "none", "--name", "first")
    assert "not all machines share the folder of the search" in said
    assert "has not joined" not in said
    laptop("ray", "rsync-down", "cluster.yaml", "~/.smallm/runs/searches/first/", "fetched/")
    fetched = laptop.project / "fetched"
    result = json.loads(laptop("cat", fetched / "result.json"))
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}
    machines = {trial["machine"] for trial in result["trials"]}
    assert machines == {host.address for host in cluster.hosts}
    assert laptop("test", "-s", fetched / "champion" / "model.safetensors") == ""
    registered = laptop("ray", "exec", "cluster.yaml", f'python -c "{REGISTERED}"')
    assert "registered first" in registered


def test_a_job_from_a_laptop_runs_the_code_of_its_folder_on_every_machine(cluster, laptop):
    plan = laptop.project / "smallm" / "plan.py"
    changed = plan.read_text().replace('"measured on', '"by the code of this folder, on')
    plan.write_text(changed)
    forward = ["ray", "dashboard", "cluster.yaml"]
    tunnel = cluster.laptop.start(*forward, cwd=laptop.project)
    try:
        wait_for_port(cluster.laptop, 8265)
        submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265"]
        search = ["python", "tune/search.py", *SEARCH, "--dry-run"]
        said = laptop(*submit, "--working-dir", ".", "--", *search)
    finally:
        tunnel.terminate()
        tunnel.wait(timeout=30)
    assert "by the code of this folder" in said
    assert "each trial takes 1 CPU; 3 run at once on 3 machines" in said
    assert "MLflow at http://127.0.0.1:5000" in said


def wait_for_port(host, port, patience=60):
    deadline = time.monotonic() + patience
    probe = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
    while host.run(*probe, check=False).returncode:
        assert time.monotonic() < deadline, f"nothing answers on port {port}"
        time.sleep(0.5)
