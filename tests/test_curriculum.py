"""A curriculum is another order of the very same examples."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm.batches import Batches, Sequences
from smallm.curriculum import STAGES, Staged, difficulties

MEASURES = ["length", "rarity", "unigram"]


def batches_of(kind, tokens):
    if kind == "windows":
        return Batches(tokens, end=3_001, window=4, batch_size=50)
    return Sequences(tokens, end=3_001, length=10, batch_size=50)


def staged(batches, order="easy_first", measure="length", steps=90):
    return Staged(batches, measure=measure, order=order, steps=steps)


@pytest.mark.parametrize("kind", ["windows", "sequences"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("order", ["easy_first", "hard_first", "random"])
def test_a_run_sees_the_same_examples_with_and_without_it(bpe_tokens, kind, measure, order):
    batches = batches_of(kind, bpe_tokens)
    inputs, targets = batches.steps(42, 0, 90)  # more than one epoch
    other_inputs, other_targets = staged(batches, order, measure).steps(42, 0, 90)
    assert other_inputs.shape == inputs.shape
    assert other_targets.shape == targets.shape

    def sorted_rows(inputs, targets):
        rows = np.concatenate(
            [inputs.reshape(-1, inputs.shape[-1]), targets.reshape(inputs[..., 0].size, -1)], 1
        )
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(
        sorted_rows(inputs, targets), sorted_rows(other_inputs, other_targets)
    )
    assert (other_targets != targets).any()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), first=st.integers(0, 80), count=st.integers(1, 9))
def test_a_batch_follows_from_seed_and_step_alone(bpe_tokens, seed, first, count):
    batches = staged(batches_of("sequences", bpe_tokens), "random", "unigram")
    inputs, targets = batches.steps(seed, 0, 90)
    later = batches.steps(seed, first, first + count)
    np.testing.assert_array_equal(inputs[first : first + count], later[0])
    np.testing.assert_array_equal(targets[first : first + count], later[1])


@pytest.mark.parametrize("kind", ["windows", "sequences"])
@pytest.mark.parametrize("measure", MEASURES)
def test_stages_rise_in_difficulty_and_the_controls_hold_the_same_stages(bpe_tokens, kind, measure):
    batches = batches_of(kind, bpe_tokens)
    easy, hard, mixed = (
        np.array_split(staged(batches, order, measure).numbers(42), STAGES)
        for order in ("easy_first", "hard_first", "random")
    )
    found = difficulties(bpe_tokens, 3_001, measure)
    of_stages = [batches.difficulties(42, stage, found) for stage in easy]
    for lower, upper in pairwise(of_stages):
        assert lower.max() <= upper.min() + 1e-9
    assert of_stages[0].mean() < of_stages[-1].mean()
    for one, other in zip(easy, reversed(hard), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(map(tuple, mixed)) == sorted(map(tuple, easy))
    assert [tuple(stage) for stage in mixed] != [tuple(stage) for stage in easy]


def test_difficulties_are_those_of_the_document_of_the_target(bpe_tokens):
    end = int(bpe_tokens.ends[5])
    ids = bpe_tokens.tokens[: end + 1].astype(int)
    counts = np.bincount(ids[:end])
    counts[0] = 0
    found = {measure: difficulties(bpe_tokens, end + 1, measure) for measure in MEASURES}
    for document in range(5):
        first, last = bpe_tokens.ends[document], bpe_tokens.ends[document + 1]
        inside = slice(first + 1, last + 1)  # the targets: its tokens, and the id that ends it
        own = ids[first + 1 : last]
        nats = -np.log(counts[own] / counts.sum())
        size = last - first + (document == 0)
        np.testing.assert_allclose(found["length"][inside], size)
        np.testing.assert_allclose(found["rarity"][inside], nats.sum())
        np.testing.assert_allclose(found["unigram"][inside], nats.sum() / size)
