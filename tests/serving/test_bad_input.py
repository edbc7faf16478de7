"""Whatever is wrong with a request is answered by a 4xx in OpenAI's shape that names the field."""

import http.client
import json
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from smallm.serving.protocol import (
    AttentionRequest,
    CompareRequest,
    CompletionRequest,
    LearningCurvesRequest,
    NeighborsRequest,
    NextWordsRequest,
    ScoreRequest,
    WordMapRequest,
)

pytestmark = pytest.mark.ray

MISSING = object()
HUGE = 10**4200
NAN, INFINITY = float("nan"), float("inf")
HALF = "a \ud800 b"  # json.dumps writes the escape, as any client can

# Wrong for every field of the kind.
TEXT = (7, 1.5, True, {"a": "b"}, HALF)
COUNT = ("3", 1.5, True, None, [1], {}, 0, -1, 10**30, HUGE, NAN, INFINITY)
NUMBER = ("hot", True, None, [1.0], {}, -1, HUGE, NAN, INFINITY, -INFINITY)
SWITCH = ("true", 1, None, [], {})
NAMES = ("gpt2", 7, True, {}, [], [7], [None], [HALF], [["a"]])
SEED = ("3", 1.5, True, [1], -1, 2**63, HUGE, NAN)


def stated(values):
    """Those of some wrong values that say something: null is as good as nothing to OpenAI."""
    return [value for value in values if value is not None]


NEXT_WORDS = {
    "prompt": (*TEXT, None, ["a"], MISSING, "a" * 100_001),
    "k": (*COUNT, 101),
    "models": NAMES,
}
FIELDS = {
    "/v1/completions": (
        CompletionRequest,
        {
            "model": (*TEXT, None, ["a"], MISSING),
            "prompt": (*TEXT, None, MISSING, [], [7], [None], ["a", HALF], [["a"]], "a" * 100_001),
            "max_tokens": (*stated(COUNT), 1025),
            "temperature": (*stated(NUMBER), "Fitted", "", 101),
            "top_p": (*stated(NUMBER), 0, 1.01),
            "n": (*stated(COUNT), 17),
            "stop": (*TEXT, "", [""], ["a", ""], [7], [None], ["a"] * 5),
            "seed": SEED,
            "logprobs": ("3", 1.5, True, [1], -1, 6, HUGE, NAN),
            "echo": stated(SWITCH),
            "stream": stated(SWITCH),
            "stream_options": (7, "a", True, [], {"include_usage": 1}, {"other": True}),
            "user": (*TEXT, ["a"]),
            "frequency_penalty": (*stated(NUMBER), 0.5),
            "presence_penalty": (*stated(NUMBER), 0.5),
            "logit_bias": (7, "a", [], {"50256": -100}),
            "best_of": (*stated(COUNT), 2),
            "suffix": (*TEXT, "", "the end"),
        },
    ),
    "/v1/next-words": (NextWordsRequest, NEXT_WORDS),
    "/v1/compare": (
        CompareRequest,
        NEXT_WORDS
        | {"max_tokens": (*COUNT, 1025), "temperature": (*NUMBER, "Fitted"), "seed": (*SEED, None)},
    ),
    "/v1/score": (
        ScoreRequest,
        {"text": (*TEXT, None, ["a"], MISSING, "", "a" * 100_001), "models": NAMES},
    ),
    "/v1/attention": (
        AttentionRequest,
        {
            "model": (*TEXT, None, ["a"], MISSING),
            "prompt": (*TEXT, None, ["a"], MISSING, "", " ", "a " * 100, "a" * 100_001),
            "layer": (*stated(COUNT), 3),
        },
    ),
    "/v1/neighbors": (
        NeighborsRequest,
        {
            "model": (*TEXT, None, ["a"], MISSING),
            "word": (*TEXT, None, ["a"], MISSING, "", "Model", "a" * 100_001),
            "k": (*COUNT, 101),
        },
    ),
    "/v1/word-map": (WordMapRequest, {"model": (*TEXT, None, ["a"])}),
    "/v1/learning-curves": (LearningCurvesRequest, {"model": (*TEXT, None, ["a"])}),
}
CASES = [
    (path, field, value)
    for path, (_, fields) in FIELDS.items()
    for field, values in fields.items()
    for value in values
]


def shown(value):
    text = "missing" if value is MISSING else "HUGE" if value is HUGE else repr(value)
    return text if len(text) < 30 else f"{text[:10]}...{len(text)}"


def right(served, path):
    """A body that is answered by 200."""
    if path == "/v1/completions":
        return {"model": served.gpt2, "prompt": "a", "max_tokens": 2}
    if "model" in FIELDS[path][1]:
        asked = {"/v1/attention": {"prompt": "a"}, "/v1/neighbors": {"word": "model"}}
        return {"model": served.gpt2, **asked.get(path, {})}
    return {"text" if path == "/v1/score" else "prompt": "a", "models": [served.gpt2]}


def send(served, method, path, body=None, kind="application/json"):
    """Status, headers and JSON of a request, whatever its body and type are."""
    place = urlsplit(served.address)
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=60)) as connection:
        connection.request(method, path, body, {} if kind is None else {"Content-Type": kind})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, answer.headers, json.loads(content) if content else None


def assert_told(answer, status):
    error = answer["error"]
    assert error["code"] == status
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("path", FIELDS)
def test_the_table_has_every_field_of_every_request(path):
    request, fields = FIELDS[path]
    assert set(fields) == set(request.model_fields)


@pytest.mark.parametrize(
    ("path", "field", "value"), CASES, ids=[f"{p[4:]}-{f}-{shown(v)}" for p, f, v in CASES]
)
def test_a_wrong_value_is_told_with_its_field(served, path, field, value):
    body = right(served, path) | {field: value}
    if value is MISSING:
        del body[field]
    status, answer = served.ask(path, body)
    assert status == 400
    assert_told(answer, 400)
    assert field in answer["error"]["message"]
    assert answer["error"]["param"] in (field, "n times the number of prompts")


@pytest.mark.parametrize("path", FIELDS)
def test_an_unknown_field_is_named(served, path):
    status, answer = served.ask(path, right(served, path) | {"max-tokens": 1})
    assert (status, answer["error"]["param"]) == (400, "max-tokens")
    status, answer = served.ask(path, right(served, path) | {HALF: 1})
    assert status == 400
    assert_told(answer, 400)


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("name", ["", "nobody", "CHAMPION", "../..", "\0", "日本🤖", "a" * 10_000])
def test_an_unknown_model_is_answered_by_the_list(served, path, name):
    one = "model" in right(served, path)
    change = {"model": name} if one else {"models": [name]}
    status, answer = served.ask(path, right(served, path) | change)
    assert status == 404
    assert_told(answer, 404)
    for known in (served.gpt2, served.albert, served.empty):
        assert known in answer["error"]["message"]


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "the body"),
        (b"", "the body"),
        (b"{not json", "the body is no JSON: Expecting property name"),
        (b'{"prompt": "a"', "the body is no JSON"),
        (b'{"prompt": "a"}\0', "the body is no JSON: Extra data at 15"),
        (b'{"prompt": undefined}', "the body is no JSON"),
        (b"[]", "the body"),
        (b'"prompt"', "the body"),
        (b"null", "the body"),
        (b"7", "the body"),
        (b"NaN", "the body"),
        (b'{"prompt": "\xff\xfe", "text": "a"}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"prompt":' * 50_000, "body"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "body"),
    ],
)
def test_a_body_that_is_no_json_object_is_told(served, path, body, says):
    status, _, answer = send(served, "POST", path, body)
    assert status == 400
    assert_told(answer, 400)
    assert says in answer["error"]["message"]


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_another_content_type_is_told(served, path, kind):
    status, _, answer = send(served, "POST", path, json.dumps(right(served, path)), kind)
    assert status == 400
    assert_told(answer, 400)
    assert "application/json" in answer["error"]["message"]


@pytest.mark.parametrize("path", [*FIELDS, "/v1/reload"])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_another_method_is_told_with_the_right_one(served, path, method):
    status, headers, answer = send(served, method, path)
    assert (status, headers["allow"]) == (405, "POST")
    assert_told(answer, 405)


@pytest.mark.parametrize("path", ["/v1", "/v1/models/x", "/v1/completions/", "//v1/models", "/%00"])
def test_an_unknown_path_is_told(served, path):
    status, _, answer = send(served, "GET", path)
    assert status == 404
    assert_told(answer, 404)


def test_of_a_repeated_field_the_last_one_counts(served):
    body = b'{"model": "nobody", "model": "%s", "prompt": "a"}' % served.gpt2.encode()
    assert served.ask("/v1/completions", body)[0] == 200


ODD_TEXTS = ["\0", "a\0b", "🤖🏽", "e\u0301", "\u202ea", "\ufeffa", "\U0010ffff", "\uffff", "\x1b"]


@pytest.mark.parametrize("text", [*ODD_TEXTS, "", "\u2028", " \n\t", "a" * 5000], ids=shown)
def test_odd_texts_are_answered(served, text):
    """Each by what it means, or by a 400 that says why; never by a failure."""
    for path in FIELDS:
        body = right(served, path)
        written = next(name for name in ("text", "word", "prompt", "model") if name in body)
        for model in (served.gpt2, served.albert):
            one = "model" in body
            asked = {**body, "model" if one else "models": model if one else [model], written: text}
            status, answer = served.ask(path, asked)
            if written == "model" and status == 404:
                assert_told(answer, 404)
                continue
            assert status in (200, 400), answer
            if status == 400:
                assert_told(answer, 400)
                assert "Extra inputs" not in answer["error"]["message"]


def test_odd_texts_come_back_as_they_are(served):
    for text in ODD_TEXTS:
        made = served.client.completions.create(
            model=served.gpt2, prompt=text, max_tokens=1, echo=True, stop=["\0", "🤖"], user=text
        )
        assert made.choices[0].text.startswith(text)


def test_a_model_asked_for_twice_answers_once(served):
    body = {"prompt": "a", "models": [served.gpt2] * 3 + [served.empty]}
    status, answer = served.ask("/v1/next-words", body)
    assert (status, list(answer["models"])) == (200, [served.gpt2, served.empty])
