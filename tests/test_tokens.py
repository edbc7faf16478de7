"""Both tokenizers are lossless and give every text a proper probability."""

import math
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm.ngrams import KneserNey
from smallm.settings import TokenizerSettings
from smallm.tokens import (
    SPELLING_BOUNDARY,
    UNKNOWN_ID,
    BytePairTokenizer,
    WordTokenizer,
    load_tokenizer,
    spelled,
    train_tokenizer,
)

TEXTS = ["The model learns. The model reads a tensor, twice.", "A tensor, a model; a seed!"]
TRICKY = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["<|endoftext|>", "<|unknown|> a", "<byte 61>", " \r\n\t  x", "🎉é\u0301日本"]),
)


@pytest.fixture(scope="module", params=["bpe", "words"])
def tokenizer(request):
    return train_tokenizer(TEXTS, TokenizerSettings(tokenizer=request.param, vocabulary=300))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(text=TRICKY)
def test_decoding_what_was_encoded_gives_the_text_back(tokenizer, text):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert (tokenizer.predicted(ids) < tokenizer.vocabulary).all()
    assert 0 not in ids  # the id that opens documents is never written by a text


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(text=TRICKY)
def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, text, tmp_path):
    if not any(tmp_path.iterdir()):
        tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(again.encode([text])[0], tokenizer.encode([text])[0])


@pytest.mark.parametrize(
    "text",
    [
        "The model reads xyzzy!",
        " two  spaces\n\nand 日本 lines ",
        "a <|endoftext|> b<|unknown|> <byte 61>",
    ],
)
def test_transformers_reads_the_saved_tokenizer(tokenizer, text, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer.encode([text])[0].tolist()
    assert loaded.decode(ids) == text


def test_an_unknown_word_is_one_predicted_id_and_its_bytes():
    tokenizer = train_tokenizer(TEXTS, TokenizerSettings(tokenizer="words", vocabulary=300))
    (ids,) = tokenizer.encode([" model zebra"])
    assert len(ids) == 1 + len(b" zebra")
    assert tokenizer.predicted(ids).tolist()[1:] == [UNKNOWN_ID]
    nll = tokenizer.spelling_nll(ids)
    assert nll[0] == 0
    assert (nll[1:] > 0).all()
    whole = tokenizer.spelling.log_probabilities(np.array([SPELLING_BOUNDARY, *spelled(" zebra")]))
    assert nll.sum() == pytest.approx(-whole.sum())


def test_the_spelling_of_a_uniform_byte_model_costs_eight_bits_a_byte():
    untrained = KneserNey.fit(
        np.array([SPELLING_BOUNDARY]), vocabulary=513, boundary=SPELLING_BOUNDARY
    )
    uniform = WordTokenizer(["<|endoftext|>", "<|unknown|>"], untrained)
    (ids,) = uniform.encode(["anything at all"])
    bits = uniform.spelling_nll(ids) / math.log(2)
    assert bits.sum() / len(ids) == pytest.approx(9.0, abs=1e-5)  # 8 for the byte, 1 for the end


def test_training_is_the_same_every_time(tokenizer):
    kind = "words" if isinstance(tokenizer, WordTokenizer) else "bpe"
    again = train_tokenizer(TEXTS, TokenizerSettings(tokenizer=kind, vocabulary=300))
    assert repr(again) == repr(tokenizer)


UNICODE = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from(" \t\n\r\u2003\u00a0'stmdvrel1²ⅣŒΩ日e\u0301"),
    max_size=80,
)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(text=UNICODE)
def test_both_implementations_of_the_merges_give_the_same_ids(tape, text):
    trained = quick_tokenizer(tape)
    assert trained._quick is not None
    (ids,) = trained.encode([text])
    assert ids.tolist() == trained.backend.encode(text, add_special_tokens=False).ids


@cache
def quick_tokenizer(tape):
    texts = list(tape.texts(tape.training(0.75)))
    return train_tokenizer([*texts, *TEXTS], TokenizerSettings(vocabulary=500))


def test_on_a_whole_corpus_both_implementations_agree(tape):
    trained = quick_tokenizer(tape)
    texts = [tape.text(number) for number in range(len(tape))]
    expected = [each.ids for each in trained.backend.encode_batch(texts)]
    assert [ids.tolist() for ids in trained.encode(texts)] == expected


def test_merges_that_give_one_token_twice_are_left_to_the_library_that_knows_their_order():
    signs = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<|endoftext|>", *signs, "ab", "bc", "abc"])}
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    given_twice = BytePairTokenizer(backend)
    assert given_twice._quick is None
    assert given_twice.encode(["abc"])[0].tolist() == backend.encode("abc").ids
