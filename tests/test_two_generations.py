"""One search over perceptrons and transformers, and the transformer that it crowns is served."""

import pytest
from test_search import finish, only_search, start
from test_search import place as place

from smallm.serving.loading import load_engine
from smallm.serving.protocol import CompletionRequest
from smallm.serving.settings import Resources

# Perceptrons learn at a rate that leaves them as they are: the champion is a transformer.
SPACE = """
trials: 6
seeds: [1, 2]
confirmed: 1
confirmation_seeds: [11, 12]
settings:
  {training_tokens: 4608, batch_size: 128, vocabulary: 400, hidden: 16, embedding: 16, window: 4,
   learning_rate: 0.0000001, evaluate_at: [0.3333, 1.0], evaluation_bytes: 3000}
search:
  architecture: {choices: [mlp, transformer]}
  activation: {choices: [relu, swiglu]}
  learning_rate: {low: 0.005, high: 0.02, log: true, when: {architecture: transformer}}
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def test_a_search_over_both_generations_crowns_a_transformer_that_is_served(place, monkeypatch):
    (place / "both.yaml").write_text(SPACE)
    output = finish(start(place, "--space", "both.yaml", "--name", "both"))
    _, result = only_search(place)
    tried = [trial["settings"] for trial in result["trials"]]
    assert {each["architecture"] for each in tried} == {"mlp", "transformer"}
    assert {each["activation"] for each in tried} == {"relu", "swiglu"}
    assert all(("learning_rate" in each) == (each["architecture"] != "mlp") for each in tried)
    assert result["finalists"][0]["settings"]["architecture"] == "transformer"
    assert "architecture transformer" in output

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    engine, version = load_engine("champion", Resources(), home=place / "home")
    assert version == "1"
    (words,) = engine.next_words([("the model", 3)])
    assert len(words["words"]) == 3
    answer = engine.begin(CompletionRequest(model="champion", prompt=["the"], max_tokens=5))
    while engine.busy:
        engine.step()
    assert sum(delta.tokens for delta in answer.taken()) == 5
    assert len(engine.inside.attention("the model", None)["heads"]) == 4
    groups = engine.inside.learning_curves()["groups"]
    assert {group["architecture"] for group in groups} == {"mlp", "transformer"}
