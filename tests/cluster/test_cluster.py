"""From a list of machines to a champion by the commands of the README, on hosts of this machine."""

import json
import re
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
import yaml

from .conftest import wait_until_nothing_runs
from .hosts import HOME, NETWORK

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CUT_OFF = 30  # seconds

SPACE = """
trials: 9
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11, 12]
settings:
  {training_tokens: 500000, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
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
SHOWN = """python -c "
import json, mlflow, pathlib
folder = pathlib.Path('~/.smallm/runs/searches/NAME').expanduser()
result = json.loads((folder / 'result.json').read_text())
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name('smallm').experiment_id])
tops = [run for run in runs if run.info.run_name == folder.name]
ids = {run.info.run_id for run in tops}
parent = lambda run: run.data.tags.get('mlflow.parentRunId', run.info.run_id)
keys = sorted(run.data.tags['smallm.key'] for run in runs if parent(run) in ids)
parts = {name: result[name] for name in ('trials', 'finalists')}
print('RESULT' * 2, json.dumps({**parts, 'keys': keys}))
" """


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
    wait_until_nothing_runs([host for host in hosts.hosts if host.alive])


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
    head, key = cluster.hosts[0].address, cluster.key
    trust = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    forward = ["-N", "-L", "8265:127.0.0.1:8265", f"root@{head}"]  # as `ray dashboard` does
    laptop.start("ssh", "-i", key, *trust, *forward)
    wait_for_port(cluster.laptop, 8265)
    submit = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--working-dir", "."]
    search = ["python", "tune/search.py", *SEARCH]
    said = laptop(*submit, "--", *search, "--dry-run", RAY_AUTH_MODE="token")
    few = ["--trials", "2", "--compare-with", "none", "--name", "job"]
    done = laptop(*submit, "--", *search, *few, RAY_AUTH_MODE="token")
    cluster.laptop.run("pkill", "-f", "ssh .*8265:127.0.0.1:8265")
    assert "The champion is" in done
    result_of(laptop, "job", trials=2)
    assert "by the code of this folder" in said
    assert "each trial takes 1 CPU; 3 run at once on 3 machines" in said
    assert "MLflow at http://127.0.0.1:5000" in said


def test_the_check_names_what_keeps_a_machine_from_joining(cluster, laptop):
    check = [Path(sys.prefix) / "bin" / "python", "clusters/check.py"]
    assert "all 3 machines are ready" in laptop(*check, "cluster.yaml")
    edited = yaml.safe_load((laptop.project / "cluster.yaml").read_text())
    edited["provider"]["worker_ips"].append(f"{NETWORK}.99")
    other = {"ssh_user": "root", "ssh_private_key": str(cluster.hosts[0].folder / "host_key")}
    (laptop.project / "more.yaml").write_text(yaml.safe_dump(edited))
    (laptop.project / "key.yaml").write_text(yaml.safe_dump({**edited, "auth": other}))
    said = laptop(*check, "more.yaml", code=1)
    assert said.startswith(f"error: {NETWORK}.99: ssh: connect to host {NETWORK}.99 port 22: ")
    assert len(said.splitlines()) == 1
    said = laptop(*check, "key.yaml", code=1).splitlines()
    assert f"error: {NETWORK}.12: root@{NETWORK}.12: Permission denied (publickey)." in said
    said = laptop(*check, "cluster.yaml", code=1, HOME=str(laptop.project))
    assert "the token of the cluster is missing: `ray get-auth-token --generate`" in said


def test_the_champion_is_served_on_the_cluster(cluster, laptop):
    config = yaml.safe_load((laptop.project / "serve" / "config.yaml").read_text())
    config["applications"][0]["args"]["models"] = {"champion": {}}
    (laptop.project / "served.yaml").write_text(yaml.safe_dump(config))
    laptop("ray", "rsync-up", "cluster.yaml", str(laptop.project / "served.yaml"), "~/served.yaml")
    head = cluster.hosts[0]
    on(head, "serve deploy ~/served.yaml")
    asked = """curl -s -H 'Content-Type: application/json' localhost:8000/v1/next-words \\
        -d '{"prompt": "The model", "k": 3, "models": ["champion"]}'"""
    deadline = time.monotonic() + 120
    while "certified" not in (said := head.run("bash", "-c", asked, check=False).stdout):
        assert time.monotonic() < deadline, said
        time.sleep(2)
    found = json.loads(said)["models"]["champion"]
    assert len(found["words"]) == 3
    on(head, "serve shutdown --yes")


def submitted(laptop, name, *arguments):
    """A search that goes on while the test does something to its machines."""
    submit = ["ray", "submit", "cluster.yaml", "tune/search.py", "--", *arguments]
    return laptop.start(*submit, "--compare-with", "none", "--name", name)


def on(host, command):
    """Runs what a person would type on a machine of the cluster; gives what it said."""
    return host.run("bash", "-c", f". ~/.smallm/source/clusters/environment.sh\n{command}").stdout


def result_of(laptop, name, *, trials=9):
    """The result of a search on the head; nothing of it is lost, and no run is there twice."""
    shown = laptop("ray", "exec", "cluster.yaml", SHOWN.replace("NAME", name))
    result = json.loads(shown.partition("RESULT" * 2)[2].splitlines()[0])
    assert [trial["number"] for trial in result["trials"]] == list(range(trials))
    failed = [each["reason"] for each in result["trials"] if each["status"] == "failed"]
    assert not failed
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}
    keys = ["search", *(f"trial/{trial['id']}" for trial in result["trials"])]
    keys += [f"confirmation/{each['name']}" for each in result["finalists"]]
    assert result["keys"] == sorted(keys)  # of the runs in MLflow
    return result


def test_a_machine_that_is_cut_off_for_a_while_costs_nothing(cluster, laptop):
    cut = cluster.hosts[1]
    wait_for_machines(cluster.hosts[0], 3)
    search = submitted(laptop, "cut", *SEARCH)
    said, cutting, reached = [], None, 0
    for line in search.stdout:
        said.append(line)
        reached += " rung 1/" in line
        if reached == 3 and cutting is None:  # all have begun: a start that is lost takes minutes
            assert trials_on(cut)
            cluster.connect(cut, "down")
            cutting = Timer(CUT_OFF, cluster.connect, (cut, "up"))
            cutting.start()
    assert search.wait() == 0, "".join(said)
    assert cutting
    cutting.join()
    result_of(laptop, "cut")


def test_a_search_that_a_head_begins_alone_takes_the_machines_that_come(cluster, laptop):
    """They have no disk with its corpus, which nobody could know at the start.

    The head's autoscaler starts Ray again on machines of its list where it has stopped.
    """
    head, *workers = cluster.hosts
    for worker in workers:
        on(worker, "ray stop")
    wait_for_machines(head, 1)
    search = submitted(laptop, "alone", *SEARCH, "--wait", "0")
    said = search.stdout.read()
    assert search.wait() == 0, said
    assert "machines that join later are sent the corpus" in said
    result = result_of(laptop, "alone")
    assert {trial["status"] for trial in result["trials"]} <= {"completed", "stopped"}
    came = {worker.address for worker in workers}
    assert came & {trial["machine"] for trial in result["trials"]}, said


def wait_for_machines(head, count, patience=90):
    """Until so many are alive for the head."""
    asked = (
        "import ray; ray.init(logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    )
    deadline = time.monotonic() + patience
    while on(head, f'python -c "{asked}"').split()[-1] != str(count):
        assert time.monotonic() < deadline, f"there are not {count} machines"


def test_a_search_goes_on_after_its_head_was_started_anew(cluster, laptop):
    search = submitted(laptop, "anew", *SEARCH)
    for line in search.stdout:
        if " rung 2/" in line:
            break
    on(cluster.hosts[0], "pkill -9 -f [s]earch.py; ray stop --force")
    search.stdout.read()
    assert search.wait() != 0
    laptop("ray", "up", "--yes", "cluster.yaml")
    submit = ["ray", "submit", "cluster.yaml", "tune/search.py", "--", "--resume", "anew"]
    laptop(*submit)
    result_of(laptop, "anew")


def trials_on(host):
    """The processes of trials on a machine."""
    return [line for line in host.processes() if line.startswith("ray::ImplicitFunc")]


def test_a_search_survives_the_death_of_a_whole_machine(cluster, laptop, bucket):
    """A trial of it goes on elsewhere from its checkpoint, which is in the storage."""
    search = submitted(laptop, "survivor", *SEARCH, "--storage", f"{bucket}/smallm")
    lines, reached = [], 0
    for line in search.stdout:
        lines.append(line)
        reached += " rung 1/" in line
        if reached == 3 and cluster.hosts[2].alive:  # each machine's trial has a checkpoint
            assert trials_on(cluster.hosts[2])
            cluster.hosts[2].kill()
    said = "".join(lines)
    assert search.wait() == 0, said
    assert not cluster.hosts[2].alive
    print(said)
    result_of(laptop, "survivor")
    places = re.findall(r"trial (\d+) rung .* after ([\d,]+) tokens", said)
    assert len(places) == len(set(places)), said  # nothing was trained a second time


def wait_for_port(host, port, patience=60):
    deadline = time.monotonic() + patience
    probe = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]
    while host.run(*probe, check=False).returncode:
        assert time.monotonic() < deadline, f"nothing answers on port {port}"
        time.sleep(0.5)
