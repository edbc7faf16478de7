"""The oracle is a direct, recursive Kneser-Ney over Python dictionaries."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm.ngrams import KneserNey

BOUNDARY = 0


def stream_of(sequences):
    return np.array([token for sequence in sequences for token in (BOUNDARY, *sequence)])


def slow_distribution(sequences, context, *, vocabulary, order):
    """Interpolated modified Kneser-Ney, straight from the definition."""
    grams = [Counter() for _ in range(order)]
    for sequence in sequences:
        whole = (BOUNDARY, *sequence)
        for end in range(1, len(whole)):
            for length in range(1, min(order, end + 1) + 1):
                grams[length - 1][whole[end - length + 1 : end + 1]] += 1
    adjusted = [Counter() for _ in range(order)]
    adjusted[-1] = grams[-1]
    for level in range(order - 1):
        for longer in grams[level + 1]:
            adjusted[level][longer[1:]] += 1
        for gram, count in grams[level].items():
            if gram[0] == BOUNDARY:
                adjusted[level][gram] = count

    def discounts(counts):
        of = Counter(counts.values())
        if not all(of[k] for k in (1, 2, 3, 4)):
            return lambda c: 0.5
        y = of[1] / (of[1] + 2 * of[2])
        d = [float(np.clip(k - (k + 1) * y * of[k + 1] / of[k], 0.05, k - 0.05)) for k in (1, 2, 3)]
        return lambda c: d[min(c, 3) - 1]

    probability = np.full(vocabulary, 1 / (vocabulary - 1))
    probability[BOUNDARY] = 0
    for level in range(order):
        if level > len(context):
            break
        past = tuple(context[len(context) - level :])
        children = {g[-1]: n for g, n in adjusted[level].items() if g[:-1] == past}
        total = sum(children.values())
        if not total:
            continue
        d = discounts(adjusted[level])
        freed = sum(d(c) for c in children.values()) / total
        probability = freed * probability
        for token, count in children.items():
            probability[token] += (count - d(count)) / total
    return probability


SEQUENCES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=60)
@given(SEQUENCES, st.lists(st.integers(1, 5), max_size=5), st.integers(1, 4))
def test_distribution_agrees_with_the_definition_and_sums_to_one(sequences, past, order):
    model = KneserNey.fit(stream_of(sequences), vocabulary=6, boundary=BOUNDARY, order=order)
    context = [BOUNDARY, *past]
    found = model.distribution(context)
    expected = slow_distribution(sequences, context, vocabulary=6, order=order)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-6)


@settings(max_examples=40)
@given(SEQUENCES, SEQUENCES, st.integers(1, 5))
def test_scores_of_a_stream_are_the_logs_of_the_distributions(sequences, heldout, order):
    model = KneserNey.fit(stream_of(sequences), vocabulary=6, boundary=BOUNDARY, order=order)
    stream = stream_of(heldout)
    scores = model.log_probabilities(stream)
    start = 0
    for place, token in enumerate(stream):
        if token == BOUNDARY:
            start = place
            assert scores[place] == 0
        else:
            expected = np.log(model.distribution(stream[start:place])[token])
            assert scores[place] == pytest.approx(expected, abs=1e-5)


def test_longer_contexts_predict_a_deterministic_language_better():
    stream = stream_of([[1, 2, 3, 1, 2, 4] * 20] * 5)
    heldout = stream_of([[1, 2, 3, 1, 2, 4] * 5])
    scores = [
        KneserNey.fit(stream, vocabulary=5, boundary=BOUNDARY, order=order)
        .log_probabilities(heldout)
        .sum()
        for order in (1, 2, 3, 4)
    ]
    assert scores == sorted(scores)
    assert scores[3] > 5 * scores[0] / 10


def test_a_stream_that_does_not_open_with_the_boundary_is_refused():
    with pytest.raises(ValueError, match="boundary"):
        KneserNey.fit(np.array([1, 2]), vocabulary=3, boundary=0)
