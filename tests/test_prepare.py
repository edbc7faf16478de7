"""The tape that a cluster of two nodes builds is the one that a single process builds."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dumps import json_lines, thread, xml_rows
from hypothesis import given
from hypothesis import strategies as st

from smallm.hashes import rows_of
from smallm.settings import CorpusSettings
from smallm.tape import Tape
from smallm.tape_building import build_tape

ROOT = Path(__file__).parent.parent
HALF = st.integers(0, 3)


@given(st.sets(st.tuples(HALF, HALF)), st.lists(st.tuples(HALF, HALF)))
def test_rows_are_found_by_both_halves_of_a_hash(known, wanted):
    ranked = np.array(sorted(known), dtype=">u8").reshape(-1, 2)
    found = rows_of(np.array(wanted, dtype=">u8").reshape(-1, 2), ranked)
    expected = [sorted(known).index(pair) if pair in known else -1 for pair in wanted]
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, each with one processor."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


def prepare(cluster, home, *options):
    command = [sys.executable, ROOT / "tune" / "prepare.py", *options]
    environment = {**os.environ, "SMALLM_HOME": str(home), "RAY_ADDRESS": cluster.address}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=200
    )


def dumps(folder):
    """Threads in three files of two folders, some repeated, some nearly; one file is damaged."""
    rng = random.Random(0)
    words = [f"word{n}" for n in range(3_000)]
    for site in range(3):
        rows = []
        for number in range(1, 120):
            question, *answers = thread(number, answers=0)
            body = " ".join(rng.sample(words, 80)) if number > 10 else "Shared by all sites. " * 30
            near = f" Only here: {site}." if number > 100 else ""
            question["Body"] = (
                f"<p>{body if number < 90 else ' '.join(words[number:600])}{near}</p>"
            )
            rows += [question, *answers]
        (folder / f"site{site % 2}" / "deep").mkdir(parents=True, exist_ok=True)
        content = xml_rows(rows).encode()
        path = folder / f"site{site % 2}" / ("deep" * (site == 2)) / "Posts.xml"
        path.write_bytes(content if site else content[:-200])
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_two_nodes_builds_the_tape_of_a_single_process(cluster, tmp_path):
    folder = dumps(tmp_path / "dumps")
    settings = CorpusSettings(source="stackoverflow", path=folder)
    alone = build_tape(settings, home=tmp_path / "alone")
    run = prepare(cluster, tmp_path / "home", "--source", "stackoverflow", "--path", folder)
    assert run.returncode == 0, run.stderr
    (built,) = (tmp_path / "home" / "tapes").iterdir()
    together = Tape(built)
    assert built.name == alone.folder.name
    assert str(built) in run.stdout
    changing = {"seconds", "shards"}
    assert {k: v for k, v in together.manifest.items() if k not in changing} == {
        k: v for k, v in alone.manifest.items() if k not in changing
    }
    assert alone.manifest["duplicates"]["exact"] > 20
    assert alone.manifest["duplicates"]["near"] > 10
    assert len(together.manifest["shards"]) > 1
    columns = ["id", "source", "hash", "place", "bytes", "words"]
    assert together.documents[columns].equals(alone.documents[columns])
    assert [together.text(n) for n in range(len(together))] == [
        alone.text(n) for n in range(len(alone))
    ]
    # a search, or another build, opens it
    again = build_tape(settings, home=tmp_path / "home")
    assert again.manifest["shards"] == together.manifest["shards"]


@pytest.mark.ray
@pytest.mark.slow
def test_machines_without_a_shared_home_build_into_a_storage(cluster, tmp_path):
    folder = dumps(tmp_path / "dumps")
    options = ["--source", "stackoverflow", "--path", folder, "--storage", tmp_path / "shared"]
    tapes = []
    for home, done in (("one", "built"), ("two", "found")):
        run = prepare(cluster, tmp_path / home, *options)
        assert run.returncode == 0, run.stderr
        assert f"{done} {tmp_path / home}" in run.stdout
        (tape,) = (tmp_path / home / "tapes").iterdir()
        tapes.append(Tape(tape))
    one, two = tapes
    alone = build_tape(CorpusSettings(source="stackoverflow", path=folder), home=tmp_path / "alone")
    assert one.manifest["digest"] == two.manifest["digest"] == alone.manifest["digest"]
    assert len(one.manifest["shards"]) > 1
    assert [two.text(n) for n in range(len(two))] == [alone.text(n) for n in range(len(alone))]
    kept = {path.name for path in (tmp_path / "shared" / "tapes" / one.folder.name).iterdir()}
    assert kept == {path.name for path in one.folder.iterdir()}


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_builds_mixtures_of_buckets_by_weight(cluster, tmp_path):
    rng = random.Random(1)
    for name, key in (("a", "abstract"), ("b", "body")):
        records = [{key: " ".join(f"{name}{rng.random()}" for _ in range(40))} for _ in range(80)]
        (tmp_path / name).mkdir()
        for part in (0, 1):
            text = json_lines(records[part::2])
            (tmp_path / name / f"{part}.json").write_text(text)
    (tmp_path / "mixture.yaml").write_text(
        f"- {{source: arxiv, path: '{(tmp_path / 'a').as_uri()}', weight: 2}}\n"
        "- {source: reddit, path: b}\n"
    )
    settings = CorpusSettings(source="mixture", path=tmp_path / "mixture.yaml")
    alone = build_tape(settings, home=tmp_path / "alone")
    run = prepare(
        cluster, tmp_path / "home", "--source", "mixture", "--path", tmp_path / "mixture.yaml"
    )
    assert run.returncode == 0, run.stderr
    (built,) = (tmp_path / "home" / "tapes").iterdir()
    assert Tape(built).manifest["digest"] == alone.manifest["digest"]
    assert Tape(built).documents["id"].tolist() == alone.documents["id"].tolist()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--tags", "pyton"], "unknown tag 'pyton': no record has it; did you mean python?"),
        (["--order", "stratified"], "use `smallm corpus build`"),
        (["--minimum-score", "99"], "holds no usable text; left out:"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(cluster, tmp_path, options, wrong):
    (tmp_path / "Posts.xml").write_text(xml_rows(thread(1) + thread(2)), encoding="utf-8")
    run = prepare(
        cluster, tmp_path / "home", "--source", "stackoverflow", "--path", tmp_path, *options
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert wrong in run.stderr.splitlines()[-1]
    assert not list((tmp_path / "home").glob("tapes/*"))
    assert not list((tmp_path / "home").glob("tapes/.*"))
