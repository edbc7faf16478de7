"""The benchmark of quality trains both models on the same text."""

import pytest
import yaml

from benchmarks.quality import on_text_of
from smallm.settings import CorpusSettings, Settings


@pytest.mark.parametrize(
    "corpus",
    [
        {},
        {"source": "folder", "path": "/texts", "order": "stratified"},
        {"source": "arxiv", "path": "/a.json", "categories": ["cs.LG", "stat.*"], "drop": []},
    ],
)
def test_the_perceptron_has_the_text_of_the_config_and_nothing_else_of_it(smallm, tmp_path, corpus):
    chosen = {**corpus, "architecture": "transformer", "vocabulary": 512}
    champion = tmp_path / "settings.yaml"
    champion.write_text(Settings.from_flat(chosen).to_yaml())
    command = on_text_of(yaml.safe_load(champion.read_text()), tmp_path)
    shown = smallm("train", *command, "--architecture", "mlp", "--print-config")
    found = yaml.safe_load(shown.out)
    wanted = yaml.safe_load(smallm("train", "--config", champion, "--print-config").out)
    for name in CorpusSettings.model_fields:
        assert found[name] == wanted[name]
    assert found["vocabulary"] == Settings().tokens.vocabulary
