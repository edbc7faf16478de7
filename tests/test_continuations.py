"""Continuations side by side are those of each prompt alone, whenever they begin and end."""

import random

import pytest
import tiny_models
import torch
from transformers import DynamicCache

from smallm.models import architecture
from smallm.models.huggingface import wrap
from smallm.predictors import Decoding
from smallm.predictors import continuations as under_test
from smallm.predictors.causal import Causal
from smallm.predictors.continuations import Continuations
from smallm.predictors.kept_rows import SPARE, RoomyLayer
from smallm.settings import ModelSettings

MODELS = {
    "gpt2": lambda: tiny_models.gpt2(context=64),
    "gpt_neo": lambda: tiny_models.gpt_neo(context=64),
    "llama": tiny_models.llama,
}
PROMPTS = ["a", "Neural networks are layers", "She said: words, words, words", "", "12 patterns in"]


SHAPES = {
    "mlp": ModelSettings(window=4, embedding=8, hidden=16),
    "transformer": ModelSettings(
        architecture="transformer", window=4, embedding=16, hidden=16, depth=2, bigrams=40
    ),
}
SMALLMS = [f"{kind}_tokens {shape}" for kind in ("bpe", "word") for shape in SHAPES]


@pytest.fixture(scope="module", params=[*MODELS, *SMALLMS])
def causal(request):
    if request.param in MODELS:
        return Causal(request.param, *MODELS[request.param]())
    name, kind = request.param.split()
    tokens, shape = request.getfixturevalue(name), SHAPES[kind]
    core = architecture(kind)(shape, tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(3))
    tiny_models.randomized(core)
    model = wrap(core, shape, tokens.tokenizer)
    return Causal(kind, model, tokens.tokenizer.huggingface())


def alone(causal, prompt, decoding):
    return [step.chosen for step in causal.steps(causal.opened(prompt), decoding)]


def followed(under_way, rows, chosen):
    """Steps once and writes down what each row got."""
    for row, step in under_way.step():
        if step is not None:
            chosen[rows.index(row)].append(step.chosen)


@pytest.mark.parametrize("chance", range(2))
def test_each_row_is_what_it_is_alone_whenever_others_come_and_go(causal, chance, monkeypatch):
    monkeypatch.setattr(under_test, "PIECE", 5)  # prompts are read in pieces, some together
    monkeypatch.setattr(under_test, "MOST_ROWS", 4)
    draw = random.Random(chance)
    asked = [
        (draw.choice(PROMPTS), Decoding(max_tokens=draw.randint(1, 12), temperature=0))
        for _ in range(9)
    ]
    under_way, rows, chosen = Continuations(causal), [], []
    pending = list(asked)
    while pending or under_way.busy:
        while pending and draw.random() < 0.5:
            prompt, decoding = pending.pop(0)
            ids = causal.opened(prompt)
            rows += under_way.add(ids, [decoding], room=causal.room(ids))
            chosen.append([])
        followed(under_way, rows, chosen)
    assert chosen == [alone(causal, *each) for each in asked]


def test_rows_of_one_prompt_differ_only_by_their_seed(causal):
    decodings = [Decoding(max_tokens=6, seed=seed, temperature=5) for seed in (3, 3, 4, 5)]
    ids = causal.opened("Neural")
    under_way = Continuations(causal)
    rows = under_way.add(ids, decodings, room=causal.room(ids))
    chosen = [[] for _ in rows]
    while under_way.busy:
        followed(under_way, rows, chosen)
    assert chosen[0] == chosen[1]
    assert len({tuple(each) for each in chosen}) > 1
    assert chosen[2] == alone(causal, "Neural", decodings[2])


def test_a_row_that_is_given_up_is_not_stepped_and_leaves_the_others_alone(causal):
    under_way = Continuations(causal)
    decoding = Decoding(max_tokens=8, temperature=0)
    rows = []
    for prompt in PROMPTS[:3]:
        ids = causal.opened(prompt)
        rows += under_way.add(ids, [decoding], room=causal.room(ids))
    chosen = [[] for _ in rows]
    followed(under_way, rows, chosen)
    rows[1].room = 0
    while under_way.busy:
        followed(under_way, rows, chosen)
    assert len(chosen[1]) == 1
    assert [chosen[0], chosen[2]] == [alone(causal, PROMPTS[at], decoding) for at in (0, 2)]


def test_a_long_prompt_does_not_hold_up_the_others():
    causal = Causal("gpt2", *tiny_models.gpt2(context=1000))
    under_way = Continuations(causal)
    decoding = Decoding(max_tokens=40, temperature=0)
    short = causal.opened("a")
    long = causal.opened("word " * 180)
    assert len(long) > 2 * under_test.PIECE
    (first,) = under_way.add(short, [decoding], room=40)
    under_way.step()
    (second,) = under_way.add(long, [decoding], room=40)
    steps = [[row for row, _ in under_way.step()] for _ in range(5)]
    assert all(first in rows for rows in steps)
    assert second not in steps[1]
    assert second in steps[-1]


def test_a_layer_holds_what_transformers_own_layer_holds():
    generator = torch.Generator().manual_seed(0)
    layer, oracle = RoomyLayer(), DynamicCache()
    for columns in (3, 1, 1, SPARE, 1, 2 * SPARE):
        states = [torch.randn(2, 3, columns, 4, generator=generator) for _ in "kv"]
        expected = oracle.update(*states, 0)
        for mine, theirs in zip(layer.update(*states), expected, strict=True):
            assert torch.equal(mine, theirs)
        assert layer.get_seq_length() == oracle.get_seq_length()


def test_a_perceptron_keeps_nothing_and_attention_is_kept(causal):
    assert causal.keeps is (causal.name != "mlp")
