"""Each of the five sources from its real sample to a champion: corpus, search, report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = os.environ.get("SMALLM_SAMPLES", "")
SEARCH = Path(__file__).parents[1] / "tune" / "search.py"
SPACE = """
trials: 2
seeds: [1]
confirmed: 1
confirmation_seeds: [11]
settings:
  {training_tokens: 4096, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 8, window: 4,
   evaluate_at: [0.5, 1.0], evaluation_bytes: 3000}
search:
  learning_rate: {low: 0.001, high: 0.02, log: true}
  split_ratio: {choices: [0.4, 0.5]}
"""
PATHS = {
    "ml-text": [],
    "stackoverflow": ["stackexchange"],
    "arxiv": ["arxiv"],
    "reddit": ["reddit"],
    "news": ["news"],
}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.skipif(not SAMPLES, reason="SMALLM_SAMPLES names no folder of real samples"),
]


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield nodes
    nodes.shutdown()


@pytest.mark.parametrize("name", PATHS)
def test_a_short_search_runs_on_the_sample(cluster, tmp_path, name):
    (tmp_path / "space.yaml").write_text(SPACE)
    folder = Path(SAMPLES, *PATHS[name])
    if name == "ml-text":  # Wikipedia, OpenML and course notes are three folders of the samples
        folder = tmp_path / "texts"
        folder.mkdir()
        for each in ("wikipedia", "openml", "courses"):
            (folder / each).symlink_to(Path(SAMPLES, each))
    options = ["--source", name, "--path", folder, "--space", "space.yaml"]
    options += ["--categories", "*"] if name == "ml-text" else []
    run = subprocess.run(
        [sys.executable, SEARCH, *options, "--compare-with", "none", "--name", "short"],
        cwd=tmp_path,
        env={**os.environ, "SMALLM_HOME": str(tmp_path), "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "searches" / "short" / "result.json").read_text())
    assert result["champion"] is not None
    assert result["corpus"]["source"] == name
    assert result["corpus"]["profile"]["documents"] == result["corpus"]["documents"]
    assert (tmp_path / "searches" / "short" / "report.html").exists()
