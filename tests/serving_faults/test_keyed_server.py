"""A server with keys, limits and a champion that moves; and models that fail when asked."""

import re
import time
from contextlib import ExitStack, closing

import click
import openai
import pytest
from ray import serve
from serving.live import (
    Champions,
    Client,
    claims_more,
    eventually,
    failures,
    free_port,
    goes_on,
    live_server,
    load,
    replica,
    save,
)
from tiny_models import gpt2, gpt_neo

from serve.app import Ingress, build
from smallm.serving.keys import VARIABLE
from smallm.serving.page import OPEN_PATHS
from smallm.serving.settings import from_arguments

pytestmark = [pytest.mark.ray, pytest.mark.long]

ADA, BOB = "key-of-ada-which-is-long", "key-of-bob-which-is-long"
WAITING, PER_KEY, POLL = 6, 8, 3  # requests, requests, seconds
ENDLESS = 60_000  # tokens: minutes


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Keys, low limits, a champion that does not exist yet, and models with faults of their own."""
    folder = tmp_path_factory.mktemp("keyed")
    save(gpt2(layers=4, context=2**16), folder / "slow")
    save(gpt_neo(context=32), folder / "short")
    claims_more(folder / "short")
    model, tokenizer = gpt2(context=96)
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    save((model, tokenizer), folder / "damaged")
    names = ["slow", "short", "damaged"]
    arguments = {
        "models": ",".join(["champion", *(str(folder / name) for name in names)]),
        "poll_seconds": POLL,
        "most_tokens": ENDLESS,
        "most_waiting": WAITING,
        "most_running_per_key": PER_KEY,
    }
    environment = {
        "SMALLM_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        VARIABLE: f"{ADA},{BOB}",
    }
    with live_server(arguments, environment) as address:
        yield Server(address, folder)


class Server:
    def __init__(self, address, folder):
        self.address = address
        self.folder = folder
        self.slow, self.short, self.damaged = (
            str(folder / name) for name in ("slow", "short", "damaged")
        )
        self.endless = {"model": self.slow, "prompt": "a", "max_tokens": ENDLESS, "temperature": 0}

    def running(self, model):
        """The requests of a model that /metrics tells of."""
        text = Client(self.address, key=BOB).ask("/metrics")[2]
        return float(re.search(rf'requests_running{{model="{re.escape(model)}"}} (\S+)', text)[1])


@pytest.fixture
def ada(server):
    return Client(server.address, key=ADA)


@pytest.fixture
def bob(server):
    return Client(server.address, key=BOB)


def test_a_key_is_asked_for(server, ada):
    stranger, guest = Client(server.address), Client(server.address, key="a-key-of-nobody-here")
    for client in (stranger, guest):
        status, headers, answer = client.ask("/v1/models")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert answer["error"]["code"] == 401
        assert client.ask("/v1/completions", {"model": "a", "prompt": "a"})[0] == 401
        assert client.ask("/healthz")[0] == 200
        for path in OPEN_PATHS:  # the page asks for the key itself
            assert client.ask(path)[0] == 200, path
    assert ada.ask("/v1/models")[0] == 200


def test_the_client_of_openai_gives_its_key(server):
    base = f"{server.address}/v1"
    with openai.OpenAI(base_url=base, api_key=ADA, max_retries=0) as client:
        made = client.completions.create(
            model=server.slow, prompt="a", max_tokens=3, temperature=0, stream=True
        )
        assert sum(1 for _ in made) >= 1
    with (
        openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="needs a key"),
    ):
        client.models.list()


def assert_failed(answer):
    """A failure that shows nothing of the inside."""
    assert answer["error"] == {
        "message": "the model failed",
        "type": "server_error",
        "param": None,
        "code": 500,
    }


def test_a_model_that_raises_fails_only_what_it_cannot_answer(server, ada):
    short = {"model": server.short, "prompt": "The", "max_tokens": 2, "temperature": 0}
    long = short | {"prompt": "word " * 50 + "word"}
    words = {"prompt": "The", "k": 1, "models": [server.short]}
    for _ in range(2):
        status, _, answer = ada.ask("/v1/completions", long)
        assert status == 500
        assert_failed(answer)
        assert ada.ask("/v1/completions", short)[0] == 200
        status, last = ada.stream(long)
        assert_failed(last)
        assert ada.stream(short) == (200, "[DONE]")
        status, _, answer = ada.ask("/v1/next-words", words | {"prompt": long["prompt"]})
        assert status == 500
        assert_failed(answer)
        assert ada.ask("/v1/next-words", words)[0] == 200


def test_questions_that_travel_with_one_that_fails_are_answered(server, ada, bob):
    words = {"prompt": "The", "k": 1, "models": [server.short]}
    bad = words | {"prompt": "word " * 50 + "word"}
    asks = [lambda: ada.ask("/v1/next-words", words)] * 3
    with load(*asks) as results, load(*[lambda: bob.ask("/v1/next-words", bad)] * 2) as failing:
        goes_on(results)
        eventually(lambda: all(len(own) > 2 for own in failing))
    assert not failures(results)
    assert {each[0] for own in failing for each in own} == {500}


def test_a_damaged_model_says_so(server, ada):
    only = {"models": [server.damaged]}
    request = {"model": server.damaged, "prompt": "a", "max_tokens": 2}
    for path, body in (
        ("/v1/score", {"text": "a b", **only}),
        ("/v1/next-words", {"prompt": "a", **only}),
        ("/v1/completions", request),
        ("/v1/completions", request | {"temperature": 0, "logprobs": 1}),
    ):
        status, _, answer = ada.ask(path, body)
        assert (status, answer["error"]["param"]) == (500, None), path
        assert "weights may be damaged" in answer["error"]["message"]
    status, _, answer = ada.ask(
        "/v1/compare", {"prompt": "a", "models": [server.damaged, server.short], "max_tokens": 1}
    )
    assert status == 200
    told = answer["models"][server.damaged]["continuation"]["error"]
    assert "weights may be damaged" in told["message"]
    assert "text" in answer["models"][server.short]["continuation"]


def is_idle(process):
    """Whether a process rests for half a second."""
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    return sum(process.cpu_times()[:2]) - before < 0.1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_work(server, ada, stream):
    process = replica(server.slow)
    assert eventually(lambda: is_idle(process))
    with closing(ada.begin("/v1/completions", server.endless | {"stream": stream})) as connection:
        if stream:
            assert connection.getresponse().read(100)
        eventually(lambda: server.running(server.slow) == 1)
        assert not is_idle(process)
    eventually(lambda: server.running(server.slow) == 0, patience=10)
    eventually(lambda: is_idle(process), patience=10)
    assert ada.ask("/v1/score", {"text": "a", "models": [server.slow]})[0] == 200


def assert_later(answered, says):
    status, headers, answer = answered
    assert (status, headers["retry-after"]) == (429, "1")
    assert says in answer["error"]["message"]


def test_a_model_that_many_wait_for_turns_others_away_for_now(server, ada, bob):
    request = server.endless | {"stream": True}
    with ExitStack() as opened:
        for _ in range(WAITING):
            opened.enter_context(closing(ada.begin("/v1/completions", request)))
        eventually(lambda: server.running(server.slow) == WAITING)
        for client in (ada, bob):
            assert_later(client.ask("/v1/completions", request), "too many requests wait")
            score = {"text": "a", "models": [server.slow]}
            assert_later(client.ask("/v1/score", score), "too many requests wait")
            assert client.ask("/v1/score", score | {"models": [server.short]})[0] == 200
    eventually(lambda: server.running(server.slow) == 0, patience=10)
    assert ada.ask("/v1/completions", server.endless | {"max_tokens": 2})[0] == 200


def test_a_key_that_asks_too_much_is_turned_away_for_now(ada, bob):
    with ExitStack() as opened:
        for _ in range(PER_KEY):  # their bodies never come
            half = opened.enter_context(closing(ada.connect()))
            half.putrequest("POST", "/v1/score")
            half.putheader("Authorization", f"Bearer {ADA}")
            half.putheader("Content-Length", "10")
            half.endheaders()
        refused = eventually(lambda: (found := ada.ask("/v1/models"))[0] != 200 and found)
        assert_later(refused, f"more than {PER_KEY} requests at once")
        assert ada.ask("/metrics")[0] == 200  # who watches sees it
        assert bob.ask("/v1/models")[0] == 200
    eventually(lambda: ada.ask("/v1/models")[0] == 200, patience=10)


def test_a_champion_that_moves_drops_no_request(server, ada, bob):
    """It appears, moves and is asked for, moves and is found by looking now and then."""

    def told():
        return {each["id"]: each for each in ada.ask("/v1/models")[2]["data"]}["champion"]

    assert not told()["available"]
    assert "make search" in told()["reason"]
    words = {"prompt": "The deep", "k": 1, "models": ["champion"]}
    text = {"model": "champion", "prompt": "The deep", "max_tokens": 4}
    assert ada.ask("/v1/next-words", words)[0] == 503
    champions = Champions(server.folder)
    champions.crown(layers=1)
    eventually(lambda: told()["available"])
    first = told()
    assert first["version"] == "1"
    asks = [
        lambda: ada.ask("/v1/next-words", words),
        *[lambda: ada.ask("/v1/completions", text)] * 2,
        *[lambda: ada.stream(text)] * 2,
    ]
    with load(*asks) as results:
        goes_on(results)
        champions.crown(layers=2)
        status, _, answer = bob.ask("/v1/reload", {})
        assert (status, answer["models"]["champion"]["version"]) == (200, "2")
        second = told()
        goes_on(results)
        champions.crown(layers=3)
        eventually(lambda: told()["version"] == "3", patience=POLL + 20)
        goes_on(results)
    assert not failures(results)
    assert (second["version"], second["available"]) == ("2", True)
    assert first["parameters"] < second["parameters"] < told()["parameters"]


def test_the_fast_front_needs_keys(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(click.ClickException, match="fast front listens on all addresses"):
        build({})
    monkeypatch.setenv(VARIABLE, ADA)
    build({})


def test_a_server_that_others_could_reach_needs_keys(server, monkeypatch):
    """The last one here: it ends the server."""
    serve.shutdown()
    serve.start(http_options={"host": "0.0.0.0", "port": free_port()})
    settings = from_arguments({"models": "champion"})
    with pytest.raises(RuntimeError, match="Ingress"):
        serve.run(Ingress.bind(settings, {}, None), route_prefix="/")
    (status,) = serve.status().applications["default"].deployments.values()
    assert "0.0.0.0 can be reached by others: give a file of keys" in status.message
