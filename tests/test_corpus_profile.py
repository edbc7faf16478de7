"""The profile of a corpus against counts made by hand, and even shares where they are promised."""

import random

import numpy as np
import pytest
from scipy.stats import chisquare
from test_tape import write

from smallm.corpus_profile import NGRAM, corpus_profile, long_ngrams
from smallm.strata import strata
from smallm.tape_building import build_tape

RATIOS = (0.75, 0.8, 0.9)


def test_sizes_growth_and_lengths_are_those_of_the_texts(tape):
    profile = corpus_profile(tape, RATIOS, samples=2)
    texts = [tape.text(number) for number in range(len(tape))]
    words = " ".join(texts).split()
    assert profile["words"] == len(words)
    assert profile["bytes"] == sum(len(text.encode()) for text in texts)
    for point in profile["vocabulary_growth"]:
        assert point["distinct"] == len(set(words[: point["words"]]))
    assert profile["vocabulary_growth"][-1]["words"] == len(words)
    for each in profile["lengths"]:
        inside = [each["from"] <= len(text.encode()) <= each["to"] for text in texts]
        assert each["documents"] == sum(inside)
    assert profile["sources"] == {"folder": {"documents": len(tape), "bytes": profile["bytes"]}}
    assert profile["samples"] == [text[:300] for text in texts[:2]]


def test_overlap_is_the_share_of_13_grams_that_training_has(tmp_path):
    rng = random.Random(1)
    shared = [f"shared{n}" for n in range(40)]
    texts = []
    for number in range(200):
        own = [f"d{number}w{rng.randrange(10**6)}" for _ in range(100)]
        texts.append(" ".join([*own, *shared[: 13 if number % 2 else 0]]))
    tape = build_tape(write(tmp_path / "corpus", texts), home=tmp_path / "home")
    profile = corpus_profile(tape, RATIOS, samples=0)
    selection, _ = tape.heldout(RATIOS)
    held_out = list(tape.texts(selection))
    odd = sum("shared0" in text for text in held_out)
    assert profile["overlap"]["selection"] == {
        "documents": len(held_out),
        "training_bytes": tape.bytes(tape.training(0.9)),
        "ngrams": sum(len(text.split()) - 12 for text in held_out),
        "seen": odd,
        "share": odd / sum(len(text.split()) - 12 for text in held_out),
        "documents_with_any": odd,
    }


def test_ngrams_differ_by_order_and_short_texts_have_none():
    words = [f"w{n}" for n in range(20)]
    hashes = long_ngrams(" ".join(words))
    assert len(hashes) == 20 - NGRAM + 1
    assert len(set(hashes.tolist())) == len(hashes)
    assert not set(long_ngrams(" ".join(reversed(words))).tolist()) & set(hashes.tolist())
    assert len(long_ngrams(" ".join(words[:12]))) == 0
    assert long_ngrams(" ".join(words).upper()).tolist() == hashes.tolist()


def rare_shares(tape, ratio):
    """Chi-square of the rare-word classes of the held-out part against the whole corpus."""
    rare = strata([tape.text(number) for number in range(len(tape))])["rare"].to_numpy()
    held_out = np.bincount(rare[tape.training(ratio).last :], minlength=3)
    expected = np.bincount(rare, minlength=3) / len(rare) * held_out.sum()
    return chisquare(held_out, expected)


@pytest.fixture
def uneven(tmp_path):
    """A small corpus whose rare-word documents the plain hash puts mostly on one side."""
    rng = random.Random(3)
    common = [f"common{n}" for n in range(30)]
    texts = [
        " ".join(rng.choices(common, k=40) + [f"rare{rng.randrange(10**9)}" for _ in range(k)])
        for k in [1, 8, 20] * 40
    ]
    return write(tmp_path / "corpus", texts)


def test_stratified_shares_are_even_where_those_of_the_plain_hash_are_not(tmp_path, uneven):
    hashed = build_tape(uneven, home=tmp_path / "home")
    stratified = build_tape(
        uneven.model_copy(update={"order": "stratified"}), home=tmp_path / "home"
    )
    assert rare_shares(hashed, 0.8).pvalue < 0.05
    assert rare_shares(stratified, 0.8).pvalue > 0.5
    for ratio in (0.5, 0.75, 0.9):
        assert rare_shares(stratified, ratio).statistic < 2
