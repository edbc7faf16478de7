"""Batches are keyed permutations of positions or sequences; windows stay inside documents."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm.batches import Batches, Sequences, permuted, sequences_before, windows_before
from smallm.errors import SmallmError


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


def test_a_batch_of_sequences_follows_from_seed_and_step_alone(bpe_tokens):
    batches = Sequences(bpe_tokens, end=5_000, length=16, batch_size=64)
    inputs, targets = batches.steps(42, 0, 200)
    assert inputs.shape == targets.shape == (200, 4, 16)
    later_inputs, later_targets = batches.steps(42, 150, 153)  # in the second epoch
    np.testing.assert_array_equal(inputs[150:153], later_inputs)
    np.testing.assert_array_equal(targets[150:153], later_targets)
    assert (targets != batches.steps(43, 0, 200)[1]).mean() > 0.5


@given(st.integers(9, 200), st.integers(0, 2**31))
def test_an_epoch_of_sequences_predicts_every_position_but_a_rest_once(end, seed):
    numbered = SimpleNamespace(tokens=np.arange(end))
    count = (end - 1) // 8
    inputs, targets = Sequences(numbered, end=end, length=8, batch_size=8).steps(seed, 0, count)
    np.testing.assert_array_equal(targets, inputs + 1)
    found = targets.ravel().tolist()
    assert len(set(found)) == len(found) == count * 8 > end - 1 - 8
    assert 1 <= min(found) <= max(found) < end
    follows = np.diff(inputs.reshape(-1, 8))
    assert ((follows == 1) | (follows == 2 - end)).all()  # the ring is closed once


def test_a_second_epoch_cuts_the_text_elsewhere(bpe_tokens):
    batches = Sequences(bpe_tokens, end=5_000, length=16, batch_size=16)
    count = 4_999 // 16
    first, second = (batches.steps(1, n * count, (n + 1) * count)[0] for n in (0, 1))
    rows = [{row.tobytes() for row in inputs[:, 0]} for inputs in (first, second)]
    assert len(rows[0] & rows[1]) < 0.1 * count


def test_a_text_shorter_than_a_sequence_is_refused_in_one_line(bpe_tokens):
    with pytest.raises(SmallmError, match=r"sequences of 2 \* window = 64 tokens: it has 50$"):
        Sequences(bpe_tokens, end=50, length=64, batch_size=64)


def test_sequences_before_targets_are_filled_up_beyond_the_tape(bpe_tokens):
    ids = bpe_tokens.tokens
    last = len(ids)
    found = sequences_before(bpe_tokens, np.array([1, 100, last - 2]), size=5, reach=4)
    assert found.shape == (3, 8)
    assert found[0].tolist() == [0, 0, 0, *ids[:5].tolist()]
    assert found[1].tolist() == ids[96:104].tolist()
    assert found[2].tolist() == [*ids[last - 6 :].tolist(), 0, 0]
