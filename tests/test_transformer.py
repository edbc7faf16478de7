"""SmaLLM v2 against transformers' Qwen3, which has the same parts, and against its own rules."""

import math

import pytest
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from smallm import training
from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.models.activations import ACTIVATIONS, GATED
from smallm.models.huggingface import wrap
from smallm.models.transformer import LARGEST_LOGIT, normalized, sight_of, written_attention
from smallm.muon import Muon
from smallm.replicates import Group
from smallm.settings import PRESETS, ModelSettings, Settings
from smallm.tokens import END_ID

VOCABULARY = 40
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "perceptron.hidden": "mlp.gate_proj",
    "perceptron.gated": "mlp.up_proj",
    "perceptron.output": "mlp.down_proj",
}


def shape(**changes):
    given = {"window": 4, "embedding": 16, "hidden": 24, "depth": 3, "heads": 4, "kv_heads": 2}
    return ModelSettings(architecture="transformer", **{**given, **changes})


def random_core(settings, std=0.5):
    core = architecture("transformer")(settings, VOCABULARY)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in core.parameters():
            weight.normal_(std=std, generator=generator)
    return core.eval()


def random_ids(rows=3, length=21, seed=0):
    """Ids without one that opens a document."""
    return torch.randint(
        1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def qwen3(core, settings):
    """Qwen3 with the weights of a core."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=settings.embedding,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.embedding // settings.heads,
        hidden_act={"swiglu": "silu", "geglu": "gelu"}[settings.activation],
        rms_norm_eps=torch.finfo(torch.float32).eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        use_sliding_window=True,
        sliding_window=settings.window,
        max_window_layers=0,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config).eval()
    weights = dict(core.named_parameters())
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(normalized(weights["embedding.weight"]))
        model.lm_head.weight.copy_(weights["output.weight"] * 128 / settings.embedding)
        for number, layer in enumerate(model.model.layers):
            for mine, theirs in NAMES.items():
                module = layer.get_submodule(theirs)
                module.weight.copy_(weights[f"layers.{number}.{mine}.weight"])
            core.layers[number].attention.sharpness.fill_(1.0)
    return model


@pytest.mark.parametrize("activation", sorted(GATED))
def test_the_logits_are_those_of_qwen3_with_a_soft_cap(activation):
    settings = shape(tied=False, activation=activation)
    core = random_core(settings)
    model = qwen3(core, settings)
    ids = random_ids()
    with torch.no_grad():
        expected = LARGEST_LOGIT * torch.tanh(model(ids).logits / LARGEST_LOGIT)
        torch.testing.assert_close(core(ids), expected, **CLOSE)


@pytest.mark.parametrize("bigrams", [0, 30])
def test_documents_in_one_sequence_are_those_read_alone(bigrams):
    core = random_core(shape(bigrams=bigrams))
    parts = [torch.cat([torch.zeros(1, 1, dtype=int), random_ids(1, 9, n)], 1) for n in range(3)]
    with torch.no_grad():
        together = core(torch.cat(parts, 1))
        alone = torch.cat([core(part) for part in parts], 1)
    torch.testing.assert_close(together, alone, **CLOSE)


@pytest.mark.parametrize("bigrams", [0, 30])
def test_logits_depend_on_what_is_in_reach_and_on_nothing_else(bigrams):
    core = random_core(shape(bigrams=bigrams))
    ids = random_ids(1, 30).repeat(30, 1)
    ids[torch.arange(30), torch.arange(30)] = 1 + ids.diagonal() % (VOCABULARY - 1)  # one changed
    with torch.no_grad():
        plain, changed = core(random_ids(1, 30))[0, -1], core(ids)[:, -1]
    moved = (changed - plain).abs().amax(1) > 1e-5
    assert moved.nonzero().flatten().tolist() == list(range(30 - core.reach, 30))


def test_every_token_sees_itself_the_window_before_and_its_own_document():
    text = torch.tensor([[5, 6, 0, 7, 8, 9, 0]])
    sight = sight_of(text, window=3)
    assert sight.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert sight.before.tolist() == [[0, 5, 0, 0, 7, 8, 0]]


@pytest.mark.parametrize("bigrams", [0, 30])
def test_a_text_read_in_pieces_with_a_cache_is_the_text_read_at_once(bpe_tokens, bigrams):
    settings = shape(bigrams=bigrams)
    core = architecture("transformer")(settings, bpe_tokens.vocabulary)
    with torch.no_grad():
        for weight in core.parameters():
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(weight.numel()))
    model = wrap(core, settings, bpe_tokens.tokenizer)
    ids = random_ids(2, 24)
    ids[0, 3] = ids[1, 13] = 0  # documents that open in one piece go on in the next
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(ids).logits
        pieces = [model(part, past_key_values=cache).logits for part in ids.split([9, 1, 1, 13], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS, *GATED}))
@pytest.mark.parametrize("tied", [True, False])
def test_every_shape_gives_finite_logits_and_gradients(activation, tied):
    core = random_core(shape(activation=activation, tied=tied, bigrams=9))
    logits = core(random_ids())
    assert logits.shape == (3, 21, VOCABULARY)
    logits.logsumexp(-1).sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in core.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_training_starts_from_the_uniform_distribution_and_layers_that_change_nothing(tied):
    core = architecture("transformer")(shape(tied=tied, bigrams=7), VOCABULARY)
    core.initialize(torch.Generator().manual_seed(1))
    assert not core(random_ids()).any()
    x = torch.randn(2, 5, 16)
    sight = sight_of(random_ids(2, 5), window=4)
    rotation = torch.ones(2, 1, 1, 5, 2)
    for layer in core.layers:
        assert torch.equal(layer(x, rotation, sight.visible[:, None], None), x)


def test_a_seed_fixes_all_weights():
    cores = [architecture("transformer")(shape(), VOCABULARY) for _ in range(2)]
    for core in cores:
        core.initialize(torch.Generator().manual_seed(1))
    assert all(map(torch.equal, *(core.parameters() for core in cores)))


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 0.8), ("small", 4.8), ("base", 14.3)])
def test_presets_have_the_parameters_that_their_explanation_names(preset, millions):
    settings = ModelSettings(architecture="transformer", preset=preset)
    assert {name: getattr(settings, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert ModelSettings(**settings.model_dump()) == settings
    with torch.device("meta"):
        core = architecture("transformer")(settings, VOCABULARY)
    own = sum(weight.numel() for weight in core.parameters()) - core.embedding.weight.numel()
    assert own / 1e6 == pytest.approx(millions, abs=0.05)
    assert f"{millions}" in ModelSettings.model_fields["preset"].description


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"embedding": 20}, r"embedding 20 is no multiple of 2 \* heads = 8: each head has an"),
        ({"kv_heads": 3}, r"heads 4 is no multiple of kv_heads 3"),
        ({"architecture": "mlp", "heads": 2}, "heads is a setting of architecture transformer"),
        ({"architecture": "mlp", "preset": "tiny"}, "preset is a setting of architecture tra"),
        ({"preset": ["tiny"]}, r"preset is \['tiny'\]: Input should be 'tiny'"),
        ({"preset": "huge"}, "preset is 'huge': Input should be 'tiny', 'small' or 'base'"),
        ({"learned_temperature": False}, "plain logits have no temperature: give norm"),
        ({"batch_size": 1000}, r"batch_size 1000 is no multiple of 32: .* 2 \* window tokens"),
    ],
)
def test_a_mistake_is_one_line(values, expected):
    with pytest.raises(SmallmError, match=expected) as caught:
        Settings.from_flat({"architecture": "transformer", **values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_written_out_is_torchs_own_to_rounding(kv_heads, dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 4, 10, 8), (3, kv_heads, 10, 8), (3, kv_heads, 10, 8)]
    given = [torch.randn(size, generator=generator).bfloat16().float() for size in sizes]
    text = random_ids(3, 10)
    text[:, 4] = END_ID
    visible = sight_of(text, window=5).visible[:, None]
    found, gradients = [], []
    for written in (True, False):
        query, key, value = (each.clone().requires_grad_() for each in given)
        if written:
            mixed = written_attention(query, key, value.to(dtype), visible)
            assert mixed.dtype == dtype
        else:
            mixed = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, enable_gqa=True
            )
        mixed.float().square().sum().backward()
        found.append(mixed.detach().float())
        gradients.append([each.grad for each in (query, key, value)])
    half = dtype == torch.bfloat16
    torch.testing.assert_close(*found, rtol=0, atol=0.05 if half else 1e-6)
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < (0.03 if half else 1e-5) * other.norm()


def test_of_single_models_only_training_in_half_precision_attends_so(monkeypatch):
    used = []
    monkeypatch.setattr(
        "smallm.models.transformer.written_attention",
        lambda *given: used.append(1) or written_attention(*given),
    )
    core = random_core(shape())
    ids = random_ids()
    core.train()(ids)
    with torch.autocast("cpu", torch.bfloat16):
        core.eval()(ids)
        assert not used
        core.train()(ids)
    assert len(used) == len(core.layers)


@pytest.mark.parametrize("dimension", ["attention", "perceptron"])
def test_muon_moves_hidden_matrices_and_adamw_the_rest(dimension):
    settings = Settings(model=shape(bigrams=9, tied=False)).replace(optimizer="muon", seeds=[1])
    group = Group(settings, VOCABULARY, [1], torch.device("cpu"))
    muon, adamw = group.optimizers
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    moved = {id(weight) for each in muon.param_groups for weight in each["params"]}
    for name, weight in group.weights.items():
        hidden = name.startswith("layers.") and weight.ndim == 2
        assert (id(weight) in moved) == hidden
    assert any(dimension in name for name, weight in group.weights.items() if id(weight) in moved)
    rest = [weight for each in adamw.param_groups for weight in each["params"]]
    assert len(rest) + len(moved) == len(group.weights)


def test_the_first_loss_is_that_of_the_uniform_distribution():
    group = Group(Settings(model=shape()), VOCABULARY, [1], torch.device("cpu"))
    loss = group.step(random_ids()[None], random_ids()[None], factor=1.0, noise=0)
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=1e-5)


@pytest.mark.parametrize(
    ("width", "vocabulary", "expected"), [(64, 66, True), (32, 66, False), (32, 500, True)]
)
def test_half_precision_is_used_where_it_is_faster(monkeypatch, width, vocabulary, expected):
    monkeypatch.setattr(training, "half_dtype", lambda _: torch.bfloat16)
    settings = Settings(model=shape(embedding=width))
    dtype = training.product_dtype(settings, vocabulary, torch.device("cpu"))
    assert (dtype == torch.bfloat16) is expected
