"""Generation quality against sacrebleu, rouge-score and figures worked out by hand."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from smallm.errors import SmallmError
from smallm.quality import (
    HeldOutPrompt,
    ceiling,
    diversity,
    first_words,
    prompts_and_references,
    quality,
)

REFERENCES = [
    "the small network learns the gradient of every layer in a few steps",
    "a sparse model predicts the next token, and the batch is shuffled.",
    "stable training needs a careful seed and a shared corpus of text",
    "every matrix is stored once and read many times by the kernel",
]
CONTINUATIONS = [
    "the small network learns the gradient of the loss in many steps",
    "a sparse model stores the next token, and the batch is small.",
    "training needs a careful seed",
    "nothing here was ever seen",
]
PROMPT = {"count": 5, "prompt_words": 2, "continuation_words": 3}


def test_bleu_and_its_signature_are_those_of_sacrebleu():
    found = quality(CONTINUATIONS, REFERENCES)
    expected = sacrebleu.corpus_bleu(CONTINUATIONS, [REFERENCES])
    assert found.bleu.value == expected.score
    assert found.bleu_signature == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )


def test_rouge_is_the_mean_f_measure_of_rouge_score():
    found = quality(CONTINUATIONS, REFERENCES)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(r, c) for r, c in zip(REFERENCES, CONTINUATIONS, strict=True)]
    means = [np.mean([each[name].fmeasure for each in scores]) for name in scorer.rouge_types]
    assert [found.rouge_1, found.rouge_2, found.rouge_l.value] == pytest.approx(means)


def test_bleu_of_every_resample_is_sacrebleus_of_the_resampled_texts():
    draws, seed = 40, 3
    found = quality(CONTINUATIONS, REFERENCES, draws=draws, seed=seed)
    counts = np.random.default_rng(seed).multinomial(4, [0.25] * 4, size=draws)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    bleu, rouge = [], []
    for drawn in counts:
        texts, references = np.repeat([CONTINUATIONS, REFERENCES], drawn, axis=1).tolist()
        bleu.append(sacrebleu.corpus_bleu(texts, [references]).score)
        pairs = zip(references, texts, strict=True)
        rouge.append(np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs]))
    ends = (0.025, 0.975)
    assert [found.bleu.low, found.bleu.high] == pytest.approx(np.quantile(bleu, ends))
    assert [found.rouge_l.low, found.rouge_l.high] == pytest.approx(np.quantile(rouge, ends))


def test_texts_equal_to_their_references_reach_the_top_without_spread():
    found = quality(REFERENCES, REFERENCES)
    assert [found.bleu.low, found.bleu.value, found.bleu.high] == pytest.approx([100] * 3)
    assert [found.rouge_1, found.rouge_2, found.rouge_l.low] == pytest.approx([1] * 3)


def test_empty_continuations_score_nothing():
    found = quality(["", " "], REFERENCES[:2])
    assert set(found.metrics().values()) == {0.0}


def test_distinct_n_and_repetition_by_hand():
    # "a b a b a b": 1-grams a b, 2-grams ab ba, 3-grams aba bab, 4-grams abab baba abab.
    # "a b c": 1-grams a b c, 2-grams ab bc, 3-gram abc.
    found = diversity(["a b a  b\na b", "a b c"])
    assert found.distinct_1 == pytest.approx(3 / 9)
    assert found.distinct_2 == pytest.approx(3 / 7)
    assert found.distinct_3 == pytest.approx(3 / 5)
    assert found.repetition == pytest.approx(1 / 3)
    assert found.words == 4.5


def test_repetition_is_counted_inside_a_text_not_between_texts():
    assert diversity(["a b c d e", "a b c d e"]).repetition == 0
    assert diversity(["a b c d e a b c d e"]).repetition == pytest.approx(2 / 7)


def test_the_three_parts_follow_each_other_with_their_white_space():
    texts = [
        "  one two\n\nthree  four five six seven\teight nine\n",
        "too short a text of seven words",
    ]
    assert prompts_and_references(texts, **PROMPT) == [
        HeldOutPrompt(0, "one two", "three  four five", "six seven\teight")
    ]


def test_prompts_are_the_first_documents_that_are_long_enough():
    long = " ".join(["word"] * 8)
    texts = [long, "short", long + " more", "", long, long]
    found = prompts_and_references(texts, **PROMPT | {"count": 3})
    assert [each.document for each in found] == [0, 2, 4]
    assert len(prompts_and_references(texts, **PROMPT)) == 4


@given(text=st.text(alphabet="ab \n\t\u00a0\u2003é", max_size=60))
def test_parts_hold_the_asked_number_of_words_and_are_pieces_of_the_text(text):
    words = [word for word in text.replace("\n", " ").replace("\t", " ").split(" ") if word]
    if len(words) < 8:
        with pytest.raises(SmallmError, match="8 words"):
            prompts_and_references([text], **PROMPT)
        return
    (found,) = prompts_and_references([text], **PROMPT)
    parts = (found.prompt, found.reference, found.ceiling)
    borders = (0, 2, 5, 8)
    for part, first, last in zip(parts, borders[:3], borders[1:], strict=True):
        assert first_words(part, 99) == part
        assert first_words(text, last).endswith(part)
        assert part in text
        assert part == first_words(part, last - first) != first_words(part, last - first - 1)


def test_a_continuation_is_cut_in_words_and_kept_where_it_is_shorter():
    assert first_words(" of\nthe  layer, and more", 3) == "of\nthe  layer,"
    assert first_words(" of the ", 3) == "of the"
    assert first_words(" \n", 3) == ""


def test_the_ceiling_scores_what_follows_with_the_references_own_diversity():
    text = "the model reads the text and the model reads it again and again"
    prompts = prompts_and_references([text], count=1, prompt_words=1, continuation_words=6)
    found = ceiling(prompts)
    reference, following = prompts[0].reference, prompts[0].ceiling
    assert (reference, following) == (
        "model reads the text and the",
        "model reads it again and again",
    )
    assert found.bleu.value == sacrebleu.corpus_bleu([following], [[reference]]).score
    assert found.diversity == diversity([reference])


def test_bad_input_is_said():
    with pytest.raises(SmallmError, match="continuation_words"):
        prompts_and_references(["text"], **PROMPT | {"continuation_words": 0})
    with pytest.raises(SmallmError, match="none of 1 held-out documents has the 8 words"):
        prompts_and_references(["text"], **PROMPT)
    with pytest.raises(ValueError, match="2 continuations for 1"):
        quality(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        quality([], [])
