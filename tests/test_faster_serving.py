"""What makes a served model faster leaves its answers as they are."""

import copy

import pytest
import tiny_models
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from smallm.models import architecture
from smallm.models.huggingface import wrap
from smallm.predictors.attention import NAME, attend_together
from smallm.predictors.packing import PackedLinear, pack
from smallm.serving.loading import load_engine
from smallm.serving.protocol import CompletionRequest
from smallm.serving.settings import Resources
from smallm.settings import ModelSettings

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


MODELS = {
    "gpt2": lambda: tiny_models.gpt2()[0],
    "gpt_neo": lambda: tiny_models.gpt_neo()[0],
    "llama": lambda: tiny_models.llama()[0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_packed_layers_multiply_as_before(name, dtype):
    model = MODELS[name]().to(dtype).eval()
    before = model(input_ids=IDS).logits
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    pack(model)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == len(layers) > 0
    near = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=near, atol=near)


def test_what_cannot_be_packed_is_left_alone():
    layer = nn.Sequential(nn.Linear(3, 2).double())
    pack(layer)
    assert isinstance(layer[0], nn.Linear)


@torch.inference_mode()
def test_one_new_token_attends_as_before_with_and_without_padding():
    plain = tiny_models.llama()[0].eval()
    config = plain.config
    assert config.num_key_value_heads < config.num_attention_heads  # else nothing differs
    together = copy.deepcopy(plain)
    attend_together(together)
    assert together.config._attn_implementation == NAME
    for mask in (None, torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])):
        found = [_last_by_cache(model, mask) for model in (plain, together)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
        whole = plain(input_ids=IDS, attention_mask=mask, position_ids=_places(mask)).logits[:, -1]
        torch.testing.assert_close(found[1], whole, rtol=1e-4, atol=1e-4)


def _places(mask):
    return None if mask is None else (mask.cumsum(1) - 1).clamp_min(0)


def _last_by_cache(model, mask):
    """Logits after the last id, the others having been read before."""
    places = _places(mask)
    read = None if mask is None else mask[:, :-1]
    out = model(
        input_ids=IDS[:, :-1],
        attention_mask=read,
        position_ids=None if places is None else places[:, :-1],
        use_cache=True,
    )
    return model(
        input_ids=IDS[:, -1:],
        attention_mask=mask,
        position_ids=None if places is None else places[:, -1:],
        past_key_values=out.past_key_values,
    ).logits[:, -1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_of_our_own_is_served(tied, bpe_tokens, tmp_path):
    shape = ModelSettings(
        architecture="transformer", window=8, embedding=16, hidden=24, depth=2, heads=4, tied=tied
    )
    core = architecture("transformer")(shape, bpe_tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(3))
    tiny_models.randomized(core)
    wrap(core, shape, bpe_tokens.tokenizer).save_pretrained(tmp_path)
    bpe_tokens.tokenizer.huggingface().save_pretrained(tmp_path)
    engine, _ = load_engine(str(tmp_path), Resources(), home=tmp_path)
    (words,) = engine.next_words([("the first", 3)])
    assert words["words"]
    assert engine.score("the first")["bits_per_byte"] > 0
    answer = engine.begin(
        CompletionRequest(model="m", prompt=["the", "a text"], max_tokens=5, temperature=0), []
    )
    while engine.busy:
        engine.step()
    assert sum(delta.tokens for delta in answer.taken()) == 10
