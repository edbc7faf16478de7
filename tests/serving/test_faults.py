"""What goes wrong around the server: killed processes, clients that are slow or go away."""

import socket
import time
from collections import Counter
from contextlib import ExitStack, closing

import pytest

from serving.live import Client, eventually, failures, goes_on, killed, load

pytestmark = [pytest.mark.ray, pytest.mark.long]

HALF = (
    b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n"
)
MANY = 2000
PER_CLIENT = 64  # the server's default


def status_so_far(connection):
    connection.setblocking(False)
    try:
        return connection.recv(12).decode()[9:]
    except BlockingIOError:
        return "none"


@pytest.fixture
def client(served):
    return Client(served.address)


@pytest.fixture
def asks(served, client):
    """Clients of one model: next words, whole continuations, streams."""
    words = {"prompt": "Neural networks", "models": [served.gpt2], "k": 1}
    text = {"model": served.gpt2, "prompt": "The deep", "max_tokens": 4}
    return [
        lambda: client.ask("/v1/next-words", words),
        *[lambda: client.ask("/v1/completions", text)] * 3,
        *[lambda: client.stream(text)] * 3,
    ]


def test_a_killed_replica_fails_no_more_than_it_worked_on(served, asks):
    with load(*asks) as results:
        goes_on(results)
        killed(served.gpt2)
        goes_on(results)
    assert len(failures(results)) <= len(asks)
    for failed in failures(results):  # each of them in OpenAI's shape, within its stream or instead
        assert failed[-1]["error"]["type"] == "server_error"
        assert failed[-1]["error"]["code"] == 503
    for own in results[:4]:  # what is answered at once is asked again
        assert not failures([own])


def test_a_killed_front_fails_no_more_than_it_worked_on(asks):
    with load(*asks) as results:
        goes_on(results)
        killed("Ingress")
        goes_on(results)
    for own in results:
        assert len(failures([own])) <= 1
        for failed in failures([own]):  # by Ray's own front, before or within the answer
            assert isinstance(failed, Exception) or failed[0] >= 500


def test_half_open_connections_hold_nobody_up(served, client):
    slow = Client(served.address, source="127.0.0.2")
    asked = {"text": "a b c", "models": [served.gpt2]}
    with ExitStack() as opened:
        connections = []
        for number in range(MANY):
            connection = socket.create_connection(slow.place, 20, source_address=(slow.source, 0))
            connections.append(opened.enter_context(closing(connection)))
            connection.sendall(HALF + b"\r\n{" if number % 2 else HALF)
        slowest = 0.0
        for _ in range(20):
            start = time.monotonic()
            assert client.ask("/v1/score", asked)[0] == 200
            assert client.ask("/healthz")[0] == 200
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 20
        statuses = Counter(map(status_so_far, connections[1::2]))
        assert statuses["429"] == MANY // 2 - PER_CLIENT  # the others' bodies are waited for
    with load(*[lambda: slow.ask("/v1/score", asked)] * (PER_CLIENT - 4)) as results:
        goes_on(results)  # no slot of theirs is lost
    assert not failures(results)


def test_who_goes_away_takes_no_others_along(served, client):
    """Questions that wait travel together: on a call that began while another one was answered."""
    words = {"prompt": "Neural networks", "models": [served.gpt2]}
    compared = words | {"max_tokens": 100}
    with ExitStack() as opened:
        goes = opened.enter_context(closing(client.begin("/v1/compare", compared)))
        others = []
        for _ in range(5):
            time.sleep(0.05)
            others.append(opened.enter_context(closing(client.begin("/v1/next-words", words))))
        assert others[0].getresponse().status == 200
        goes.close()
        for each in others[1:]:
            assert each.getresponse().status == 200


def test_a_reload_while_a_process_starts_is_told(served, client):
    def reloaded():
        return client.ask("/v1/reload", {})[2]["models"][served.gpt2]

    assert reloaded() == {"version": "", "changed": False}
    killed(served.gpt2)
    found = reloaded()
    assert found.get("changed") is False or found["error"]["code"] in (503, 504)
    eventually(lambda: reloaded() == {"version": "", "changed": False})
