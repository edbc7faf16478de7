"""SmaLLMs are Hugging Face models; the oracle is the plain module on training windows."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.func import functional_call

from smallm.batches import windows_before
from smallm.champion import load_core, save_model, saved_temperature
from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.models.activations import ACTIVATIONS, GATED
from smallm.models.huggingface import wrap
from smallm.models.windows import windows_of
from smallm.settings import ModelSettings, Settings


def small(**changes):
    return ModelSettings(**{"window": 5, "embedding": 6, "hidden": 7, **changes})


def random_core(settings, vocabulary):
    core = architecture("mlp")(settings, vocabulary)
    generator = torch.Generator().manual_seed(3)
    core.initialize(generator)
    with torch.no_grad():
        for weight in core.parameters():
            weight.normal_(std=0.5, generator=generator)
    return core.eval()


def first_document(tokens):
    """Lossless ids of the first document after the opening id."""
    (ids,) = tokens.tokenizer.encode([tokens.tape.text(0)])
    return torch.tensor([[0, *ids.tolist()]])


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS, *GATED}))
def test_every_shape_gives_finite_logits_and_gradients(activation, tied, depth, normalized):
    settings = small(activation=activation, tied=tied, depth=depth, normalized_output=normalized)
    core = random_core(settings, 50).double()
    windows = torch.randint(50, (4, 5), generator=torch.Generator().manual_seed(0))
    logits = core(windows)
    assert logits.shape == (4, 50)
    logits.logsumexp(1).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in core.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_normalized_logits_are_scaled_cosines_and_a_bias(tied):
    core = random_core(small(tied=tied, normalized_output=True, activation="tanh"), 20)
    windows = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(0))
    weights = {name: weight.detach() for name, weight in core.named_parameters()}
    embedded = weights["embedding.weight"]
    for row, window in enumerate(windows):
        x = torch.cat([embedded[token] for token in window])
        x = torch.tanh(weights["layers.0.weight"] @ x + weights["layers.0.bias"])
        x = weights["projection.weight"] @ x if tied else x
        rows = embedded if tied else weights["output.weight"]
        for token in range(20):
            cosine = x @ rows[token] / (x.norm() * rows[token].norm())
            expected = weights["log_scale"].exp() * cosine + weights["bias"][token]
            assert core(windows)[row, token].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_the_learned_temperature_is_that_of_finite_differences(tied):
    core = random_core(small(tied=tied, normalized_output=True), 12).double()
    windows = torch.randint(12, (3, 5), generator=torch.Generator().manual_seed(0))

    def logits(log_scale):
        return functional_call(core, {"log_scale": log_scale}, (windows,))

    assert torch.autograd.gradcheck(logits, core.log_scale.detach().requires_grad_())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_fixed_temperature_is_what_a_learned_one_starts_from_and_no_weight(name, tied):
    ids = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(0))
    found = {}
    for learned in (True, False):
        settings = small(
            architecture=name,
            embedding=16,
            hidden=16,
            tied=tied,
            normalized_output=True,
            learned_temperature=learned,
        )
        core = architecture(name)(settings, 20)
        core.initialize(torch.Generator().manual_seed(4))
        found[learned] = core
    torch.testing.assert_close(found[False](ids), found[True](ids))
    assert set(found[True].state_dict()) - set(found[False].state_dict()) == {"log_scale"}


def test_a_normalized_output_starts_half_a_nat_from_the_uniform_distribution():
    vocabulary = 500
    core = architecture("mlp")(small(embedding=64, normalized_output=True), vocabulary)
    core.initialize(torch.Generator().manual_seed(1))
    windows = torch.randint(vocabulary, (200, 5), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(core(windows), torch.arange(200))
    assert loss.item() == pytest.approx(math.log(vocabulary) + 0.5, abs=0.15)


def test_a_plain_output_draws_the_weights_it_always_drew():
    """Written out once more: a new setting must not move the seeds of models that lack it."""
    core = architecture("mlp")(small(depth=2), 20)
    core.initialize(torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    expected = {
        "embedding.weight": torch.empty(20, 6).normal_(std=6**-0.5, generator=generator),
        "layers.0.weight": torch.empty(7, 30).normal_(std=(2 / 30) ** 0.5, generator=generator),
        "layers.1.weight": torch.empty(7, 7).normal_(std=(2 / 7) ** 0.5, generator=generator),
        "layers.0.bias": torch.zeros(7),
        "layers.1.bias": torch.zeros(7),
        "projection.weight": torch.zeros(6, 7),
        "bias": torch.zeros(20),
    }
    assert set(core.state_dict()) == set(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in core.state_dict().items())


def test_the_logits_of_the_wrapper_are_those_of_the_module_on_training_windows(bpe_tokens):
    settings = small()
    core = random_core(settings, bpe_tokens.vocabulary)
    model = wrap(core, settings, bpe_tokens.tokenizer)
    ids = first_document(bpe_tokens)
    positions = np.arange(1, ids.shape[1])
    windows, targets = windows_before(bpe_tokens, positions, settings.window)
    np.testing.assert_array_equal(windows, windows_of(ids, settings.window)[0, :-1].numpy())
    np.testing.assert_array_equal(targets, ids[0, 1:].numpy())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0, :-1], core(torch.from_numpy(windows)))


def test_a_word_model_gives_words_and_bytes_one_distribution(word_tokens):
    settings = small()
    model = wrap(random_core(settings, word_tokens.vocabulary), settings, word_tokens.tokenizer)
    with torch.no_grad():
        logits = model(first_document(word_tokens)).logits
    torch.testing.assert_close(
        logits.logsumexp(-1), torch.zeros(logits.shape[:2]), atol=1e-4, rtol=0
    )


def test_a_text_costs_its_predicted_tokens_and_its_spelling(word_tokens):
    settings, tokenizer = small(), word_tokens.tokenizer
    core = random_core(settings, word_tokens.vocabulary)
    model = wrap(core, settings, tokenizer)
    (ids,) = tokenizer.encode(["The zqx model 日本 reads."])
    with torch.no_grad():
        whole = torch.tensor([[0, *ids.tolist()]])
        scores = model(whole).logits.log_softmax(-1)[0, :-1]
        cost = -scores.gather(1, whole[0, 1:, None]).sum()
        seen = torch.tensor([[0, *tokenizer.predicted(ids).tolist()]])
        words = core(windows_of(seen, settings.window)[0, :-1]).log_softmax(-1)
        expected = -words.gather(1, seen[0, 1:, None]).sum() + tokenizer.spelling_nll(ids).sum()
    assert cost.item() == pytest.approx(expected.item(), rel=1e-5)


def test_padding_on_the_left_changes_nothing(tokens):
    settings = small()
    model = wrap(random_core(settings, tokens.vocabulary), settings, tokens.tokenizer)
    ids = first_document(tokens)[:, 1:12]
    padded = torch.cat([torch.full((1, 3), 7), ids], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(padded, attention_mask=mask).logits[:, 3:], model(ids).logits
        )


def test_a_saved_model_loads_after_import_smallm_with_the_same_logits(tokens, tmp_path):
    settings = Settings().replace(window=5, embedding=6, hidden=7, activation="tanh")
    core = random_core(settings.model, tokens.vocabulary)
    save_model(core, settings, tokens, tmp_path, heldout_above=0.9, card="# A model\n")
    ids = first_document(tokens)[:, :20]
    with torch.no_grad():
        expected = wrap(core, settings.model, tokens.tokenizer)(ids).logits
    code = (
        "import sys, torch, smallm\n"
        "assert 'transformers' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = torch.load(sys.argv[2], weights_only=True)\n"
        "torch.save(model(ids).logits.detach(), sys.argv[2])\n"
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0]))\n"
    )
    torch.save(ids, tmp_path / "ids.pt")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, tmp_path / "ids.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "ids.pt", weights_only=True), expected)
    again, shape, tokenizer = load_core(tmp_path)
    assert shape == settings.model
    assert repr(tokenizer) == repr(tokens.tokenizer)
    for name, weight in core.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_loading_in_half_precision_leaves_the_spelling_as_it_is(word_tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    settings = Settings().replace(window=5, embedding=6, hidden=7)
    core = random_core(settings.model, word_tokens.vocabulary)
    save_model(core, settings, word_tokens, tmp_path, heldout_above=0.9, card="")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    found, kept = model.spelling.model.arrays(), word_tokens.tokenizer.spelling.arrays()
    assert all(np.array_equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_normalized_model_is_the_same_to_the_bit_when_loaded_again(
    tokens, tmp_path, tied, learned
):
    shape = {"window": 5, "embedding": 6, "hidden": 7, "tied": tied}
    settings = Settings().replace(**shape, normalized_output=True, learned_temperature=learned)
    core = random_core(settings.model, tokens.vocabulary)
    save_model(core, settings, tokens, tmp_path, heldout_above=0.9, card="")
    again, shape, _ = load_core(tmp_path)
    assert shape == settings.model
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(tokens.vocabulary, (9, 5), generator=generator)
    with torch.no_grad():
        assert torch.equal(again(windows), core(windows))


def test_a_model_that_was_saved_before_a_setting_existed_loads(bpe_tokens, tmp_path):
    settings = Settings().replace(window=5, embedding=6, hidden=7)
    core = random_core(settings.model, bpe_tokens.vocabulary)
    save_model(core, settings, bpe_tokens, tmp_path, heldout_above=0.9, card="")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["shape"]["normalized_output"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, shape, _ = load_core(tmp_path)
    assert shape == settings.model
    for name, weight in core.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_a_fitted_temperature_is_saved_and_is_what_generate_samples_with(tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    settings = Settings().replace(window=5, embedding=6, hidden=7)
    core = random_core(settings.model, tokens.vocabulary)
    save_model(core, settings, tokens, tmp_path, heldout_above=0.9, card="", temperature=0.4)
    assert saved_temperature(tmp_path) == 0.4
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.temperature == 0.4
    ids = first_document(tokens)[:, :9]

    def written(**options):
        torch.manual_seed(1)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, top_k=0, **options
        )
        return made[0].tolist()

    assert written(do_sample=True) == written(do_sample=True, temperature=0.4)
    assert written(do_sample=True) != written(do_sample=True, temperature=1.0)
    assert written() == written(do_sample=True)


def test_a_model_without_a_fitted_temperature_says_so(bpe_tokens, tmp_path):
    settings = Settings().replace(window=5, embedding=6, hidden=7)
    core = random_core(settings.model, bpe_tokens.vocabulary)
    save_model(core, settings, bpe_tokens, tmp_path, heldout_above=0.9, card="")
    with pytest.raises(SmallmError, match="holds no fitted temperature; give --temperature a num"):
        saved_temperature(tmp_path)
