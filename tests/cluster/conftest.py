"""A head, two workers and a laptop, with SmaLLM's environment as after an installation."""

import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest
import s3
import yaml

from .hosts import NETWORK, Hosts, missing

ROOT = Path(__file__).parents[2]
S3_PORT = 5005
S3 = {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{NETWORK}.254:{S3_PORT}"}
FEW = "--num-cpus=1 --object-store-memory=200000000"

# What clusters/install.sh would leave, without the downloads: this environment, of which each host
# writes its own copy, under the name that the cluster expects, with the code that `ray up` brings.
INSTALLED = """
set -e
mkdir -p ~/.smallm
ln -s {environment} ~/.smallm/environment
echo $HOME/.smallm/source > {packages}/_editable_impl_smallm.pth
cd {root}
cat pyproject.toml constraints.txt clusters/install.sh | sha256sum > ~/.smallm/environment/installed
# Trials start on all machines together, so that none has done them all before another is ready.
echo export TUNE_MAX_PENDING_TRIALS_PG=3 {bucket} >> ~/.bashrc
"""


@pytest.fixture(scope="module")
def names():
    """Of the hosts, the head first."""
    return ["head", "worker-1", "worker-2"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, names):
    why = missing()
    if why:
        pytest.skip(f"test hosts: {why}")
    with Hosts(tmp_path_factory.mktemp("hosts"), names) as made:
        for host in made.hosts:
            packages = f"{sys.prefix}/lib/python3.{sys.version_info.minor}/site-packages"
            script = INSTALLED.format(
                environment=sys.prefix,
                packages=packages,
                root=ROOT,
                bucket=" ".join(f"{name}={value}" for name, value in S3.items()),
            )
            host.run("bash", "-c", script)
        yield made


@pytest.fixture(scope="module")
def bucket(hosts):
    """A bucket of an S3 server on the laptop, which every machine reaches."""
    place = ["-H", hosts.laptop.address, "-p", S3_PORT]
    start_quietly(hosts.laptop, sys.executable, "-m", "moto.server", *place)
    wait_for(hosts.laptop, S3, "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')")
    return "s3://bucket"


def start_quietly(host, *command):
    """Starts a server that may print more than anybody reads."""
    quietly = f"exec {shlex.join(map(str, command))} > /dev/null 2>&1"
    host.start("bash", "-c", quietly, cwd="/")  # where any user may be


def wait_for(host, environment, program, patience=60):
    """Until a Python program succeeds."""
    deadline = time.monotonic() + patience
    while True:
        done = host.run(sys.executable, "-c", program, check=False, **environment)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stdout
        time.sleep(1)


@pytest.fixture(scope="module")
def laptop(hosts):
    """Runs a command of a person in the checkout on the laptop, and gives what it said."""
    project = hosts.folder / "project"
    for name in ("cluster.yaml", "pyproject.toml", "constraints.txt", "README.md"):
        project.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    for name in ("clusters", "serve", "smallm", "tune"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    edit(project / "cluster.yaml", hosts)

    # As an editable installation of the checkout would have it.
    usual = {"cwd": project, "TERM": "dumb", "PYTHONPATH": str(project)}

    def run(*command, code=0, timeout=300, **environment):
        done = hosts.laptop.run(*command, check=False, timeout=timeout, **{**usual, **environment})
        assert done.returncode == code, done.stdout
        return done.stdout

    run.project = project
    run.start = lambda *command: hosts.laptop.start(*command, **usual)
    return run


def edit(path, hosts):
    """What a person edits, and few resources, for all hosts share one machine."""
    cluster = yaml.safe_load(path.read_text())
    head, *workers = (host.address for host in hosts.hosts)
    cluster["provider"].update(head_ip=head, worker_ips=workers)
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        cluster[part] = [f"{line} {FEW}" if "ray start" in line else line for line in cluster[part]]
    path.write_text(yaml.safe_dump(cluster))


def wait_until_nothing_runs(hosts, patience=150):
    """A worker notices within a minute that its head is gone."""
    deadline = time.monotonic() + patience
    while left := [line for host in hosts for line in host.processes()]:
        assert time.monotonic() < deadline, "\n".join(left)
        time.sleep(2)
