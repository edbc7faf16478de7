"""What a failed fresh seed does to the contest; the whole confirmation runs in test_search."""

import numpy as np
import pytest
import safetensors.torch
import torch

from smallm.confirmation import (
    Confirmed,
    Finalist,
    Replicate,
    choose_finalists,
    failure_sentences,
    final_metrics,
    finalist_record,
    ranked,
)
from smallm.ledger import _no_champion
from smallm.scoring import Scores
from smallm.settings import Settings


def scores(bits):
    one = np.ones(2, dtype=np.int64)
    return Scores(nll=np.full(2, bits * np.log(2)), tokens=one, words=one, bytes=one)


def mixed(seed, bits):
    """Two documents of each of two sources, the second source twice as hard."""
    sizes = np.array([100, 200, 100, 300])
    nll = bits * np.log(2) * sizes * np.array([1, 1, 2, 2])
    found = Scores(nll=nll, tokens=sizes, words=sizes, bytes=sizes)
    weights = safetensors.torch.save({"weight": torch.zeros(3, 2)})
    return Replicate(seed, 1.0, None, found, found, weights)


def test_a_finalist_has_a_figure_for_each_source_of_a_mixture():
    finalist = Finalist("trial 1", "trial 1", Settings(), is_default=False)
    both = Confirmed(finalist, (mixed(1, 0.9), mixed(2, 1.1)))
    sources = ["easy", "easy", "hard", "hard"]
    row = finalist_record(both, role="champion", searched=[], sources=sources)
    assert row["by_source"]["easy"]["value"] == pytest.approx(1.0)
    assert row["by_source"]["hard"]["value"] == pytest.approx(2.0)
    assert row["by_source"]["hard"]["low"] < 2.0 < row["by_source"]["hard"]["high"]
    assert row["final"]["bits_per_byte"]["value"] == pytest.approx(1100 / 700)
    metrics = final_metrics(row)
    assert metrics["final/bits_per_byte/on/hard"] == pytest.approx(2.0)
    alone = finalist_record(both, role="champion", searched=[], sources=["easy"] * 4)
    assert alone["by_source"] == {}


def confirmed(name, bits, *, failure=None):
    replicates = tuple(
        Replicate(seed, 1.0, failure if seed == 2 else None, scores(bits), scores(bits), b"")
        for seed in (1, 2)
    )
    return Confirmed(Finalist(name, name, Settings(), is_default=False), replicates)


def test_a_finalist_that_fails_with_a_fresh_seed_is_not_ranked_and_is_named():
    best = confirmed("trial 1", 1.0, failure="the loss is not finite")
    others = [confirmed("trial 2", 1.5), confirmed("trial 3", 1.2)]
    assert [each.finalist.name for each in ranked([best, *others])] == ["trial 3", "trial 2"]
    (said,) = failure_sentences([best, *others])
    assert "trial 1" in said
    assert "the loss is not finite" in said


def test_where_every_finalist_fails_the_result_says_so():
    failed = [confirmed("trial 1", 1.0, failure="the loss is not finite")]
    assert ranked(failed) == []
    trials = [{"status": "completed", "reason": ""}]
    assert _no_champion(trials, failed).startswith("Every finalist failed with a fresh seed")
    assert "full budget" in _no_champion(trials, [])


def test_the_default_config_is_a_finalist_with_its_own_trial():
    default, other = Settings(), Settings().replace(activation="tanh")
    configs = {"a": default, "b": other}
    trials = [
        {"id": "a", "number": 0, "status": "stopped", "bits_per_byte": {"mean": 3.0}},
        {"id": "b", "number": 1, "status": "completed", "bits_per_byte": {"mean": 2.0}},
    ]
    best, added = choose_finalists(trials, count=1, configs=configs, default=default)
    assert (best.trial, best.is_default) == ("b", False)
    assert (added.trial, added.is_default) == ("a", True)
    (_, never) = choose_finalists(trials[1:], count=1, configs=configs, default=default)
    assert never.trial is None


def test_a_config_that_was_tried_twice_is_one_finalist():
    default, best, second = (
        Settings().replace(activation=name) for name in ("relu", "gelu", "tanh")
    )
    configs = {"a": default, "b": best, "c": best, "d": second}
    trials = [
        {"id": each, "number": number, "status": "completed", "bits_per_byte": {"mean": mean}}
        for number, (each, mean) in enumerate(zip("abcd", (2.0, 1.0, 1.0, 1.5), strict=True))
    ]
    found = choose_finalists(trials, count=2, configs=configs, default=default)
    assert [each.name for each in found] == ["trial 1", "trial 3", "the default config"]
