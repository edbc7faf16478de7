"""Metrics count what happened, in as many series as there are models."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smallm.serving.metrics import Metrics
from smallm.serving.protocol import RequestError


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels) or 0


def requests(metrics, model, status):
    return value(
        metrics, "smallm_requests_total", model=model, route="/v1/score", status=str(status)
    )


def test_a_request_runs_and_is_counted_with_its_time():
    metrics = Metrics(["a", "b"])
    with metrics.asked("a", "/v1/score"), metrics.asked("a", "/v1/score"):
        assert value(metrics, "smallm_requests_running", model="a") == 2
        assert value(metrics, "smallm_requests_running", model="b") == 0
    assert value(metrics, "smallm_requests_running", model="a") == 0
    assert requests(metrics, "a", 200) == 2
    labels = {"model": "a", "route": "/v1/score"}
    assert value(metrics, "smallm_request_seconds_count", **labels) == 2
    assert value(metrics, "smallm_request_seconds_bucket", le="60.0", **labels) == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("x", status=503), 503),
        (ValueError("x"), 500),
        (asyncio.CancelledError(), 499),
        (KeyboardInterrupt(), 500),
    ],
)
def test_failures_have_their_status_and_go_on(error, status):
    metrics = Metrics(["a"])
    with pytest.raises(type(error)), metrics.asked("a", "/v1/score"):
        raise error
    assert requests(metrics, "a", status) == 1
    assert value(metrics, "smallm_requests_running", model="a") == 0


def test_a_stream_that_nobody_reads_to_its_end_is_counted_as_gone():
    metrics = Metrics(["a"])

    async def pieces():
        with metrics.asked("a", "/v1/score"):
            yield 1
            yield 2

    async def read_one():
        stream = pieces()
        await anext(stream)
        await stream.aclose()

    asyncio.run(read_one())
    assert requests(metrics, "a", 499) == 1


def test_names_from_requests_make_no_series():
    metrics = Metrics(["a"])
    for number in range(50):
        with metrics.asked(f"made up {number}", "/v1/score"):
            metrics.tokens(f"made up {number}", prompt=1)
    assert requests(metrics, "unknown", 200) == 50
    assert b"made up" not in metrics.text()[0]


def test_the_text_is_read_by_prometheus_and_registries_are_apart():
    metrics = Metrics(["org/model"])
    metrics.tokens("org/model", prompt=3, completion=4)
    metrics.tokens("org/model", completion=2)
    metrics.refused("busy")
    body, kind = metrics.text()
    assert kind.startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert found["smallm_tokens_total", "org/model", "prompt"] == 3
    assert found["smallm_tokens_total", "completion", "org/model"] == 6
    assert found["smallm_refused_total", "busy"] == 1
    assert found["smallm_requests_running", "org/model"] == 0
    assert b"busy" not in Metrics(["org/model"]).text()[0]
