"""The guard as clients meet it: a real server on loopback, spoken to by raw sockets."""

import asyncio
import http.client
import json
import socket
import struct
import threading
import time
from contextlib import closing, contextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from smallm.serving import page
from smallm.serving.guard import ALWAYS, OPEN_PATHS, UNLESS_SET, Guard, Rules, secured
from smallm.serving.keys import Keys

ADA, BOB = "key-of-ada-which-is-long", "key-of-bob-which-is-long"
KEYED = Rules(keys=Keys([ADA, BOB]), open_paths=OPEN_PATHS | page.OPEN_PATHS)
RESET = struct.pack("ii", 1, 0)  # the close of a socket resets its connection
PATIENCE = 20  # seconds that nothing here should need


class Served:
    """The app behind the guard, and what the tests hold of it."""

    def __init__(self):
        self.rules = Rules()
        self.refusals = []
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()
        self.closed = threading.Event()
        self.api = made_api(self)
        self.api.add_middleware(Guard, rules=lambda: self.rules, refused=self.refusals.append)
        self.port = 0

    @property
    def guard(self):
        layer = self.api.middleware_stack
        while not isinstance(layer, Guard):
            layer = layer.app
        return layer

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def ask(self, method, path, body=None, key=None, headers=()):
        """Status, headers and JSON (or bytes) of one request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, PATIENCE)) as connection:
            given = dict(headers) | ({"Authorization": f"Bearer {key}"} if key else {})
            connection.request(method, path, body, given)
            return read(connection.getresponse())

    @contextmanager
    def held(self, count=1, key=None):
        """While that many requests are worked on."""
        threads = [
            threading.Thread(target=self.ask, args=("GET", "/v1/hold"), kwargs={"key": key})
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert self.entered.acquire(timeout=PATIENCE)
        try:
            yield
        finally:
            self.release.set()
            for thread in threads:
                thread.join(PATIENCE)

    def all_slots_are_free(self):
        return eventually(lambda: self.guard.running == 0)


def made_api(served):
    api = FastAPI(docs_url=None, redoc_url=None)

    @api.get("/healthz")
    @api.get("/v1/ok")
    def ok():
        return {"status": "ok"}

    @api.get("/")
    def page():
        policy = {"Content-Security-Policy": "default-src 'self'", "cache-control": "max-age=9"}
        return Response("<p>", media_type="text/html", headers=policy)

    @api.post("/v1/size")
    async def size(request: Request):
        return {"size": len(await request.body())}

    @api.get("/v1/hold")
    def hold():
        served.entered.release()
        return {"released": served.release.wait(PATIENCE)}

    @api.get("/v1/stream")
    async def stream():
        async def pieces():
            try:
                yield b"first"
                await asyncio.Event().wait()
            finally:
                served.closed.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @api.get("/v1/crash")
    def crash():
        raise RuntimeError("the inner secret")

    @api.get("/v1/late-crash")
    def late_crash():
        async def pieces():
            yield b"first"
            raise RuntimeError("the inner secret")

        return StreamingResponse(pieces())

    return api


def read(answer):
    content = answer.read()
    json_kind = answer.getheader("content-type", "").startswith("application/json")
    return answer.status, answer.headers, json.loads(content) if json_kind and content else content


def read_from(connection):
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return read(answer)


def eventually(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def until_closed(connection):
    """All that a server still sends; it ends, so the server has closed."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture(scope="module")
def server():
    served = Served()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        served.port = listening.getsockname()[1]  # who connects before the start waits for it
        config = uvicorn.Config(
            served.api, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        served.ask("GET", "/healthz")
        yield served
        running.should_exit = running.force_exit = True
        thread.join(PATIENCE)


@pytest.fixture
def served(server):
    """The server without keys, with all slots free before and after."""
    server.rules = Rules()
    server.refusals.clear()
    server.release.clear()
    server.closed.clear()
    yield server
    server.release.set()
    assert server.all_slots_are_free()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-key-of-some-length"},
        {"Authorization": f"Basic {ADA}"},
        {"Authorization": ADA},
        {"Authorization": f"Bearer {ADA}x"},
        {"X-Api-Key": ADA},
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/ok", "/openapi.json", "/docs", "/metrics", "/healthz/", "//"]
)
def test_without_a_right_key_nothing_else_is_told(served, headers, path):
    served.rules = KEYED
    status, told, answer = served.ask("GET", path, headers=headers)
    assert status == 401
    assert told["www-authenticate"] == "Bearer"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["code"] == 401
    assert served.refusals == ["key"]


def test_right_keys_open_and_open_paths_need_none(served):
    served.rules = KEYED
    assert served.ask("GET", "/v1/ok", key=ADA)[0] == 200
    assert served.ask("GET", "/v1/ok", headers={"Authorization": f"bEARER  {BOB}"})[0] == 200
    assert served.ask("GET", "/openapi.json", key=ADA)[0] == 200
    assert served.ask("GET", "/healthz")[0] == 200
    assert served.ask("GET", "/")[2] == b"<p>"
    assert served.ask("GET", "/favicon.ico")[0] == 404


def test_bytes_that_are_no_ascii_are_no_key_and_no_failure(served):
    served.rules = KEYED
    for header, status in (
        (b"Authorization: Bearer \xff\xc3\xa9key-of-ada-which", b"401"),
        (b"Authorization: \xe9", b"401"),
        (f"X-Name: \xe9\xff\r\nAuthorization: Bearer {ADA}".encode("latin-1"), b"200"),
        (f"Authorization: Bearer {ADA}\r\nAuthorization: Bearer {ADA}".encode(), b"401"),
    ):
        with closing(served.connect()) as connection:
            connection.sendall(
                b"GET /v1/ok HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + b"\r\n\r\n"
            )
            assert until_closed(connection).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("[x", 421),
        ("", 421),
    ],
)
def test_without_keys_a_foreign_name_for_this_machine_is_refused(served, host, status):
    assert served.ask("GET", "/v1/ok", headers={"Host": host})[0] == status
    assert served.ask("GET", "/healthz", headers={"Host": host})[0] == 200
    served.rules = KEYED
    assert served.ask("GET", "/v1/ok", key=ADA, headers={"Host": host})[0] == 200


def test_a_too_large_body_is_refused_before_it_comes(served):
    with closing(served.connect()) as connection:
        connection.sendall(
            b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n"
        )
        status, headers, answer = read_from(connection)
    assert (status, headers["connection"]) == (413, "close")
    assert answer["error"]["message"] == "the body is larger than 1048576 bytes"
    assert served.refusals == ["size"]


def test_a_client_that_sends_a_too_large_body_to_its_end_reads_why(served):
    served.rules = Rules(most_body_bytes=1000)
    for body, headers in ((bytes(5_000_000), {}), ((bytes(50_000) for _ in range(100)), {})):
        status, _, answer = served.ask("POST", "/v1/size", body, headers=headers)
        assert status == 413
        assert "larger than 1000 bytes" in answer["error"]["message"]
    assert served.ask("POST", "/v1/size", bytes(1000))[2] == {"size": 1000}


def test_chunks_are_counted_as_they_come(served):
    served.rules = Rules(most_body_bytes=1000)
    chunk = b"1f4\r\n" + bytes(500) + b"\r\n"
    start = b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(served.connect()) as connection:  # two chunks are allowed
        connection.sendall(start + 2 * chunk + b"0\r\n\r\n")
        assert read_from(connection)[2] == {"size": 1000}
        connection.sendall(start + 3 * chunk)  # and it never ends
        assert read_from(connection)[0] == 413
    assert served.refusals == ["size"]


def test_open_paths_take_no_body(served):
    assert served.ask("POST", "/healthz", b"x")[0] == 413
    assert served.ask("POST", "/healthz")[0] == 405


def test_a_slow_body_is_given_up_and_its_slot_is_free(served):
    served.rules = Rules(body_timeout=0.2, most_running=1)
    with closing(served.connect()) as connection:
        connection.sendall(
            b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf."
        )
        told = until_closed(connection)
    assert told.startswith(b"HTTP/1.1 408")
    assert b"no whole body within 0.2 s" in told
    assert served.refusals == ["slow"]
    served.rules = Rules(most_running=1)
    assert served.ask("POST", "/v1/size", b"whole")[2] == {"size": 5}


def test_half_open_connections_hold_nobody_up(served):
    served.rules = Rules(body_timeout=PATIENCE, most_running=41)
    half = b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"
    connections = [served.connect() for _ in range(80)]
    for number, connection in enumerate(connections):
        connection.sendall(half + b"\r\nhalf." if number % 2 else half)
    assert eventually(lambda: served.guard.running == 40)
    assert served.ask("POST", "/v1/size", b"whole")[2] == {"size": 5}
    for number, connection in enumerate(connections):
        if number % 4 > 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()
    assert served.all_slots_are_free()
    assert served.refusals == []


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_goes_away_mid_stream_frees_its_slot(served, reset):
    served.rules = Rules(most_running=1)
    with closing(served.connect()) as connection:
        connection.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        told = b""
        while b"first" not in told:  # it comes while the app still works
            told += connection.recv(65536)
        assert served.ask("GET", "/v1/ok")[0] == 429
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert served.closed.wait(PATIENCE)
    assert served.all_slots_are_free()
    assert served.ask("GET", "/v1/ok")[0] == 200


def test_above_the_limit_is_429_and_later_all_is_well(served):
    served.rules = Rules(most_running=3)
    with served.held(3):
        for method, path, body in (("GET", "/v1/ok", None), ("POST", "/v1/size", bytes(10**6))):
            status, headers, answer = served.ask(method, path, body)
            assert status == 429
            assert int(headers["retry-after"]) >= 1
            assert "busy" in answer["error"]["message"]
        assert served.ask("GET", "/healthz")[0] == 200
    assert served.refusals == ["busy", "busy"]
    assert served.all_slots_are_free()
    assert served.ask("GET", "/v1/ok")[0] == 200


def test_one_key_at_its_limit_holds_no_other_up(served):
    served.rules = Rules(keys=KEYED.keys, most_running_per_key=2)
    with served.held(2, key=ADA):
        status, headers, answer = served.ask("GET", "/v1/ok", key=ADA)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "more than 2 requests" in answer["error"]["message"]
        assert ADA not in json.dumps(answer)
        assert served.ask("GET", "/v1/ok", key=BOB)[0] == 200
        assert served.ask("GET", "/v1/ok")[0] == 401
    assert served.refusals == ["busy_key", "key"]
    assert served.all_slots_are_free()
    assert served.ask("GET", "/v1/ok", key=ADA)[0] == 200


def test_without_keys_one_address_has_its_limit(served):
    served.rules = Rules(most_running_per_key=1)
    with served.held():
        assert served.ask("GET", "/v1/ok")[0] == 429
    assert served.refusals == ["busy_key"]


def test_a_crash_is_told_without_its_trace_and_logged_with_it(served, caplog):
    served.rules = Rules(most_running=1)
    for _ in range(3):  # each frees its slot
        status, _, answer = served.ask("GET", "/v1/crash")
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "secret" not in json.dumps(answer)
    assert "the inner secret" in caplog.text
    assert "GET '/v1/crash' failed" in caplog.text


def test_a_crash_within_a_stream_breaks_the_connection_and_is_logged(served, caplog):
    served.rules = Rules(most_running=1)
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, PATIENCE)) as connection:
        connection.request("GET", "/v1/late-crash")
        with pytest.raises(http.client.IncompleteRead) as broken:
            connection.getresponse().read()
    assert broken.value.partial == b"first"
    assert eventually(lambda: "the inner secret" in caplog.text)
    assert served.all_slots_are_free()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("HEAD", "/healthz", 405),
        ("GET", "/v1/ok", 200),
        ("OPTIONS", "/v1/ok", 405),
        ("GET", "/v1/crash", 500),
        ("GET", "/nowhere", 404),
        ("POST", "/healthz", 413),
        ("GET", "/v1/late-crash", 200),
    ],
)
def test_every_answer_has_the_security_headers_and_none_of_cors(served, method, path, status):
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, PATIENCE)) as connection:
        body = b"x" if status == 413 else None
        connection.request(method, path, body, {"Origin": "https://evil.example"})
        answer = connection.getresponse()
    assert answer.status == status
    for name, value in {**ALWAYS, **UNLESS_SET}.items():
        assert answer.headers.get_all(name.decode()) == [value.decode()]
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_refusals_have_the_security_headers_too(served):
    served.rules = KEYED
    headers = served.ask("POST", "/v1/ok", b"x" * 100)[1]
    assert headers["content-type"] == "application/json"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"


def test_the_app_may_set_its_own_policy_and_caching_but_not_the_rest(served):
    headers = served.ask("GET", "/")[1]
    assert headers.get_all("content-security-policy") == ["default-src 'self'"]
    assert headers.get_all("cache-control") == ["max-age=9"]
    assert secured([(b"X-Frame-Options", b"SAMEORIGIN")])[0] == (
        b"x-content-type-options",
        b"nosniff",
    )


def test_many_requests_on_one_connection(served):
    served.rules = KEYED
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, PATIENCE)) as connection:
        for key, status in ((ADA, 200), ("", 401), (BOB, 200)):  # a refusal may keep it open
            connection.request("GET", "/v1/ok", headers={"Authorization": f"Bearer {key}"})
            socket_before = connection.sock
            assert read(connection.getresponse())[0] == status
            assert connection.sock is socket_before


def scope_of(path, kind="http"):
    headers = [(b"host", b"localhost")]
    return {"type": kind, "method": "GET", "path": path, "headers": headers, "client": None}


def test_pieces_pass_as_they_are_and_the_app_hears_of_a_disconnect():
    sent, heard = [], []
    pieces = [{"type": "http.response.body", "body": b"x", "more_body": more} for more in (1, 0)]
    given = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"cd"},
        {"type": "http.disconnect"},
    ]

    async def app(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in pieces:
            await send(piece)

    async def receive():
        return given.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app, Rules)(scope_of("/v1/x"), receive, send))
    assert heard[0] == {"type": "http.request", "body": b"abcd", "more_body": False}
    assert heard[1] == {"type": "http.disconnect"}
    assert all(one is other for one, other in zip(sent[1:], pieces, strict=True))


def test_a_cancelled_request_frees_its_slot():
    """Ray cancels a request whose client has gone."""

    async def app(scope, receive, send):
        started.set()
        await asyncio.Event().wait()

    async def receive():
        return {"type": "http.request"}

    async def cancelled():
        guard = Guard(app, Rules)
        task = asyncio.create_task(guard(scope_of("/v1/x"), receive, None))
        await started.wait()
        assert guard.running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert guard.running == 0

    started = asyncio.Event()
    asyncio.run(cancelled())


def test_a_client_that_goes_away_within_its_body_gets_no_answer():
    async def receive():
        return {"type": "http.disconnect"}

    guard = Guard(None, Rules)  # an app or an answer would fail
    asyncio.run(guard(scope_of("/v1/x"), receive, None))
    assert guard.running == 0


def test_web_sockets_are_refused_and_the_start_of_the_server_passes():
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    async def send(message):
        sent.append(message["type"])

    guard = Guard(app, Rules)
    asyncio.run(guard(scope_of("/", "websocket"), None, send))
    asyncio.run(guard(scope_of("/", "lifespan"), None, send))
    assert (seen, sent) == (["lifespan"], ["websocket.close"])
