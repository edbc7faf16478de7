"""Documents on their way: the same whatever the number of processes, and counted alike."""

import re
from functools import partial
from operator import mul

import numpy as np
import pytest
from dumps import json_lines
from hypothesis import given
from hypothesis import strategies as st

from smallm.documents import Dropped
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.spool import ALONE, count_words, in_order
from smallm.tape_building import build_tape
from smallm.token_tape import tokenize_tape


@given(st.text(max_size=40))
def test_words_are_those_of_lm_evaluation_harness(text):
    assert count_words(text) == len(re.split(r"\s+", text))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, 3, ALONE, ALONE + 1, ALONE + 25])
def test_results_come_in_the_order_of_the_arguments(workers, count):
    arguments = ((number, 2) for number in range(count))
    assert list(in_order(mul, arguments, workers=workers)) == [2 * n for n in range(count)]


def test_an_error_in_a_worker_is_raised_where_its_result_is_due():
    arguments = [(2, 2)] * (ALONE + 3) + [(None, 2)] + [(2, 2)] * 5
    results = in_order(mul, arguments, workers=2)
    for _ in range(ALONE + 3):
        assert next(results) == 4
    with pytest.raises(TypeError):
        next(results)


def test_two_processes_build_the_same_tape_and_tokens_as_one(tmp_path):
    rng = np.random.default_rng(0)
    papers = [
        {
            "abstract": " ".join(f"w{n}" for n in rng.integers(0, 9_000, 1_500)),
            "title": f"T{number}",
        }
        for number in range(1_200)
    ]
    path = tmp_path / "arxiv.json"
    path.write_text(json_lines([*papers, papers[0], {"abstract": " "}]))
    build = partial(build_tape, CorpusSettings(source="arxiv", path=path))
    one = build(home=tmp_path / "one")
    two = build(home=tmp_path / "two", workers=2)
    assert one.manifest["bytes"] > (ALONE + 1) * 2**20
    changing = {"seconds"}
    assert {k: v for k, v in one.manifest.items() if k not in changing} == {
        k: v for k, v in two.manifest.items() if k not in changing
    }
    assert one.manifest["duplicates"]["exact"] == 1
    assert one.manifest["dropped"]["empty text"]["count"] == 1
    settings = TokenizerSettings(vocabulary=400)
    first = tokenize_tape(one, settings, ratios=[0.8])
    second = tokenize_tape(two, settings, ratios=[0.8], workers=2)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.ends, second.ends)


def test_only_so_many_documents_are_read(tmp_path):
    path = tmp_path / "arxiv.json"
    path.write_text(json_lines([{"abstract": f"We study {n} things."} for n in range(50)]))
    settings = CorpusSettings(source="arxiv", path=path, max_documents=20)
    tape = build_tape(settings, home=tmp_path)
    assert len(tape) + sum(tape.manifest["duplicates"].values()) == 20


def test_dropped_counts_of_parts_add_up():
    one, two = Dropped(), Dropped()
    for number in range(30):
        (one if number % 2 else two).add("reason", f"place {number}")
    one.merge(two)
    assert one.counts == {"reason": 30}
    assert len(one.places["reason"]) == Dropped.PLACES_KEPT
