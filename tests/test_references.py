"""Reference models: what they count, however much there is; the oracle is the whole at once."""

import numpy as np
import pytest

from smallm import references
from smallm.ngrams import KNESER_NEY, UNIFORM, UNIGRAM, KneserNey
from smallm.references import counted, counted_note, reference_scores
from smallm.scoring import predicted_positions, summed
from smallm.tape import Slice
from smallm.tokens import END_ID

RATIOS = (0.75, 0.8, 0.9)


@pytest.fixture
def final(tape):
    return tape.heldout(RATIOS)[1]


@pytest.fixture
def training(tape):
    return tape.training(0.9)


def at_once(tokens, training, part, order):
    """Fitted on all of a slice, and scored in one piece."""
    first, last = tokens.span(training)
    model = KneserNey.fit(
        tokens.tokens[first:last], vocabulary=tokens.vocabulary, boundary=END_ID, order=order
    )
    start, end = tokens.span(part)
    found = -model.log_probabilities(tokens.tokens[start:end])
    return summed(tokens, part, found[predicted_positions(tokens, part) - start])


@pytest.mark.parametrize("together", [references.SCORED_AT_ONCE, 50])
def test_below_the_cap_all_of_the_training_slice_is_counted(
    tokens, training, final, monkeypatch, together
):
    monkeypatch.setattr(references, "SCORED_AT_ONCE", together)
    scores = reference_scores(tokens, training, final)
    assert counted(tokens, training) == training
    assert counted_note(tokens, training) == ""
    for name, order in ((UNIGRAM, 1), (KNESER_NEY, 5)):
        np.testing.assert_array_equal(scores[name].nll, at_once(tokens, training, final, order).nll)


def test_beyond_the_cap_only_the_first_documents_are_counted(tokens, training, final):
    most = tokens.span(training)[1] // 3
    read = counted(tokens, training, most)
    first, last = tokens.span(read)
    assert most - np.diff(tokens.ends).max() < last - first <= most
    scores = reference_scores(tokens, training, final, most_tokens=most)
    whole = reference_scores(tokens, training, final)
    for name, order in ((UNIGRAM, 1), (KNESER_NEY, 5)):
        np.testing.assert_array_equal(scores[name].nll, at_once(tokens, read, final, order).nll)
    assert scores[KNESER_NEY].bits_per_byte > whole[KNESER_NEY].bits_per_byte
    assert scores[UNIFORM].bits_per_byte == whole[UNIFORM].bits_per_byte
    sizes = [tokens.tape.bytes(each) / 1e6 for each in (read, training)]
    assert counted_note(tokens, training, most) == (
        f"counted on the first {sizes[0]:.1f} of {sizes[1]:.1f} MB of the training slice"
    )


def test_a_document_beyond_the_cap_is_counted_whole(tokens):
    assert counted(tokens, Slice("training", 3, 9), 1) == Slice("training", 3, 4)
