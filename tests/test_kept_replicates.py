"""What of a confirmation stays on disk for a search that goes on."""

from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
import torch

from smallm.confirmation import Finalist, Replicate, without_memory
from smallm.kept_replicates import FOLDER, keep, kept
from smallm.scoring import Scores
from smallm.settings import Settings

FINALIST = Finalist("trial 3", "abc", Settings(), is_default=False)
RNG = np.random.default_rng(0)


def scores(**more):
    sizes = RNG.integers(1, 100, 5)
    return Scores(nll=RNG.random(5), bytes=sizes, words=sizes + 1, tokens=sizes + 2, **more)


@pytest.fixture
def replicate():
    weights = safetensors.torch.save({"weight": torch.rand(3, 2)})
    final = scores(hits=RNG.integers(0, 9, (5, 3)), correct=RNG.random(7) > 0.5)
    return Replicate(7, 1.25, None, selection=scores(), final=final, weights=weights)


def test_a_replicate_comes_back_to_the_last_bit(tmp_path, replicate):
    keep(tmp_path, FINALIST, "digest", replicate)
    found = kept(tmp_path, FINALIST, "digest", 7)
    assert (found.seed, found.seconds, found.failure) == (7, 1.25, None)
    assert found.weights == replicate.weights
    for part in ("selection", "final"):
        for field in fields(Scores):
            one, other = (getattr(getattr(each, part), field.name) for each in (found, replicate))
            if other is None:
                assert one is None
            else:
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
    assert found.final.metrics() == replicate.final.metrics()


def test_another_config_text_or_seed_has_none(tmp_path, replicate):
    keep(tmp_path, FINALIST, "digest", replicate)
    other = replace(FINALIST, settings=Settings().replace(hidden=100))
    assert kept(tmp_path, other, "digest", 7) is None
    assert kept(tmp_path, replace(FINALIST, name="trial 4"), "digest", 7) is None
    assert kept(tmp_path, FINALIST, "other", 7) is None
    assert kept(tmp_path, FINALIST, "digest", 8) is None


def test_one_that_failed_is_tried_again(tmp_path):
    keep(tmp_path, FINALIST, "digest", without_memory(7, "out of memory"))
    assert not (tmp_path / FOLDER).exists()
