"""Whatever the OpenAPI description allows is answered as it says, and so is what it does not allow.

The requests are made by schemathesis, the same ones at every run.
"""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

pytestmark = pytest.mark.ray

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.negative_data_rejection,
]
ASKED = [
    *("/v1/completions", "/v1/next-words", "/v1/score", "/v1/compare"),
    *("/v1/attention", "/v1/neighbors", "/v1/word-map", "/v1/learning-curves"),
]
ONE = ASKED[4:]  # they ask one model
READ = ["/healthz", "/readyz", "/metrics", "/v1/models"]
CHAMPION = "champion"  # the examples name it; the server of the tests has none


@pytest.fixture(scope="module")
def description(served):
    return schemathesis.openapi.from_url(f"{served.address}/openapi.json")


def fuzzed(operation: APIOperation, mode: GenerationMode, change=lambda case: None, count=40):
    """Sends requests and checks the answers; gives how many had which status."""
    statuses = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        change(case)
        answer = case.call_and_validate(checks=CHECKS, timeout=60)
        statuses[answer.status_code] += 1

    check()
    return statuses


def test_all_operations_are_tried(description):
    found = {(each.ok().method, each.ok().path) for each in description.get_all_operations()}
    assert found == {("post", path) for path in [*ASKED, "/v1/reload"]} | {
        ("get", path) for path in READ
    }


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
def test_any_request_is_answered_as_described(description, path, mode):
    fuzzed(description[path]["POST"], mode)


@pytest.mark.parametrize("path", ASKED)
def test_models_that_are_served_answer_as_described(served, description, path):
    """The fuzzer cannot know their names."""

    def name_models(case):
        if path == "/v1/completions":
            case.body["model"] = served.gpt2
            case.body["max_tokens"] = min(20, case.body.get("max_tokens", 20))
        elif path in ONE:
            case.body["model"] = served.gpt2
            case.body.pop("layer", None)
            if "word" in case.body:
                case.body["word"] = "model"
        elif case.body.get("models"):
            names = (served.gpt2, served.albert)
            case.body["models"] = [names[len(each) % 2] for each in case.body["models"]]

    statuses = fuzzed(description[path]["POST"], GenerationMode.POSITIVE, name_models, count=60)
    assert statuses[200] > 5, statuses


@pytest.mark.parametrize("path", READ)
def test_what_is_read_is_as_described(description, path):
    assert fuzzed(description[path]["GET"], GenerationMode.POSITIVE, count=3)[200]


def test_reloading_is_as_described(description):
    assert fuzzed(description["/v1/reload"]["POST"], GenerationMode.POSITIVE, count=2)[200]


def test_the_examples_of_the_description_are_answered(served):
    _, description = served.ask("/openapi.json")
    for path in ASKED:
        content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        request = content["schema"]["$ref"].rpartition("/")[2]
        example = description["components"]["schemas"][request]["example"]
        if example.get("model") == CHAMPION:
            example["model"] = served.gpt2
        assert served.ask(path, example)[0] == 200
