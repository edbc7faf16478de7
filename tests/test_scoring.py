"""Scores against hand-made numbers, transformers' own forward pass and lm-evaluation-harness."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from smallm.models import architecture
from smallm.models.huggingface import wrap
from smallm.ngrams import KNESER_NEY, UNIFORM, UNIGRAM
from smallm.references import reference_scores
from smallm.scoring import TOP, Scores, predicted_positions, rank, score, summed
from smallm.settings import ModelSettings
from smallm.tape import Slice
from smallm.tokens import END_ID, UNKNOWN_ID

RATIOS = (0.75, 0.8, 0.9)
SHAPE = ModelSettings(window=5, embedding=6, hidden=7)
PART = Slice("selection", 3, 9)


class Table(nn.Module):
    """A model that knows only how often each id occurs."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, windows):
        return self.logits.expand(len(windows), -1)


def random_core(vocabulary):
    core = architecture("mlp")(SHAPE, vocabulary)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in core.parameters():
            weight.normal_(std=0.5, generator=generator)
    return core.eval()


def lossless(tokens, document):
    (ids,) = tokens.tokenizer.encode([tokens.tape.text(document)])
    return ids.tolist()


def log_likelihood(model, pair):
    """What lm-evaluation-harness adds up: the log probabilities of a window's targets."""
    context, targets = pair
    ids = torch.tensor([context + targets])
    with torch.no_grad():
        scores = model(ids[:, :-1]).logits[0].double().log_softmax(-1)[-len(targets) :]
    return scores.gather(1, torch.tensor(targets)[:, None]).sum().item()


def test_the_figures_follow_the_formulas_on_numbers_made_by_hand():
    scores = Scores(
        nll=np.array([8 * math.log(2), 24 * math.log(2)]),
        bytes=np.array([4, 12]),
        words=np.array([1, 3]),
        tokens=np.array([2, 6]),
        hits=np.array([[1, 1, 2], [1, 3, 6]]),
    )
    assert scores.metrics() == pytest.approx(
        {
            "bits_per_byte": 2.0,
            "nll": 32 * math.log(2),
            "cross_entropy": 4 * math.log(2),
            "token_perplexity": 2.0**4,
            "word_perplexity": 2.0**8,
            "byte_perplexity": 2.0**2,
            "top_1": 2 / 8,
            "top_3": 4 / 8,
            "top_10": 1.0,
        }
    )


def test_the_uniform_model_over_bytes_has_eight_bits_and_its_perplexities(tokens):
    training = tokens.tape.training(0.9)
    figures = reference_scores(tokens, training, PART)[UNIFORM].metrics()
    words = sum(len(re.split(r"\s+", tokens.tape.text(n))) for n in range(3, 9))
    size = sum(len(tokens.tape.text(n).encode()) for n in range(3, 9))
    assert figures["bits_per_byte"] == pytest.approx(8.0, abs=1e-12)
    assert figures["byte_perplexity"] == pytest.approx(256)
    assert math.log(figures["word_perplexity"]) == pytest.approx(size * math.log(256) / words)


def test_reference_models_stand_in_their_known_order(tokens):
    _, final = tokens.tape.heldout(RATIOS)
    scores = reference_scores(tokens, tokens.tape.training(0.9), final)
    bits = {name: each.bits_per_byte for name, each in scores.items()}
    assert bits[KNESER_NEY] < bits[UNIGRAM] < bits[UNIFORM]


def test_rolling_windows_have_their_gold_values():
    assert list(get_rolling_token_windows([*range(10)], 99, 4, 1)) == [
        ([99, 0, 1, 2], [0, 1, 2, 3]),
        ([3, 4, 5, 6], [4, 5, 6, 7]),
        ([5, 6, 7, 8], [8, 9]),
    ]
    lengths = [len(targets) for _, targets in get_rolling_token_windows([*range(34)], 99, 10, 1)]
    assert lengths == [10, 10, 10, 4]


def test_bits_per_byte_are_those_of_the_harness_on_the_saved_model(tokens):
    core = random_core(tokens.vocabulary)
    model = wrap(core, SHAPE, tokens.tokenizer)
    scores = score(core, tokens, PART, window=SHAPE.window)
    for row, document in enumerate(range(PART.first, PART.last)):
        windows = get_rolling_token_windows(lossless(tokens, document), END_ID, 2048, 1)
        expected = sum(log_likelihood(model, make_disjoint_window(pair)) for pair in windows)
        assert scores.nll[row] == pytest.approx(-expected, rel=1e-5)


def test_each_document_has_its_own_bytes_words_and_tokens(tokens):
    scores = score(random_core(tokens.vocabulary), tokens, PART, window=SHAPE.window)
    for row, document in enumerate(range(PART.first, PART.last)):
        text = tokens.tape.text(document)
        assert scores.bytes[row] == len(text.encode())
        assert scores.words[row] == len(re.split(r"\s+", text))
        assert scores.tokens[row] == tokens.ends[document + 1] - tokens.ends[document] - 1
    assert not (tokens.tokens[predicted_positions(tokens, PART)] == END_ID).any()


def test_a_document_s_score_does_not_depend_on_its_neighbours(bpe_tokens):
    core = random_core(bpe_tokens.vocabulary)
    together = score(core, bpe_tokens, PART, window=SHAPE.window)
    for row, document in enumerate(range(PART.first, PART.last)):
        alone = score(core, bpe_tokens, Slice("one", document, document + 1), window=SHAPE.window)
        assert alone.nll[0] == pytest.approx(together.nll[row], rel=1e-6)


def test_chunking_a_unigram_model_s_text_in_another_way_changes_nothing(tokens, monkeypatch):
    table = Table(torch.linspace(-1, 1, tokens.vocabulary))
    whole = score(table, tokens, PART, window=1)
    monkeypatch.setattr("smallm.scoring.BATCH", 7)
    np.testing.assert_allclose(score(table, tokens, PART, window=3).nll, whole.nll, rtol=1e-6)
    gold = tokens.tokens[predicted_positions(tokens, PART)].astype(int)
    expected = -table.logits.detach().double().log_softmax(0).numpy()[gold].sum()
    assert whole.nll.sum() == pytest.approx(
        expected + tokens.spelling_nll[PART.first : PART.last].sum(), rel=1e-6
    )


def test_hits_are_the_gold_tokens_among_the_most_probable(bpe_tokens):
    core = random_core(bpe_tokens.vocabulary)
    scores = score(core, bpe_tokens, PART, window=SHAPE.window, top=True)
    model = wrap(core, SHAPE, bpe_tokens.tokenizer)
    for row, document in enumerate(range(PART.first, PART.last)):
        ids = torch.tensor([[END_ID, *lossless(bpe_tokens, document)]])
        with torch.no_grad():
            best = model(ids[:, :-1]).logits[0].topk(max(TOP)).indices
        found = best == ids[0, 1:, None]
        assert scores.hits[row].tolist() == [int(found[:, :k].sum()) for k in TOP]


def test_a_model_that_prefers_nothing_has_no_hits(bpe_tokens):
    scores = score(Table(torch.zeros(bpe_tokens.vocabulary)), bpe_tokens, PART, window=1, top=True)
    assert not scores.hits.any()
    assert scores.metrics()["cross_entropy"] == pytest.approx(math.log(bpe_tokens.vocabulary))


def test_a_tie_with_the_gold_token_is_a_miss():
    logits = torch.tensor([[1.0, 3, 3, 3], [1, 3, 3, 3], [3, 1, 1, 3], [0, 0, 0, 1], [0, 9, 0, 1]])
    gold = torch.tensor([1, 3, 3, 0, 1])
    assert rank(logits, gold).tolist() == [2, 2, 1, 3, 0]


@given(
    table=st.integers(1, 12).flatmap(
        lambda ids: st.lists(
            st.lists(st.integers(-3, 3), min_size=ids, max_size=ids), min_size=1, max_size=5
        )
    ),
    data=st.data(),
)
def test_the_rank_counts_the_other_tokens_that_are_not_less_probable(table, data):
    gold = [data.draw(st.integers(0, len(table[0]) - 1)) for _ in table]
    expected = [
        sum(value >= row[at] for place, value in enumerate(row) if place != at)
        for row, at in zip(table, gold, strict=True)
    ]
    assert rank(torch.tensor(table).float(), torch.tensor(gold)).tolist() == expected


def test_naming_the_unknown_word_is_no_hit(word_tokens):
    preferred = torch.zeros(word_tokens.vocabulary)
    preferred[UNKNOWN_ID] = 9
    part = Slice("all", 0, len(word_tokens.tape))
    assert (word_tokens.tokens[predicted_positions(word_tokens, part)] == UNKNOWN_ID).any()
    scores = score(Table(preferred), word_tokens, part, window=1, top=True)
    assert not scores.hits.any()


def test_the_beginning_of_a_slice_is_just_large_enough(bpe_tokens):
    sizes = bpe_tokens.bytes[PART.first : PART.last]
    assert bpe_tokens.tape.beginning(PART, None) == PART
    assert bpe_tokens.tape.beginning(PART, int(sizes[:2].sum())) == Slice("selection", 3, 5)
    assert bpe_tokens.tape.beginning(PART, int(sizes[:2].sum()) + 1) == Slice("selection", 3, 6)
    assert bpe_tokens.tape.beginning(PART, 10**9) == PART


def test_sums_are_kept_apart_by_document(bpe_tokens):
    count = len(predicted_positions(bpe_tokens, PART))
    scores = summed(bpe_tokens, PART, np.ones(count))
    np.testing.assert_array_equal(scores.nll, scores.tokens)


def test_scoring_leaves_the_model_in_training_as_it_was(bpe_tokens):
    core = random_core(bpe_tokens.vocabulary).train()
    score(core, bpe_tokens, PART, window=SHAPE.window)
    assert core.training
    assert all(weight.grad is None for weight in core.parameters())
