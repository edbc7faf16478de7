"""Causal predictors against lm-evaluation-harness, transformers and the scorer of the search."""

import codecs
import math
import re

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.models.huggingface import wrap
from smallm.predictors import Decoding, causal, continuations
from smallm.predictors.causal import Causal
from smallm.predictors.sampling import choose, kept_logits
from smallm.predictors.token_bytes import token_bytes
from smallm.predictors.windows import overlapping_windows, rolling_windows
from smallm.scoring import TOP, score
from smallm.settings import ModelSettings
from smallm.tape import Slice

SHAPES = {
    "mlp": ModelSettings(window=5, embedding=6, hidden=7),
    "transformer": ModelSettings(
        architecture="transformer",
        window=5,
        embedding=16,
        hidden=7,
        depth=2,
        heads=4,
        kv_heads=2,
        activation="geglu",
        bigrams=50,
    ),
}
PART = Slice("selection", 3, 9)
GREEDY = Decoding(max_tokens=12, temperature=0)
BYTE_EXACT = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def gpt2():
    return Causal("tiny-gpt2", *tiny_models.gpt2())


def random_smallm(tokens, kind="mlp"):
    shape = SHAPES[kind]
    core = architecture(kind)(shape, tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(3))
    tiny_models.randomized(core)
    model = wrap(core, shape, tokens.tokenizer)
    return Causal("smallm", model, tokens.tokenizer.huggingface())


@pytest.fixture(params=SHAPES)
def smallm(tokens, request):
    """A random SmaLLM of each kind and each kind of tokens, with the core inside it."""
    return random_smallm(tokens, request.param)


@pytest.fixture(
    params=["gpt2", *(f"{kind}_tokens {shape}" for kind in ("bpe", "word") for shape in SHAPES)]
)
def predictor(request):
    name, *shape = request.param.split()
    made = request.getfixturevalue(name)
    return made if isinstance(made, Causal) else random_smallm(made, *shape)


def harness_nll(predictor, texts):
    """What lm-evaluation-harness gives for the same model object."""
    model = HFLM(
        pretrained=predictor.model, tokenizer=predictor.tokenizer, device="cpu", batch_size=3
    )
    asked = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)]
    return -np.array(model.loglikelihood_rolling(asked, disable_tqdm=True))


def long_and_short_texts():
    return [*tiny_models.TEXTS, " ".join(tiny_models.TEXTS), "a", "x" * 40]


def inputs_of(pair):
    context, targets = make_disjoint_window(pair)
    return context + targets[:-1], targets


def windows_as_pairs(windows):
    return [(list(each.inputs), list(each.gold)) for each in windows]


def test_rolling_windows_have_their_gold_values():
    assert windows_as_pairs(rolling_windows([*range(10)], opening=99, size=4)) == [
        ([99, 0, 1, 2], [0, 1, 2, 3]),
        ([3, 4, 5, 6], [4, 5, 6, 7]),
        ([5, 6, 7, 8], [8, 9]),
    ]
    found = [len(each.gold) for each in rolling_windows([*range(34)], opening=99, size=10)]
    assert found == [10, 10, 10, 4]


@given(st.integers(0, 90), st.integers(1, 20))
def test_rolling_windows_are_those_of_the_harness(length, size):
    ids = [*range(length)]
    expected = [inputs_of(pair) for pair in get_rolling_token_windows(ids, 99, size, 1)]
    assert windows_as_pairs(rolling_windows(ids, opening=99, size=size)) == expected


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9), st.integers(1, 6))
def test_overlapping_windows_predict_each_id_once_after_enough_words(ends, size, sight):
    ids = [*range(len(ends))]
    ends_word = np.array(ends, dtype=bool)
    windows = list(
        overlapping_windows(ids, opening=99, size=size, sight=sight, ends_word=ends_word)
    )
    assert [i for window in windows for i in window.gold] == ids
    text = [99, *ids]
    for window in windows:
        first = text.index(window.gold[0])  # position of the first prediction's own id
        before = window.inputs[: len(window.inputs) - len(window.gold) + 1]
        assert list(before) == text[first - len(before) : first]
        words = sum(i == 99 or ends_word[i] for i in before)
        assert len(before) == first or words >= sight


def test_scores_are_those_of_the_harness(predictor):
    texts = long_and_short_texts()
    (scores,) = predictor.score(texts)
    np.testing.assert_allclose(scores.nll, harness_nll(predictor, texts), rtol=1e-5)
    total, size = harness_nll(predictor, texts).sum(), sum(len(text.encode()) for text in texts)
    figures = scores.metrics()
    assert figures["bits_per_byte"] == pytest.approx(total / size / math.log(2), abs=1e-4)
    assert figures["byte_perplexity"] == pytest.approx(math.exp(total / size), rel=1e-4)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    assert math.log(figures["word_perplexity"]) == pytest.approx(total / words, rel=1e-5)


def test_scores_of_a_smallm_are_those_of_the_search(smallm, tokens, monkeypatch):
    monkeypatch.setattr(causal, "SMALLM_PIECE", 7)
    texts = [tokens.tape.text(number) for number in range(PART.first, PART.last)]
    expected = score(smallm.model.core, tokens, PART, window=5)
    (found,) = smallm.score(texts)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-5)
    np.testing.assert_array_equal(found.bytes, expected.bytes)
    np.testing.assert_array_equal(found.words, expected.words)


def test_small_batches_and_pieces_change_nothing(predictor, monkeypatch):
    texts = long_and_short_texts()
    (whole,) = predictor.score(texts)
    monkeypatch.setattr(causal, "BATCH_TOKENS", 40)
    monkeypatch.setattr(causal, "HEAD_LOGITS", 5 * predictor.model.config.vocab_size)
    monkeypatch.setattr(causal, "BATCH_LOGITS", 3 * predictor.model.config.vocab_size)
    (parts,) = predictor.score(texts)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5)
    np.testing.assert_allclose(parts.confidence, whole.confidence, rtol=1e-4)
    np.testing.assert_array_equal(parts.hits, whole.hits)


def test_every_token_is_predicted_once(predictor):
    texts = long_and_short_texts()
    gold = {number: [] for number in range(len(texts))}
    for batch in predictor.logits(texts):
        assert len(batch.document) == len(batch.logits) == len(batch.gold)
        for document, each in zip(batch.document, batch.gold.tolist(), strict=True):
            gold[int(document)].append(each)
    for number, text in enumerate(texts):
        assert sorted(gold[number]) == sorted(predictor.encode(text))


def test_temperatures_confidence_and_hits_follow_their_definitions(gpt2):
    texts = tiny_models.TEXTS[:2]
    documents, logits, gold = [], [], []
    for batch in gpt2.logits(texts):
        documents.append(batch.document)
        logits.append(batch.logits.double())
        gold.append(batch.gold)
    document, logits, gold = np.concatenate(documents), torch.cat(logits), torch.cat(gold)
    order = np.argsort(document, kind="stable")
    for temperature, scores in zip(
        (1.0, 2.5), gpt2.score(texts, temperatures=(1, 2.5)), strict=True
    ):
        scaled = (logits / temperature).log_softmax(1)
        nll = -scaled.gather(1, gold[:, None])[:, 0].numpy()
        np.testing.assert_allclose(scores.nll, np.bincount(document, weights=nll), rtol=1e-5)
        expected = scaled.exp().amax(1).numpy()[order]
        np.testing.assert_allclose(scores.confidence, expected, rtol=1e-4)
        np.testing.assert_array_equal(scores.correct, (logits.argmax(1) == gold).numpy()[order])
        for column, k in enumerate(TOP):
            near = (logits.topk(k).indices == gold[:, None]).any(1).numpy()
            np.testing.assert_array_equal(
                scores.hits[:, column], np.bincount(document, weights=near)
            )
        assert scores.tokens.tolist() == np.bincount(document).tolist()


def test_a_model_that_prefers_nothing_has_no_hits():
    model, tokenizer = tiny_models.gpt2()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (scores,) = Causal("flat", model, tokenizer).score(tiny_models.TEXTS)
    assert not scores.hits.any()
    assert not scores.correct.any()


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused():
    model, tokenizer = tiny_models.gpt2()
    tokenizer.add_tokens(["extra"])
    rows = model.config.vocab_size
    said = f"odd: its tokenizer has {rows + 1} ids, its model {rows}"
    with pytest.raises(SmallmError, match=f"^{said}$"):
        Causal("odd", model, tokenizer)


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (-math.inf, "nan|-inf")])
def test_a_model_whose_log_likelihoods_are_not_finite_is_named(value, said):
    model, tokenizer = tiny_models.gpt2()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(value)
    damaged = Causal("damaged", model, tokenizer)
    with pytest.raises(SmallmError, match=f"^damaged: .* log-likelihood of ({said}): .*") as caught:
        damaged.score(tiny_models.TEXTS)
    assert "\n" not in str(caught.value)


def test_no_text_and_an_empty_text_have_no_tokens(predictor):
    (none,) = predictor.score([])
    assert len(none.nll) == 0
    (empty,) = predictor.score(["", "a"])
    assert empty.nll[0] == 0
    assert empty.tokens[0] == 0
    assert empty.nll[1] > 0


def test_a_model_that_caps_its_logits_is_scored_with_the_cap():
    tokenizer = tiny_models.gpt2_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        final_logit_softcapping=2.0,
    )
    model = tiny_models.randomized(Gemma2ForCausalLM(config))
    predictor = Causal("capped", model, tokenizer)
    assert max(batch.logits.abs().max() for batch in predictor.logits(tiny_models.TEXTS)) <= 2
    (scores,) = predictor.score(tiny_models.TEXTS)
    np.testing.assert_allclose(scores.nll, harness_nll(predictor, tiny_models.TEXTS), rtol=1e-5)


def test_half_precision_comes_near_single_precision(gpt2):
    model, tokenizer = tiny_models.gpt2()
    half = Causal("half", model.to(torch.bfloat16), tokenizer)
    texts = long_and_short_texts()
    (rough,), (exact,) = half.score(texts), gpt2.score(texts)
    assert rough.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.01)


@pytest.mark.parametrize(
    "tokenizer",
    [
        tiny_models.gpt2_tokenizer(),
        tiny_models.byte_fallback_tokenizer(),
        PreTrainedTokenizerFast(
            tokenizer_object=tiny_models.byte_level_bpe(300, digits=True), eos_token="<|endoftext|>"
        ),
    ],
    ids=["byte-level BPE", "byte fallback", "digits apart"],
)
@given(
    text=st.text() | st.sampled_from(["<|endoftext|>", " <|endoftext|>a", "<s>", "a</s>", "<unk>"])
)
@BYTE_EXACT
def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer, text):
    predictor = Causal("any", _no_model(len(tokenizer)), tokenizer)
    found = b"".join(predictor.token_bytes[i] for i in predictor.encode(text))
    assert found == text.encode()


def _no_model(vocabulary):
    config = GPT2Config(vocab_size=vocabulary, n_layer=1, n_embd=2, n_head=1, n_positions=8)
    return GPT2LMHeadModel(config)


@given(text=st.text() | st.just("The deep model <|endoftext|> <|unknown|>"))
@BYTE_EXACT
def test_the_bytes_of_a_smallm_s_tokens_are_those_of_the_text(smallm, text):
    found = b"".join(smallm.token_bytes[i] for i in smallm.encode(text))
    assert found == text.encode()
    assert len(smallm.token_bytes) == smallm.model.config.vocab_size


def test_special_tokens_stand_for_no_bytes(predictor):
    assert predictor.token_bytes[predictor.opening[0]] == b""
    assert set(predictor.end_ids) == {predictor.tokenizer.eos_token_id}


def test_a_tokenizer_that_hides_its_bytes_is_refused():
    tokenizer = tiny_models.gpt2_tokenizer()
    tokenizer.backend_tokenizer.decoder = None
    with pytest.raises(SmallmError, match="GPT2Tokenizer: neither byte-level BPE nor"):
        token_bytes(tokenizer, 10)


def generated(predictor, prompt, tokens):
    """The ids that transformers' own generate writes, greedy, from the same start."""
    ids = torch.tensor([[*predictor.opening, *predictor.encode(prompt)]])
    written = predictor.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return written[0, ids.shape[1] :].tolist()


def text_of(predictor, ids):
    """The text of ids without the half character that may be at its end."""
    kept = b"".join(predictor.token_bytes[i] for i in ids)
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(kept)


def test_greedy_continuations_are_those_of_transformers(predictor):
    for prompt in ("", "The deep model", "日本 layers of"):
        pieces = list(predictor.stream(prompt, GREEDY))
        expected = text_of(predictor, generated(predictor, prompt, GREEDY.max_tokens))
        assert "".join(pieces) == expected
        assert all(pieces)


def test_a_continuation_ends_at_the_end_of_the_text(gpt2):
    ids = generated(gpt2, "The deep", 12)
    stop = next(i for i in ids[2:] if i not in ids[:2])
    model, tokenizer = tiny_models.gpt2()
    model.generation_config.eos_token_id = [stop, tokenizer.eos_token_id]
    ending = Causal("ending", model, tokenizer)
    assert ending.end_ids == {stop, tokenizer.eos_token_id}
    expected = text_of(ending, ids[: ids.index(stop)])
    assert "".join(ending.stream("The deep", GREEDY)) == expected


def test_characters_are_never_yielded_in_halves(gpt2, monkeypatch):
    text = "né 日本語 🤖 \u200b!"
    script = gpt2.encode(text)
    for length in range(1, len(script) + 1):
        ids = iter(script[:length])
        monkeypatch.setattr(continuations, "choose", lambda *_, ids=ids: next(ids))
        pieces = list(gpt2.stream("", Decoding(max_tokens=length)))
        whole = b"".join(gpt2.token_bytes[i] for i in script[:length]).decode(errors="ignore")
        assert "".join(pieces) == whole
        assert "\ufffd" not in whole


def test_the_same_seed_gives_the_same_text_and_leaves_torch_s_own_chance_alone(predictor):
    before = torch.get_rng_state()
    texts = {
        seed: ["".join(predictor.stream("The", Decoding(seed=seed))) for _ in range(2)]
        for seed in (1, 2)
    }
    assert texts[1][0] == texts[1][1]
    assert texts[1][0] != texts[2][0]
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.integers(2, 40),
    st.floats(0.2, 3),
    st.none() | st.integers(1, 50),
    st.sampled_from([0.05, 0.3, 0.9, 1.0]),
    st.integers(0, 999),
)
def test_the_ids_that_may_be_chosen_are_those_of_transformers(size, temperature, k, p, seed):
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed)).double()
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(k)] if k else []
    warpers += [TopPLogitsWarper(p)] if p < 1 else []
    expected = logits[None].clone()
    for warper in warpers:
        expected = warper(None, expected)
    found = kept_logits(logits, Decoding(temperature=temperature, top_k=k, top_p=p))
    torch.testing.assert_close(found.softmax(0), expected[0].softmax(0))


def test_ids_are_chosen_as_often_as_their_probability_says():
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [choose(logits, Decoding(temperature=2.0), generator) for _ in range(4000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, (logits / 2).softmax(0), atol=0.025)


def test_a_prompt_longer_than_the_context_names_both_lengths(gpt2):
    prompt = "The deep model learns " * 20
    length = len(gpt2.encode(prompt)) + 1
    with pytest.raises(SmallmError, match=f"prompt: is {length} tokens long, tiny-gpt2 .* 32"):
        gpt2.stream(prompt, GREEDY)


def test_a_continuation_ends_where_the_context_does(gpt2, monkeypatch):
    chosen = []
    monkeypatch.setattr(continuations, "choose", lambda *_: chosen.append(70) or 70)
    prompt = gpt2.encode("The deep model")
    assert "".join(gpt2.stream("The deep model", Decoding(max_tokens=500)))
    assert 1 + len(prompt) + len(chosen) == gpt2.context + 1


def test_a_smallm_has_no_context_limit(smallm):
    assert smallm.context is None
    assert isinstance("".join(smallm.stream("The deep model learns. " * 300, GREEDY)), str)
