"""One search over perceptrons and transformers, and the transformer that it crowns is served."""

import pytest
from serving.live import Client, live_server
from test_search import finish, only_search, start
from test_search import place as place

from smallm.serving.loading import load_engine
from smallm.serving.settings import Resources

# Perceptrons learn at a rate that leaves them as they are: the champion is a transformer.
SPACE = """
trials: 6
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11, 12]
settings:
  {training_tokens: 4608, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 16, depth: 2,
   window: 4, learning_rate: 0.0000001, evaluate_at: [0.3333, 1.0], evaluation_bytes: 3000}
search:
  architecture: {choices: [mlp, transformer]}
  activation: {choices: [relu, swiglu]}
  learning_rate: {low: 0.005, high: 0.02, log: true, when: {architecture: transformer}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def test_a_search_over_both_generations_crowns_a_transformer_that_is_served(place):
    (place / "both.yaml").write_text(SPACE)
    output = finish(start(place, "--space", "both.yaml", "--name", "both"))
    folder, result = only_search(place)
    tried = [trial["settings"] for trial in result["trials"]]
    assert {each["architecture"] for each in tried} == {"mlp", "transformer"}
    assert {each["activation"] for each in tried} == {"relu", "swiglu"}
    assert all(("learning_rate" in each) == (each["architecture"] != "mlp") for each in tried)
    assert result["finalists"][0]["settings"]["architecture"] == "transformer"
    assert "architecture transformer" in output

    report = (folder / "report.html").read_text()
    for layer in (1, 2):
        assert f"layer {layer} of 2" in report
        assert (folder / "plots" / f"attention_layer_{layer}.svg").exists()

    _, version = load_engine("champion", Resources(), home=place / "home")
    assert version == "1"
    home = {"SMALLM_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    with live_server({"models": "champion"}, home) as address:
        client = Client(address)
        asked = {"model": "champion", "prompt": "the model"}
        status, _, answer = client.ask("/v1/completions", asked | {"max_tokens": 5})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 5)
        status, _, answer = client.ask("/v1/next-words", {"prompt": "the model", "k": 3})
        assert (status, len(answer["models"]["champion"]["words"])) == (200, 3)
        status, _, answer = client.ask("/v1/attention", asked)
        assert (status, len(answer["heads"])) == (200, 4)
        status, _, answer = client.ask("/v1/learning-curves", {"model": "champion"})
        groups = answer["groups"]
        assert {group["architecture"] for group in groups} == {"mlp", "transformer"}
