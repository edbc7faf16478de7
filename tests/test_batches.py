"""Batches are a keyed permutation of positions, and windows stay inside documents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smallm.batches import Batches, permuted, windows_before


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
def test_the_permutation_hits_every_index_once(size, seed, epoch):
    found = permuted(np.arange(size), size, key=(seed, epoch))
    assert sorted(found.tolist()) == list(range(size))


def test_the_permutation_looks_random():
    found = permuted(np.arange(10_000), 10_000, key=(42, 0))
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.05
    assert (found != permuted(np.arange(10_000), 10_000, key=(43, 0))).mean() > 0.99


def test_a_batch_follows_from_seed_and_step_alone(bpe_tokens):
    batches = Batches(bpe_tokens, end=5_000, window=4, batch_size=64)
    windows, targets = batches.steps(42, 0, 10)
    later_windows, later_targets = batches.steps(42, 7, 9)
    np.testing.assert_array_equal(windows[7:9], later_windows)
    np.testing.assert_array_equal(targets[7:9], later_targets)
    assert (targets != batches.steps(43, 0, 10)[1]).mean() > 0.5


def test_an_epoch_predicts_every_position_once(bpe_tokens):
    batches = Batches(bpe_tokens, end=1_001, window=2, batch_size=100)
    _, targets = batches.steps(42, 0, 10)
    expected = np.sort(bpe_tokens.tokens[1:1_001])
    np.testing.assert_array_equal(np.sort(targets.ravel()), expected)


def test_windows_never_reach_over_the_start_of_their_document(bpe_tokens):
    positions = np.arange(1, 4_000)
    windows, targets = windows_before(bpe_tokens, positions, 6)
    np.testing.assert_array_equal(targets, bpe_tokens.tokens[positions])
    ends = bpe_tokens.ends
    for position, window in zip(positions[::7], windows[::7], strict=True):
        opening = ends[np.searchsorted(ends, position, side="left") - 1]
        past = bpe_tokens.tokens[opening:position].astype(int).tolist()[-6:]
        assert window.tolist() == [0] * (6 - len(past)) + past
