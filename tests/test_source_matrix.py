"""Trained on one kind of text, scored on another: figures that add up, a page, sentences."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from dumps import json_lines

from smallm.comparison_section import comparison_sections
from smallm.source_matrix import has_matrix, matrix_lines, sentences

SMALL = [
    *("--vocabulary", "320", "--embedding", "8", "--hidden", "32", "--window", "4"),
    *("--seeds", "1", "--batch-size", "128", "--training-tokens", "30000", "--threads", "1"),
    *("--evaluate-at", "1", "--precision", "fp32", "--replication", "sequential"),
]
WORDS = {
    "arxiv": "lattice boson spectra measure quantum proof".split(),
    "reddit": "yeah dude awesome movie pizza weekend".split(),
}


def texts(name, count):
    rng = random.Random(name)
    return [" ".join(rng.choices(WORDS[name], k=60)) + f" {rng.random()}." for _ in range(count)]


@pytest.fixture
def dumps(tmp_path):
    for name, field, file in (("arxiv", "abstract", "a.json"), ("reddit", "body", "RC_2012-01")):
        records = [{field: text} for text in texts(name, 150)]
        (tmp_path / file).write_text(json_lines(records))
    mixture = "- {source: arxiv, path: a.json}\n- {source: reddit, path: RC_2012-01}\n"
    (tmp_path / "mixture.yaml").write_text(mixture)
    return SimpleNamespace(
        arxiv=["--source", "arxiv", "--path", tmp_path / "a.json"],
        reddit=["--source", "reddit", "--path", tmp_path / "RC_2012-01"],
        mixture=["--source", "mixture", "--path", tmp_path / "mixture.yaml"],
    )


def test_models_of_different_sources_meet_on_held_out_text_of_a_mixture(smallm, dumps, tmp_path):
    for name in ("arxiv", "reddit", "mixture"):
        options = getattr(dumps, name)
        run = smallm("train", *options, *SMALL, "--output", tmp_path / name)
        assert run.code == 0, run.err
    models = ",".join(str(tmp_path / name) for name in ("arxiv", "reddit", "mixture"))
    options = ["--models", models, *dumps.mixture, "--slice", "selection"]
    run = smallm("evaluate", *options, "--json")
    assert run.code == 0, run.err
    assert "note:" not in run.err  # in hash order, what is held out here was held out there
    record = json.loads(run.out)
    assert set(record["sources"]) == {"arxiv", "reddit"}
    assert sum(found["bytes"] for found in record["sources"].values()) == record["bytes"]
    rows = {row["name"].rpartition("/")[2]: row for row in record["models"]}
    assert rows["arxiv"]["trained_on"] == ["arxiv"]
    assert rows["mixture"]["trained_on"] == ["arxiv", "reddit"]
    for name, row in rows.items():
        nats = [sum(found["nll_by_document"]) for found in row["by_source"].values()]
        bits = sum(nats) / math.log(2) / record["bytes"]
        assert bits == pytest.approx(row["bits_per_byte"]["value"])
        for source, found in row["by_source"].items():
            sizes = sum(found["bytes_by_document"])
            assert sizes == record["sources"][source]["bytes"]
            assert found["value"] == pytest.approx(
                sum(found["nll_by_document"]) / math.log(2) / sizes
            )
            assert found["low"] < found["value"] < found["high"]
        if name != "mixture":
            other = "reddit" if name == "arxiv" else "arxiv"
            own, strange = (row["by_source"][each]["value"] for each in (name, other))
            assert own < strange
    said = list(sentences(record))
    assert len(said) == 4
    assert any(
        line.startswith("On arxiv text") and line.index("arxiv (trained on") for line in said
    )
    told = smallm("evaluate", *options).out
    assert "Bits per byte on each source" in told
    assert "on reddit" in told
    page = next(iter((tmp_path / "home" / "evaluations").glob("*/evaluation.html"))).read_text()
    assert "Source by source" in page
    assert "a column for each source it is scored on" in " ".join(page.split())


def record(gaps):
    """Two models, the second worse by so many bits per byte on each document of a source."""
    rng = np.random.default_rng(0)
    sizes = [1000] * len(gaps)
    first = rng.uniform(1.0, 2.0, len(gaps))
    rows = []
    for name, bits in (("a", first), ("b", first + np.array(gaps))):
        found = {
            "value": float(bits.mean()),
            "low": float(bits.min()),
            "high": float(bits.max()),
            "nll_by_document": (bits * 1000 * math.log(2)).tolist(),
            "bytes_by_document": sizes,
        }
        rows.append({"name": name, "trained_on": [name], "by_source": {"s": found, "t": found}})
    about = {"documents": len(gaps), "bytes": sum(sizes)}
    return {"sources": {"s": about, "t": about}, "models": rows}


def test_a_sentence_gives_the_difference_with_its_interval():
    said = list(sentences(record([0.1] * 20)))
    assert said[0] == (
        "On s text a (trained on a) needs 0.100 bits per byte less than b (trained on b) "
        "(95 % interval 0.100 to 0.100)."
    )


def test_a_difference_that_documents_do_not_agree_on_is_told_as_such():
    (said, _) = sentences(record([2.0, -1.9] * 3))
    assert said.endswith("these documents cannot tell them apart.")


def test_one_document_has_no_interval():
    (said, _) = sentences(record([0.25]))
    assert said.endswith("needs 0.250 bits per byte less than b (trained on b), on one document.")


def test_a_single_source_has_no_matrix():
    found = record([0.1, 0.2])
    assert has_matrix(found)
    assert [cells[0] for cells in matrix_lines(found)] == ["a", "b"]
    del found["sources"]["t"]
    assert not has_matrix(found)
    assert "Source by source" not in comparison_sections({**found, "prompts": []} | {"models": []})


def test_a_corpus_that_is_given_takes_nothing_from_the_models(smallm, dumps, tmp_path):
    options = [*dumps.arxiv, "--order", "stratified", *SMALL]
    assert smallm("train", *options, "--output", tmp_path / "a").code == 0
    built = json.loads(smallm("corpus", "build", *dumps.arxiv, "--json").out)
    run = smallm("evaluate", "--models", tmp_path / "a", *dumps.arxiv, "--slice", "all", "--json")
    assert json.loads(run.out)["corpus"]["digest"] == built["digest"]


def test_a_source_without_scored_text_is_told(smallm, dumps, tmp_path):
    (tmp_path / "a.json").write_text(
        json_lines([{"abstract": text} for text in texts("arxiv", 300)])
    )
    (tmp_path / "RC_2012-01").write_text(json_lines([{"body": "A single comment, no more."}]))
    (tmp_path / "mixture.yaml").write_text(
        "- {source: arxiv, path: a.json, weight: 5000}\n- {source: reddit, path: RC_2012-01}\n"
    )
    built = smallm("corpus", "build", *dumps.mixture)
    assert "reddit: 1 documents, 26 bytes, " in built.out
    assert smallm("train", *dumps.mixture, *SMALL, "--output", tmp_path / "m").code == 0
    run = smallm("evaluate", "--models", tmp_path / "m")
    assert "note: nothing of reddit is among the" in run.err
    assert "on each source" not in run.out
