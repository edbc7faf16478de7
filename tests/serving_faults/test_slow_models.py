"""A model that takes too long, beside one that does not; and a temperature that was fitted."""

import openai
import pytest
from serving.live import Client, live_server
from tiny_models import gpt2

from smallm.evaluation_run import keep_temperatures

pytestmark = [pytest.mark.ray, pytest.mark.long]

PATIENCE = 3  # seconds, of the server
ENDLESS = 60_000  # tokens: minutes


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server with little patience, and the names of its models."""
    folder = tmp_path_factory.mktemp("slow")
    for name, parts in (("slow", gpt2(layers=4, context=2**16)), ("quick", gpt2(context=64))):
        for part in parts:
            part.save_pretrained(folder / name)
    slow, quick = (str(folder / name) for name in ("slow", "quick"))
    home = folder / "home"
    home.mkdir()
    fitted = {"name": slow, "calibration": {"temperature": 0.25}}
    keep_temperatures({"models": [fitted]}, home)
    arguments = {
        "models": f"{slow},{quick}",
        "request_timeout": PATIENCE,
        "most_tokens": ENDLESS,
    }
    environment = {"SMALLM_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with live_server(arguments, environment) as address:
        yield address, slow, quick


def test_a_slow_model_is_given_up_with_504(server):
    address, slow, _ = server
    client = Client(address)
    endless = {"model": slow, "prompt": "a", "max_tokens": ENDLESS, "temperature": 0}
    status, _, answer = client.ask("/v1/completions", endless)
    assert status == answer["error"]["code"] == 504
    status, last = client.stream(endless)
    assert status == 200  # it had begun
    assert last["error"]["code"] == 504
    assert client.ask("/v1/completions", endless | {"max_tokens": 3})[0] == 200  # its slot is free


def test_a_slow_model_gives_its_error_beside_the_others(server):
    address, slow, quick = server
    body = {"prompt": "a", "models": [slow, quick], "max_tokens": ENDLESS, "temperature": 0}
    status, _, answer = Client(address).ask("/v1/compare", body)
    assert status == 200
    assert answer["models"][slow]["continuation"]["error"]["code"] == 504
    assert answer["models"][quick]["continuation"]["text"]
    for name in (slow, quick):
        assert answer["models"][name]["next_words"]["words"]


def test_a_fitted_temperature_is_that_number(server):
    address, slow, quick = server
    options = {"model": slow, "prompt": "a", "max_tokens": 12, "seed": 4}
    fitted = {"temperature": "fitted"}
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        made = client.completions.create(**options, extra_body=fitted).choices[0].text
        same = client.completions.create(**options, temperature=0.25).choices[0].text
        assert made == same
        assert made != client.completions.create(**options, temperature=1).choices[0].text
        with pytest.raises(openai.BadRequestError, match="has no fitted temperature"):
            client.completions.create(**options | {"model": quick}, extra_body=fitted)
