"""What of a confirmation stays on disk for a search that goes on."""

from dataclasses import fields, replace

import numpy as np
import pytest
import safetensors.torch
import torch

from smallm.confirmation import Finalist, Replicate, without_memory
from smallm.errors import SmallmError
from smallm.kept_replicates import FOLDER, forget, keep, kept
from smallm.scoring import Scores
from smallm.settings import Settings
from smallm.storage import Storage

FINALIST = Finalist("trial 3", "abc", Settings(), is_default=False)
ORIGIN = {"text": "digest", "ratios": [0.8, 0.9]}
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
    keep(tmp_path, FINALIST, ORIGIN, replicate)
    found = kept(tmp_path, FINALIST, ORIGIN, 7)
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
    keep(tmp_path, FINALIST, ORIGIN, replicate)
    other = replace(FINALIST, settings=Settings().replace(hidden=100))
    assert kept(tmp_path, other, ORIGIN, 7) is None
    assert kept(tmp_path, replace(FINALIST, name="trial 4"), ORIGIN, 7) is None
    assert kept(tmp_path, FINALIST, {**ORIGIN, "text": "other"}, 7) is None
    assert kept(tmp_path, FINALIST, ORIGIN, 8) is None


def test_one_that_failed_is_tried_again(tmp_path):
    keep(tmp_path, FINALIST, ORIGIN, without_memory(7, "out of memory"))
    assert not (tmp_path / FOLDER).exists()


def test_a_damaged_one_is_told_and_all_are_deleted_at_the_end(tmp_path, replicate):
    keep(tmp_path, FINALIST, ORIGIN, replicate)
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SmallmError, match=f"{path.name}: cannot be read"):
        kept(tmp_path, FINALIST, ORIGIN, 7)
    path.write_bytes(b"")
    with pytest.raises(SmallmError, match="cannot be read"):
        kept(tmp_path, FINALIST, ORIGIN, 7)
    forget(tmp_path, None)
    assert not (tmp_path / FOLDER).exists()


def test_what_a_storage_has_of_them_is_deleted_too(tmp_path, replicate):
    storage, search = Storage(str(tmp_path / "storage")), tmp_path / "home" / "searches" / "one"
    keep(search, FINALIST, ORIGIN, replicate)
    (path,) = (search / FOLDER).iterdir()
    storage.keep_file(path, f"searches/one/{FOLDER}/{path.name}")
    storage.keep_file(path, "searches/one/other")
    forget(search, storage)
    forget(search, storage)
    assert storage.file("searches/one/other")
    assert storage.names("searches/one") == []
