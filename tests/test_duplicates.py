"""Near duplicates against exact Jaccard similarity and a brute-force search."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm import duplicates
from smallm.duplicates import SHINGLE, band_hashes, banding, candidates, followers, signatures

WORDS = st.lists(st.sampled_from(["a", "b", "Cat", "dog", "é", "x1"]), max_size=12)


def shingles(text):
    words = text.lower().split() or [""]
    return {tuple(words[n : n + SHINGLE]) for n in range(max(len(words) - SHINGLE + 1, 1))}


def jaccard(one, two):
    return len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))


def found(texts, threshold):
    """The places of the texts that are near an earlier one."""
    rows = signatures(texts)
    bands = band_hashes(rows, threshold=threshold)
    pairs = (pair for band in bands.T for pair in candidates(band))
    return followers(pairs, lambda places: rows[places], threshold=threshold).tolist()


@settings(max_examples=60)
@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=6))
def test_a_signature_is_that_of_its_text_alone(texts):
    together = signatures(texts)
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(signatures([text])[0], row)


@settings(max_examples=60)
@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_equal_sets_of_shingles_have_equal_signatures_and_others_do_not(one, two):
    first, second = signatures([one, two])
    assert (first == second).all() == (shingles(one) == shingles(two))


def test_the_estimate_is_near_the_exact_similarity():
    rng = random.Random(0)
    words = [f"w{n}" for n in range(400)]
    for changed in (2, 10, 30):
        other = list(words)
        for place in rng.sample(range(len(words)), changed):
            other[place] = f"x{place}"
        one, two = " ".join(words), " ".join(other)
        first, second = signatures([one, two])
        assert np.mean(first == second) == pytest.approx(jaccard(one, two), abs=0.13)


def test_clusters_are_those_of_a_brute_force_search():
    rng = random.Random(1)
    texts = []
    for group in range(60):
        words = [f"g{group}w{n}" for n in range(120)]
        for copy in range(rng.randint(1, 4)):
            texts.append(" ".join([*words, f"end{copy}"]))
    rng.shuffle(texts)
    expected = [
        place
        for place, text in enumerate(texts)
        if any(jaccard(earlier, text) >= 0.75 for earlier in texts[:place])
    ]
    assert found(texts, 0.75) == expected


def test_a_chain_of_similar_texts_is_one_cluster():
    words = [f"w{n}" for n in range(300)]
    texts = [" ".join(words[start : start + 200]) for start in range(0, 100, 10)]
    assert jaccard(texts[0], texts[-1]) < 0.5
    assert found(texts, 0.75) == list(range(1, len(texts)))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.9, 1.0])
def test_banding_misses_few_pairs_at_the_threshold(threshold):
    bands, rows = banding(threshold)
    assert bands * rows <= 128
    assert (1 - threshold**rows) ** bands <= 0.02


@pytest.mark.parametrize("all_pairs", [0, 3, 512])
@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_candidates_are_all_pairs_that_agree_or_connect_them(values, all_pairs):
    hashes = np.array(values, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(duplicates, "ALL_PAIRS", all_pairs)
        smaller.setattr(duplicates, "NEIGHBOURS", 2)
        blocks = list(candidates(hashes))
    pairs = [pair for one, two in blocks for pair in zip(one.tolist(), two.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    for one, two in pairs:
        assert one < two
        assert values[one] == values[two]
    for value in set(values):
        places = [place for place, each in enumerate(values) if each == value]
        found = [pair for pair in pairs if values[pair[0]] == value]
        if len(places) <= all_pairs:
            assert len(found) == len(places) * (len(places) - 1) // 2
        assert {two for _, two in found} == set(places[1:])


def test_near_pairs_hidden_among_many_texts_of_one_template_are_found():
    rng = random.Random(0)
    template = [f"shared{n}" for n in range(300)]
    texts = []
    for pair in range(100):
        own = [f"p{pair}w{n}" for n in range(40)]
        for copy in range(2):
            texts.append(" ".join([*template, *own, *(f"c{copy}p{pair}x{n}" for n in range(25))]))
    rng.shuffle(texts)
    # many agree in some band, so comparing neighbours alone would miss most pairs
    threshold = 0.80
    expected = sum(
        any(jaccard(earlier, text) >= threshold for earlier in texts[:place])
        for place, text in enumerate(texts)
    )
    assert expected > 80
    assert len(found(texts, threshold)) == pytest.approx(expected, rel=0.2)
