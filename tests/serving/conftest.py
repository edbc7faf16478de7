"""One real server for the tests of this folder."""

import json
import urllib.error
import urllib.request

import openai
import pytest
from tiny_models import albert, gpt2

from serving.live import live_server
from smallm.embeddings import WORD_MAP, word_map
from smallm.files import write_json
from smallm.learning_curves import LEARNING_CURVES, learning_curves
from smallm.predictors.causal import Causal


def trial(name, activation, curve):
    """A trial of a result record; a point of its curve is (tokens, bits per byte, dead units)."""
    points = [
        {
            "tokens": tokens,
            "mean": bits,
            "per_seed": {"1": bits - 0.01, "2": bits + 0.01},
            "activity": {"dead_units": dead, "saturated_units": 0.5, "mean_activation": 0.1},
        }
        for tokens, bits, dead in curve
    ]
    settings = {"activation": activation, "architecture": "mlp"}
    number = ord(name) - ord("a")
    return {"id": name, "number": number, "settings": settings, "tokens": 1000, "curve": points}


TRIALS = [
    trial("a", "relu", [(500, 2.5, 0.0), (1000, 2.25, 0.125)]),
    trial("b", "gelu", [(500, 2.4, 0.0), (1000, 2.0, 0.0)]),
    trial("c", "relu", [(500, 2.6, 0.25), (1000, 2.5, 0.25)]),
]


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """A causal, a masked and a missing model behind one front; gives its address."""
    folder = tmp_path_factory.mktemp("served")
    for name, parts in (("gpt2", gpt2(context=128, vocabulary=440)), ("albert", albert())):
        for part in parts:
            part.save_pretrained(folder / name)
    words = word_map(Causal("gpt2", *gpt2(context=128, vocabulary=440)))
    write_json(folder / "gpt2" / WORD_MAP, words)  # as a search leaves it with its champion
    write_json(folder / "gpt2" / LEARNING_CURVES, learning_curves(TRIALS, {}, champion="b"))
    (folder / "empty").mkdir()
    names = ",".join(str(folder / name) for name in ("gpt2", "albert", "empty"))
    environment = {"SMALLM_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    with live_server({"models": names}, environment) as address:
        yield Served(address, folder)


class Served:
    def __init__(self, address, folder):
        self.address = address
        self.folder = folder
        self.gpt2, self.albert, self.empty = (
            str(folder / name) for name in ("gpt2", "albert", "empty")
        )
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    def ask(self, path, body=None):
        """Status and JSON of a request."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        data = data.encode() if isinstance(data, str) else data
        request = urllib.request.Request(self.address + path, data)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
