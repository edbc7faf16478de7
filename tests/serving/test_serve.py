"""The server as its users meet it: real Ray Serve, real HTTP, OpenAI's own client."""

import math

import openai
import pytest
import torch

from smallm.attention_maps import attention_maps
from smallm.embeddings import embedded_words, neighbors
from smallm.predictors import Decoding
from smallm.predictors.causal import text_decoder
from smallm.predictors.loading import load_predictor
from smallm.serving.pieces import StopText

pytestmark = pytest.mark.ray


def test_the_front_is_up_and_lists_models_also_the_missing_one(served):
    assert served.ask("/healthz") == (200, {"status": "ok"})
    assert served.ask("/readyz") == (200, {"status": "ok"})
    found = {model.id: model for model in served.client.models.list()}
    assert found[served.gpt2].available
    assert found[served.gpt2].parameters > 0
    assert found[served.albert].kind == "masked"
    assert not found[served.empty].available
    assert "is no model folder" in found[served.empty].reason


def test_completions_are_those_of_the_model(served):
    made = served.client.completions.create(
        model=served.gpt2, prompt="The deep model", max_tokens=8, temperature=0
    )
    model = load_predictor(served.gpt2, home=served.folder, threads=1)
    expected = "".join(model.stream("The deep model", Decoding(max_tokens=8, temperature=0)))
    assert made.choices[0].text == expected
    assert made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 8
    assert made.usage.prompt_tokens == len(model.encode("The deep model"))


def test_a_stream_gives_the_same_text_in_pieces(served):
    options = {"model": served.gpt2, "prompt": "Neural", "max_tokens": 12, "seed": 5}
    whole = served.client.completions.create(**options)
    pieces = list(served.client.completions.create(**options, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert len(pieces) > 3
    assert pieces[-1].choices[0].finish_reason == "length"


def test_a_stream_tells_its_tokens_when_asked_to(served):
    options = {"model": served.gpt2, "prompt": "Neural", "max_tokens": 7, "temperature": 0}
    whole = served.client.completions.create(**options).usage
    usage = {"include_usage": True}
    *pieces, last = served.client.completions.create(**options, stream=True, stream_options=usage)
    assert last.usage == whole
    assert last.choices == []
    assert all(piece.usage is None for piece in pieces)


def test_a_tiny_top_p_leaves_the_most_probable_token(served):
    options = {"model": served.gpt2, "prompt": "Neural", "max_tokens": 9}
    greedy = served.client.completions.create(**options, temperature=0).choices[0].text
    made = served.client.completions.create(**options, top_p=1e-9, seed=3)
    assert made.choices[0].text == greedy
    assert served.client.completions.create(**options, seed=3).choices[0].text != greedy


def test_what_changes_nothing_may_be_said(served):
    """As clients of OpenAI's send it that fill in every field."""
    options = {"model": served.gpt2, "prompt": "Neural", "max_tokens": 5, "seed": 1}
    plain = served.client.completions.create(**options)
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1, "logit_bias": {}}
    nulls = dict.fromkeys(("temperature", "top_p", "n", "echo", "stream", "suffix", "stop"))
    made = served.client.completions.create(**options, **neutral, **nulls)
    assert made.choices[0].text == plain.choices[0].text
    body = {key: value for key, value in options.items() if key != "max_tokens"}
    status, answer = served.ask("/v1/completions", {**body, "max_tokens": None})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 16)


def bytes_of(name):
    """The bytes of a token, which for a part of a character are written as OpenAI writes them."""
    if not name.startswith("bytes:"):
        return name.encode()
    return bytes.fromhex(name.removeprefix("bytes:").replace("\\x", ""))


def offsets_of(names):
    decoder, offsets, place = text_decoder(), [], 0
    for name in names:
        offsets.append(place)
        place += len(decoder.decode(bytes_of(name)))
    return offsets


def test_several_prompts_and_continuations_with_log_probabilities(served):
    made = served.client.completions.create(
        model=served.gpt2, prompt=["a", "b"], n=2, max_tokens=3, seed=1, logprobs=2, echo=True
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in made.choices}) > 2
    for choice in made.choices:
        told = choice.logprobs
        assert choice.text.startswith("a" if choice.index < 2 else "b")
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 4
        assert b"".join(map(bytes_of, told.tokens)).decode(errors="replace") == choice.text
        assert told.text_offset == offsets_of(told.tokens)
        places = zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
        for token, value, top in places:
            assert value <= max(top.values()) + 1e-5
            assert 2 <= len(top) <= 3
            assert top[token] >= value - 1e-5  # as OpenAI has it, also if others are likelier
    log_likelihood = made.choices[0].logprobs.token_logprobs[0]
    model = load_predictor(served.gpt2, home=served.folder, threads=1)
    (scores,) = model.score(["a"])
    assert log_likelihood == pytest.approx(-float(scores.nll.sum()), rel=0.02)


def test_a_stop_text_ends_a_continuation_before_it(served):
    options = {"model": served.gpt2, "prompt": "She said", "max_tokens": 20, "temperature": 0}
    text = served.client.completions.create(**options).choices[0].text
    stop = text[5:8]
    made = served.client.completions.create(**options, stop=[stop, "never there"])
    assert made.choices[0].text == text[: text.index(stop)]
    assert made.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("text", ["one STOP two", "ST one STO STOP", "no end STO", ""])
def test_stop_texts_are_found_however_the_text_is_cut(text):
    for size in (1, 2, 3, 7):
        stop = StopText(["STOP"])
        found = ""
        for start in range(0, len(text), size):
            found += stop.add(text[start : start + size])
            if stop.met:
                break
        found += "" if stop.met else stop.rest()
        assert found == text.partition("STOP")[0]


def test_next_words_of_all_models_with_bounds(served):
    status, answer = served.ask("/v1/next-words", {"prompt": "Neural networks", "k": 3})
    assert status == 200
    assert set(answer["models"]) == {served.gpt2, served.albert}
    for found in answer["models"].values():
        assert len(found["words"]) == 3
        for word in found["words"]:
            assert 0 < word["probability"] <= word["upper"] + 1e-9
        assert found["milliseconds"] > 0


def test_scores_are_bits_per_byte_and_masked_models_have_none(served):
    text = "It's stable; café."
    _, answer = served.ask("/v1/score", {"text": text})
    model = load_predictor(served.gpt2, home=served.folder, threads=1)
    nats = float(model.score([text])[0].nll.sum())
    found = answer["models"][served.gpt2]
    assert found["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / len(text.encode()), rel=1e-3
    )
    assert answer["models"][served.albert]["error"]["code"] == 400


def test_compare_shows_failures_beside_results(served):
    names = [served.gpt2, served.albert, served.empty]
    status, answer = served.ask(
        "/v1/compare", {"prompt": "The model", "models": names, "max_tokens": 4}
    )
    assert status == 200
    gpt2_row, albert_row, empty_row = (answer["models"][name] for name in names)
    assert gpt2_row["continuation"]["text"]
    assert len(gpt2_row["next_words"]["words"]) == 5
    assert "cannot continue" in albert_row["continuation"]["error"]["message"]
    assert albert_row["next_words"]["words"]
    assert empty_row["next_words"]["error"]["code"] == 503


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "nobody"}, 404, "served are"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**6}, 400, "allows at most 1024"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": "fitted"}, 400, "no fitted temperature"),
        ({"n": 1000}, 400, "allows at most 16"),
        ({"best_of": 2}, 400, "best_of"),
        ({"prompt": "word " * 200}, 400, "tokens long"),
        ({"stop": ""}, 400, "stop"),
    ],
)
def test_wrong_fields_are_named(served, change, status, says):
    body = {"model": served.gpt2, "prompt": "a", "max_tokens": 2} | change
    got, answer = served.ask("/v1/completions", body)
    assert got == status
    assert says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_errors_without_a_field_have_the_same_shape(served):
    assert served.ask("/v1/completions", b"{not json")[0] == 400
    assert served.ask("/nowhere")[0] == 404
    status, answer = served.ask("/v1/completions", {"model": served.albert, "prompt": "a"})
    assert status == 400
    assert "cannot continue a text" in answer["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="nobody"):
        served.client.completions.create(model="nobody", prompt="a")
    status, answer = served.ask("/v1/next-words", {"prompt": "ends in space "})
    assert "ends in white space" in next(iter(answer["models"].values()))["error"]["message"]


def test_attention_is_that_of_the_model_layer_by_layer(served):
    model = load_predictor(served.gpt2, home=served.folder, threads=1)
    maps = attention_maps(model, "The deep model")
    for layer in (1, 2, None):
        body = {"model": served.gpt2, "prompt": "The deep model"}
        status, answer = served.ask("/v1/attention", body | ({"layer": layer} if layer else {}))
        assert status == 200
        assert (answer["layers"], answer["layer"]) == (2, layer or 2)
        assert answer["tokens"] == list(maps.tokens)
        expected = maps.weights[(layer or 2) - 1]
        torch.testing.assert_close(torch.tensor(answer["heads"]), expected, rtol=0, atol=0.02)
    assert served.ask("/v1/attention", {"model": served.albert, "prompt": "a model"})[0] == 200


def test_neighbors_and_the_map_of_words(served):
    status, answer = served.ask("/v1/neighbors", {"model": served.gpt2, "word": "model", "k": 4})
    assert status == 200
    words = embedded_words(load_predictor(served.gpt2, home=served.folder, threads=1))
    expected = neighbors(words, "model", count=4)
    assert [each["word"] for each in answer["neighbors"]] == [word for word, _ in expected]
    status, answer = served.ask("/v1/word-map", {"model": served.gpt2})
    assert status == 200
    assert answer["words"] == list(words.names)
    assert len(answer["places"]) == len(words.names)
    assert set(answer["trustworthiness"]) == {"t-SNE", "PCA", "shuffled"}
    told = {model.id: model for model in served.client.models.list()}
    assert told[served.gpt2].word_map
    assert not told[served.albert].word_map


def test_learning_curves_of_the_search(served):
    status, answer = served.ask("/v1/learning-curves", {"model": served.gpt2})
    assert status == 200
    assert answer["trials"] == 3
    gelu, relu = answer["groups"]
    assert [each["activation"] for each in (gelu, relu)] == ["gelu", "relu"]
    assert [each["trial"] for each in relu["curves"]] == ["trial 0", "trial 2"]  # the best first
    (curve,) = gelu["curves"]
    assert curve["champion"]
    assert curve["bits_per_byte"] == [2.4, 2.0]
    assert relu["curves"][0]["dead_units"] == [0.0, 0.125]
    told = {model.id: model for model in served.client.models.list()}
    assert told[served.gpt2].learning_curves
    assert not told[served.albert].learning_curves


def test_what_a_model_lacks_inside_is_said_in_one_line(served):
    status, answer = served.ask("/v1/word-map", {"model": served.albert})
    assert status == 404
    assert "has no map of its words" in answer["error"]["message"]
    status, answer = served.ask("/v1/learning-curves", {"model": served.albert})
    assert status == 404
    assert "holds no learning curves" in answer["error"]["message"]
    status, answer = served.ask("/v1/neighbors", {"model": served.gpt2, "word": "qqq"})
    assert (status, answer["error"]["param"]) == (400, "word")
    assert "no word that the model knows" in answer["error"]["message"]
    status, answer = served.ask("/v1/attention", {"model": served.gpt2, "prompt": "a", "layer": 9})
    assert (status, answer["error"]["param"]) == (400, "layer")
    assert served.ask("/v1/attention", {"model": "nobody", "prompt": "a"})[0] == 404
    assert served.ask("/v1/attention", {"model": served.empty, "prompt": "a"})[0] == 503
