"""The server as a person starts it: `serve run`, the README's curl lines, the fast front."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest
from serving.live import Champions, Client, claims_more, eventually, save
from tiny_models import gpt2, gpt_neo

from smallm.serving.keys import VARIABLE
from smallm.serving.page import OPEN_PATHS

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ADDRESS = "http://localhost:8000"  # of the README
KEY = "key-of-a-person-which-is-long"
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
LOGS = Path(os.environ["RAY_TMPDIR"], "ray", "session_latest", "logs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a home in whose MLflow there is a champion."""
    made = tmp_path_factory.mktemp("command")
    Champions(made).crown(layers=1)
    save(gpt_neo(context=32), made / "short")
    claims_more(made / "short")
    model, tokenizer = gpt2(context=96)
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    save((model, tokenizer), made / "damaged")
    return made


@contextmanager
def served(folder, models="champion", **environment):
    """While `serve run` serves some models."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("something listens on port 8000")
    command = [Path(sys.prefix) / "bin" / "serve", "run", "serve.app:build", f"models={models}"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_"))}
    inherited["RAY_TMPDIR"] = os.environ["RAY_TMPDIR"]
    own = {"SMALLM_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", **environment}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited | own, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        eventually(lambda: process.poll() is not None or is_ready(), patience=120)
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


def is_ready():
    with suppress(OSError):
        return urllib.request.urlopen(f"{ADDRESS}/readyz", timeout=5).status == 200
    return False


def test_the_curl_lines_of_the_readme_are_answered(folder):
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^curl -s (?:.*\\\n)*.*$", readme, re.MULTILINE)
    assert len(lines) == 2
    with served(folder):
        answers = [
            json.loads(subprocess.run(line, shell=True, check=True, capture_output=True).stdout)
            for line in lines
        ]
        page = urllib.request.urlopen(ADDRESS).read().decode()
    completion, words = answers
    assert completion["choices"][0]["text"]
    assert len(words["models"]["champion"]["words"]) == 5
    assert "<title>SmaLLM</title>" in page


@pytest.mark.parametrize("front", [{}, FAST], ids=["default", "fast"])
def test_either_front_answers_those_with_a_key_and_logs_none(folder, front):
    short, damaged = str(folder / "short"), str(folder / "damaged")
    with served(folder, f"champion,{short},{damaged}", **{VARIABLE: KEY}, **front):
        stranger = Client(ADDRESS.replace("localhost", "127.0.0.1"))
        assert stranger.ask("/v1/models")[0] == 401
        for path in OPEN_PATHS:
            assert stranger.ask(path)[0] == 200, path
        with openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["champion", short, damaged]
            models_that_fail_are_told(client, short, damaged)
            options = {"model": "champion", "prompt": "The", "max_tokens": 9, "temperature": 0}
            whole = client.completions.create(**options).choices[0].text
            pieces = list(client.completions.create(**options, stream=True))
            assert "".join(piece.choices[0].text for piece in pieces) == whole
            assert len(pieces) > 3
            leaves_a_stream(client)
            assert client.completions.create(**options).choices[0].text == whole
        logs = LOGS.resolve()
    written = [path for path in logs.rglob("*") if path.is_file()]
    assert any("serve" in path.parts for path in written)
    for path in (*written, folder / "log"):
        assert KEY.encode() not in path.read_bytes(), path


def models_that_fail_are_told(client, short, damaged):
    """Alone, in the middle of a stream, and beside models that answer."""
    with pytest.raises(openai.InternalServerError, match="weights may be damaged"):
        client.completions.create(model=damaged, prompt="a", max_tokens=2)
    asked = {"model": short, "prompt": "The", "max_tokens": 40, "temperature": 0}
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        client.completions.create(**asked)
    pieces = []
    with pytest.raises(openai.APIError, match="the model failed"):
        pieces.extend(client.completions.create(**asked, stream=True))
    assert pieces
    keyed = Client("http://127.0.0.1:8000", key=KEY)
    models = ["champion", short, damaged]
    body = {"prompt": asked["prompt"], "models": models, "max_tokens": 40, "temperature": 0}
    status, _, answer = keyed.ask("/v1/compare", body)
    assert (status, list(answer["models"])) == (200, models)
    found = [answer["models"][name]["continuation"] for name in models]
    assert found[0]["text"]
    assert found[1]["error"]["message"] == "the model failed"
    assert "weights may be damaged" in found[2]["error"]["message"]
    status, _, answer = keyed.ask("/v1/next-words", {"prompt": "a", "models": models})
    assert "weights may be damaged" in answer["models"][damaged]["error"]["message"]
    assert answer["models"]["champion"]["words"]


def leaves_a_stream(client):
    """A client that goes away in the middle frees its place."""
    endless = {"model": "champion", "prompt": "The", "max_tokens": 1024, "temperature": 0}
    stream = client.completions.create(**endless, stream=True)
    assert next(iter(stream)).choices
    stream.close()
    watcher = Client("http://127.0.0.1:8000", key=KEY)
    free = 'requests_running{model="champion"} 0.0'
    eventually(lambda: free in watcher.ask("/metrics")[2], patience=20)
