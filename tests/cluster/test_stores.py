"""MLflow on a head with its runs in PostgreSQL and its artifacts in S3, as two settings ask."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import S3, start_quietly, wait_for, wait_until_nothing_runs
from .hosts import HOME

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

POSTGRES = Path("/usr/lib/postgresql")  # where Debian has it
AS_NOBODY = "setpriv --reuid=nobody --regid=nogroup --clear-groups".split()  # root is refused
MADE = """
install --directory --owner=nobody {folder}
echo secret > {folder}/password
chown nobody {folder}/password
{as_nobody} {bin}/initdb --username=smallm --pwfile={folder}/password --pgdata={folder}/data
echo host all all samenet scram-sha-256 >> {folder}/data/pg_hba.conf
"""
SPACE = """
trials: 2
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11]
settings:
  {training_tokens: 20000, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
   evaluate_at: [0.5, 1.0], evaluation_bytes: 3000}
search:
  activation: {choices: [relu, gelu]}
"""
CHAMPION = """python -c "
import mlflow
print('registered', mlflow.artifacts.download_artifacts('models:/smallm@champion'))
" """
KEPT = """
import json, os, boto3, psycopg
with psycopg.connect(os.environ['MLFLOW_BACKEND_STORE_URI']) as store:
    cursor = store.cursor()
    cursor.execute('select name, status from runs')
    runs = cursor.fetchall()
found = boto3.client('s3').list_objects_v2(Bucket='bucket')
print(json.dumps({'runs': runs, 'files': [each['Key'] for each in found['Contents']]}))
"""


@pytest.fixture(scope="module")
def names():
    """One machine is enough: what is tried is where its MLflow keeps things."""
    return ["head"]


@pytest.fixture(scope="module")
def stores(hosts, bucket):
    """PostgreSQL runs on the laptop as well; gives the settings that name both."""
    found = sorted(POSTGRES.glob("*/bin"))
    if not found:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    laptop, folder = hosts.laptop, Path("/tmp/postgresql")
    settings = {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://smallm:secret@{laptop.address}/postgres",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{bucket}/mlflow",
        **S3,
    }
    script = MADE.format(bin=found[-1], folder=folder, as_nobody=shlex.join(AS_NOBODY))
    laptop.run("bash", "-ec", script, cwd="/")
    places = ["-D", folder / "data", "-h", laptop.address, "-k", folder]
    start_quietly(laptop, *AS_NOBODY, found[-1] / "postgres", *places)
    connect = "import os, psycopg; psycopg.connect(os.environ['MLFLOW_BACKEND_STORE_URI'])"
    wait_for(laptop, settings, connect)
    return settings


def test_mlflow_on_a_head_keeps_runs_in_postgresql_and_artifacts_in_s3(
    hosts, laptop, stores, small_corpus
):
    (head,) = hosts.hosts
    head.run("cp", "-r", small_corpus, HOME / "corpus")
    (hosts.folder / "space.yaml").write_text(SPACE)
    head.run("cp", hosts.folder / "space.yaml", HOME / "space.yaml")
    file = laptop.project / "cluster.yaml"
    cluster = yaml.safe_load(file.read_text())
    in_front = " ".join(f"{name}={value}" for name, value in stores.items())
    commands = cluster["head_start_ray_commands"]
    cluster["head_start_ray_commands"] = [
        f"{in_front} {each}" if "mlflow.sh" in each else each for each in commands
    ]
    file.write_text(yaml.safe_dump(cluster))

    laptop("ray", "get-auth-token", "--generate")
    said = laptop("ray", "up", "--yes", "cluster.yaml")
    assert f"runs in {hosts.laptop.address}/postgres, artifacts in s3://bucket/mlflow" in said
    search = ["--source", "folder", "--path", "~/corpus", "--space", "~/space.yaml"]
    submit = ["ray", "submit", "cluster.yaml", "tune/search.py", "--", *search]
    laptop(*submit, "--compare-with", "none", "--name", "stored")
    assert "registered /" in laptop("ray", "exec", "cluster.yaml", CHAMPION)

    read = hosts.laptop.run(sys.executable, "-c", KEPT, **stores)
    found = json.loads(read.stdout.splitlines()[-1])
    states = dict(found["runs"])
    assert states["stored"] == "FINISHED"
    assert {"trial 0", "trial 1"} <= set(states)
    files = {Path(key).name for key in found["files"]}
    assert {"model.safetensors", "report.html"} <= files
    assert all(key.startswith("mlflow/") for key in found["files"])
    head.run("test", "!", "-e", HOME / ".smallm" / "mlflow" / "mlflow.db")
    laptop("ray", "down", "--yes", "cluster.yaml")
    wait_until_nothing_runs([head])
