"""Pictures of models: what they show is what the models compute."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from click.testing import CliRunner

from smallm.attention_maps import MOST_TOKENS, attention_maps
from smallm.champion import save_model
from smallm.cli import cli
from smallm.embeddings import FEWEST_WORDS, Words, embedded_words, layout, neighbors
from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.models.huggingface import wrap
from smallm.pictures import (
    attention_plots,
    draw_model,
    embeddings_plot,
    model_record,
    neighbors_plot,
)
from smallm.predictors.attention import attend_together
from smallm.predictors.causal import Causal
from smallm.settings import ModelSettings, Settings

PROMPT = "Neural networks are layers"


def smallm(tokens, **shape):
    shape = ModelSettings(embedding=16, hidden=24, window=8, **shape)
    core = architecture(shape.architecture)(shape, tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(3))
    tiny_models.randomized(core)
    return Causal("mine", wrap(core, shape, tokens.tokenizer), tokens.tokenizer.huggingface())


def clustered(groups=6, each=30, width=24):
    """Words in groups that lie far from each other."""
    draw = np.random.default_rng(0)
    vectors = np.repeat(draw.normal(size=(groups, width)), each, 0)
    vectors += 0.1 * draw.normal(size=vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{chr(97 + group)}word{number}" for group in range(groups) for number in range(each)]
    return Words(names, vectors.astype(np.float32))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
def test_attention_is_what_an_eager_model_tells(name):
    model, tokenizer = getattr(tiny_models, name)()
    attend_together(model)
    predictor = Causal(name, model, tokenizer)
    found = attention_maps(predictor, PROMPT)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[*predictor.opening, *predictor.encode(PROMPT)]])
    told = model(input_ids=ids, output_attentions=True).attentions
    assert len(found.weights) == len(told) > 0
    assert len(found.tokens) == ids.shape[1]
    for mine, theirs in zip(found.weights, told, strict=True):
        torch.testing.assert_close(mine, theirs[0].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_of_a_smallm_sums_to_one_and_never_looks_ahead(bpe_tokens, kv_heads):
    predictor = smallm(bpe_tokens, architecture="transformer", heads=4, kv_heads=kv_heads, depth=3)
    found = attention_maps(predictor, "the first of them")
    assert [len(weights) for weights in found.weights] == [4, 4, 4]
    for weights in found.weights:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert weights.triu(1).abs().max() == 0


def test_bad_prompts_and_models_without_attention_are_one_line(bpe_tokens):
    with pytest.raises(SmallmError, match="mine: has no attention to draw"):
        attention_maps(smallm(bpe_tokens), PROMPT)
    predictor = Causal("gpt2", *tiny_models.gpt2())
    with pytest.raises(SmallmError, match="the prompt is empty"):
        attention_maps(predictor, " \n")
    with pytest.raises(SmallmError, match=f"at most {MOST_TOKENS}"):
        attention_maps(predictor, "a long text " * 40)


def test_neighbors_are_the_most_similar_words():
    words = clustered()
    found = neighbors(words, "cword4", count=5)
    assert all(name.startswith("cword") for name, _ in found)
    assert [cosine for _, cosine in found] == sorted((c for _, c in found), reverse=True)
    expected = words.vectors @ words.vectors[words.names.index("cword4")]
    assert found[0][1] == pytest.approx(np.sort(expected)[-2])
    with pytest.raises(SmallmError, match=r"'Cword4' is no word .* did you mean 'cword4'"):
        neighbors(words, "Cword4", count=5)


def test_a_layout_keeps_neighbours_and_chance_does_not():
    found = layout(clustered())
    for number in (5, 15):
        assert found.trust["t-SNE"][number] > 0.9
        assert found.trust["shuffled"][number] == pytest.approx(0.5, abs=0.06)
        assert found.trust["PCA"][number] < found.trust["t-SNE"][number]


def test_words_of_a_tokenizer_are_whole_and_met_once():
    model, tokenizer = tiny_models.llama()
    words = embedded_words(Causal("llama", model, tokenizer))
    assert len(words.names) == len(set(words.names)) >= FEWEST_WORDS
    assert all(name.isalpha() for name in words.names)
    np.testing.assert_allclose(np.linalg.norm(words.vectors, axis=1), 1, rtol=1e-5)


def test_pictures_are_whole_and_say_how_far_they_can_be_trusted(bpe_tokens):
    words = clustered()
    found = layout(words)
    predictor = smallm(bpe_tokens, architecture="transformer", heads=4, depth=2)
    maps = attention_maps(predictor, "the first of them")
    plots = [
        embeddings_plot("mine", words.names, found),
        *attention_plots("mine", maps.tokens, maps.weights),
        neighbors_plot("mine", "aword1", neighbors(words, "aword1", count=5)),
    ]
    for plot in plots:
        ElementTree.fromstring(plot.svg)
    assert "shuffled 0." in plots[0].caption
    assert [plot.name for plot in plots[2:4]] == ["attention_layer_1", "attention_layer_2"]
    for plot in plots[2:4]:
        assert all(f">{token}<" in plot.svg for token in maps.tokens if token.isalpha())


def test_the_record_of_a_transformer_is_drawn_with_its_attention(bpe_tokens):
    predictor = smallm(bpe_tokens, architecture="transformer", heads=4, depth=2)
    record = json.loads(json.dumps(model_record(predictor, ["the first", "of them"], None)))
    assert record["attention"]["tokens"] == list(attention_maps(predictor, "the first").tokens)
    names = [plot.name for plot in draw_model(record)]
    assert names == ["attention_heads", "attention_layer_1", "attention_layer_2"]
    assert model_record(smallm(bpe_tokens), ["the first"], None)["attention"] is None


def test_the_commands_write_files_and_tell_where(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLM_HOME", str(tmp_path / "home"))
    model, tokenizer = tiny_models.llama()
    model.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    name = str(tmp_path / "llama")
    run = CliRunner().invoke(
        cli, ["plot", "attention", name, "--prompt", PROMPT, "--layer", "1", "--json"]
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["heads"] == [4, 4]
    (one,) = found["files"]
    assert one.endswith("attention_layer_1.svg")
    whole = CliRunner().invoke(cli, ["plot", "attention", name, "--prompt", PROMPT, "--json"])
    files = json.loads(whole.stdout)["files"]
    for file in files:
        ElementTree.parse(file)
    layers = ["attention_layer_1.svg", "attention_layer_2.svg"]
    assert [Path(file).name for file in files] == ["attention_heads.svg", *layers]
    wrong = CliRunner().invoke(cli, ["plot", "attention", name, "--prompt", PROMPT, "--layer", "3"])
    assert isinstance(wrong.exception, SmallmError)
    assert "--layer 3" in str(wrong.exception)
    assert "has 2 layers" in str(wrong.exception)
    output = tmp_path / "here"
    run = CliRunner().invoke(
        cli, ["plot", "embeddings", name, "--words", "60", "--output", str(output)]
    )
    assert run.exit_code == 0, run.output
    assert "Trustworthiness" in run.output
    assert (output / "embeddings.svg").exists()
    words = embedded_words(Causal("llama", model, tokenizer)).names
    run = CliRunner().invoke(cli, ["plot", "neighbors", name, words[0], "-n", "3", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert len(told["neighbors"]) == 3
    (file,) = told["files"]
    ElementTree.parse(file)
    wrong = CliRunner().invoke(cli, ["plot", "neighbors", name, "no-such-word"])
    assert "is no word" in str(wrong.exception)


def test_the_command_names_a_model_without_attention(bpe_tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLM_HOME", str(tmp_path / "home"))
    settings = Settings().replace(window=4, embedding=8, hidden=8)
    core = architecture("mlp")(settings.model, bpe_tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(1))
    save_model(core, settings, bpe_tokens, tmp_path / "mine", heldout_above=0.9, card="")
    folder = str(tmp_path / "mine")
    run = CliRunner().invoke(cli, ["plot", "attention", folder, "--prompt", PROMPT])
    assert isinstance(run.exception, SmallmError)
    assert "has no attention to draw: it is no transformer" in str(run.exception)
