"""A node's installation, with its downloads from the package registries."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_node_is_installed_once_with_the_pinned_versions(tmp_path):
    def run(*command):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        environment |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    environment = tmp_path / ".smallm" / "environment"
    assert "installed SmaLLM on" in run("bash", ROOT / "clusters" / "install.sh")
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    there = {
        line.split("+")[0].lower()
        for line in run(environment / "bin" / "pip", "freeze").splitlines()
    }
    for name in ("ray", "torch", "mlflow", "optuna", "transformers"):
        (version,) = (line.split()[0].lower() for line in pinned if line.startswith(f"{name}=="))
        assert version in there
    program = "import smallm, mlflow, optuna, ray.serve, ray.tune, torch; print(smallm.__file__)"
    assert str(ROOT) in run(environment / "bin" / "python", "-c", program)
    assert "usage" in run(environment / "bin" / "ray", "--help").lower()
    before = sorted(environment.rglob("*"))
    assert "SmaLLM is installed on" in run("bash", ROOT / "clusters" / "install.sh")
    assert sorted(environment.rglob("*")) == before
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert len([line for line in lines if "environment.sh" in line]) == 1
