"""Hidden units: what is called dead or saturated is, in training, in models and in pictures."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import tiny_models
import torch

from smallm.activity import SAMPLE
from smallm.activity_plots import activity_over_training, layers_plot, looks_of
from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.models.activations import ACTIVATIONS, GATED
from smallm.plots import tokens_shown
from smallm.predictors.causal import Causal
from smallm.predictors.masked import Masked
from smallm.results import reported, trial_record
from smallm.scoring import places_before, score
from smallm.settings import ModelSettings, Settings
from smallm.training import Training
from smallm.watching import activity_on, watched

SMALL = Settings().replace(
    window=4,
    embedding=8,
    hidden=16,
    batch_size=64,
    training_tokens=1_920,
    seeds=[1, 2],
    evaluate_at=[0.5, 1.0],
    evaluation_bytes=3_000,
    precision="fp32",
    vocabulary=400,
    replication="sequential",
)
UNITS = 16


def mlp(activation, bias):
    """A perceptron whose first three units get a bias."""
    shape = ModelSettings(embedding=8, hidden=UNITS, window=4, activation=activation)
    core = architecture("mlp")(shape, 50)
    core.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        core.layers[0].bias[:3] = bias
    return core


def seen(core):
    windows = torch.randint(50, (3000, 4), generator=torch.Generator().manual_seed(1))
    with watched(core) as units:
        core(windows)
    return units.activity()


@pytest.mark.parametrize("name", ["relu", "relu2", "gelu", "silu", "tanh", "sigmoid"])
@pytest.mark.parametrize("bias", [-100.0, 0.0])
def test_units_that_stay_where_they_are_are_dead(name, bias):
    (layer,) = seen(mlp(name, bias)).layers
    assert layer.units == UNITS
    assert layer.dead == (3 / UNITS if bias else 0)
    assert layer.saturated >= layer.dead


def test_a_leaky_unit_is_never_dead_and_a_unit_far_above_zero_only_where_it_is_bounded():
    assert seen(mlp("leaky_relu", -100.0)).of_all()["dead_units"] == 0
    assert seen(mlp("leaky_relu", -100.0)).of_all()["saturated_units"] == 0
    assert seen(mlp("relu", 100.0)).of_all()["dead_units"] == 0
    assert seen(mlp("tanh", 100.0)).of_all()["dead_units"] == 3 / UNITS


def test_figures_are_those_of_the_first_places():
    core = mlp("relu", 0.0)
    windows = torch.randint(50, (3000, 4), generator=torch.Generator().manual_seed(1))
    x = core.layers[0](core.embedding(windows[:SAMPLE]).flatten(1))
    (layer,) = seen(core).layers
    assert layer.mean == pytest.approx(float(x.relu().mean()), rel=1e-5)
    assert layer.saturated == pytest.approx(float((x <= 0).float().mean()), abs=1e-6)
    assert not core.activations[0]._forward_hooks  # nothing is looked at any more


@pytest.mark.parametrize("replication", ["sequential", "stacked"])
def test_training_tells_of_every_seed_what_its_model_does(bpe_tokens, replication):
    selection, _ = bpe_tokens.tape.heldout([0.8])
    settings = SMALL.replace(replication=replication, activation="relu", depth=2)
    training = Training(settings, bpe_tokens, selection=selection)
    records = list(training)
    assert [set(each.activity) for each in records] == [{1, 2}, {1, 2}]
    for seed, found in records[-1].activity.items():
        assert [layer.units for layer in found.layers] == [UNITS, UNITS]
        core = training.trained(seed)
        with watched(core) as units:
            score(core, bpe_tokens, training.selection, window=4)
        assert units.activity() == found


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS, *GATED}))
def test_a_transformer_has_a_row_for_each_layer(activation):
    shape = ModelSettings(
        architecture="transformer", embedding=16, hidden=24, depth=3, activation=activation
    )
    core = architecture("transformer")(shape, 50)
    core.initialize(torch.Generator().manual_seed(0))
    with watched(core) as units, torch.inference_mode():
        core(torch.randint(1, 50, (4, 100)))
    assert [layer.units for layer in units.activity().layers] == [24] * 3


@pytest.mark.parametrize(
    ("name", "units"), [("gpt2", 64), ("gpt_neo", 64), ("llama", 64), ("albert", 32)]
)
def test_pretrained_models_have_units_too(name, units):
    model, tokenizer = getattr(tiny_models, name)()
    kind = Masked if name == "albert" else Causal
    found = activity_on(kind(name, model, tokenizer), " ".join(tiny_models.TEXTS))
    assert found.layers[0].units == units
    assert 0 <= found.of_all()["dead_units"] <= 1
    ElementTree.fromstring(layers_plot(name, found).svg)


def searched(tokens):
    """Trials of three activations, as a search records them."""
    selection, _ = tokens.tape.heldout([0.8])
    trials = []
    for number, name in enumerate(["relu", "tanh", "relu"]):
        settings = SMALL.replace(activation=name, learning_rate=0.004 / (1 + number))
        rows = [
            reported(progress, reduction=3)
            for progress in Training(settings, tokens, selection=selection)
        ]
        point = {"activation": name}
        what = {"id": str(number), "number": number, "settings": point, "rows": rows}
        trials.append(trial_record(**what, error=None, interrupted=False, seeds=[1, 2]))
    return {"trials": trials, "settings": {"architecture": "mlp"}}


def test_a_search_draws_one_strong_line_for_each_activation(bpe_tokens):
    result = searched(bpe_tokens)
    plot = activity_over_training(result, tokens_shown)
    words = "".join(ElementTree.fromstring(plot.svg).itertext())
    assert words.count("relu") == words.count("tanh") == 1
    assert "Dead at the end: relu" in plot.caption
    json.dumps(result)
    for trial in result["trials"]:
        for point in trial["curve"]:
            point.pop("activity")  # as searches of before have none
    assert activity_over_training(result, tokens_shown) is None


def test_trained_models_are_drawn_beside_each_other(smallm, small_corpus, tmp_path):
    options = ["--source", "folder", "--path", small_corpus, "--vocabulary", 400, "--hidden", 16]
    options += ["--training-tokens", 4096, "--seeds", 1, "--threads", 1, "--evaluate-at", "0.5,1"]
    for name in ("relu", "gelu"):
        run = smallm("train", *options, "--activation", name, "--output", tmp_path / name)
        assert run.code == 0, run.err
    both = [tmp_path / name for name in ("relu", "gelu")]
    run = smallm("plot", "activations", *both, "--output", tmp_path / "plots", "--json")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    assert set(found["models"]) == {str(folder) for folder in both}
    assert len(set(found["files"])) == 3
    assert "gelu" in (tmp_path / "plots" / "activations.svg").read_text()
    run = smallm("plot", "curves", *both)
    assert run.code == 0, run.err
    assert "plots/relu-and-gelu/learning_curves.svg" in run.out
    run = smallm("plot", "curves", *both, "--output", tmp_path / "plots")
    assert run.code == 0, run.err
    assert "gelu" in (tmp_path / "plots" / "learning_curves.svg").read_text()
    run = smallm("plot", "curves", tmp_path)
    assert run.code == 1
    assert "holds no learning curve" in run.err


def test_a_model_without_activations_is_one_line():
    model, tokenizer = tiny_models.gpt2()
    for block in model.transformer.h:
        block.mlp.act = torch.nn.Identity()
    with pytest.raises(SmallmError, match="gpt2: has no activation functions"):
        activity_on(Causal("gpt2", model, tokenizer), "some text")


def test_what_leads_to_the_text_that_is_scored_is_not_looked_at(bpe_tokens):
    """A transformer reads what stands before a slice too, which may be text it was trained on."""
    shape = ModelSettings(
        architecture="transformer", embedding=16, hidden=UNITS, depth=2, heads=2, window=8
    )
    core = architecture("transformer")(shape, bpe_tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(0))
    part = bpe_tokens.tape.beginning(bpe_tokens.tape.heldout([0.8])[0], 20_000)
    first, last = bpe_tokens.span(part)
    assert last - first > SAMPLE
    before = places_before(core, 8)
    assert before == core.reach - 1
    with watched(core, before=before) as units:
        score(core, bpe_tokens, part, window=8)
    found = units.activity().layers[0]
    outputs = []
    core.layers[0].perceptron.activation.register_forward_hook(
        lambda module, given, output: outputs.append(output)
    )
    start = first - core.reach
    ids = torch.from_numpy(bpe_tokens.tokens[start : first + SAMPLE].astype("int64"))[None]
    with torch.no_grad():
        core(ids)
    held_out = outputs[0][0, core.reach :][:SAMPLE]
    assert found.mean == pytest.approx(float(held_out.mean()), rel=1e-4)


def test_no_text_and_no_such_model_are_one_line(smallm, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    model, tokenizer = tiny_models.gpt2()
    with pytest.raises(SmallmError, match="gpt2: the text is empty"):
        activity_on(Causal("gpt2", model, tokenizer), "")
    run = smallm("plot", "curves", "nosuch")
    assert run.code == 1
    assert "nosuch: is neither a folder of `smallm train` nor a search; known: none" in run.err


def test_every_activation_function_of_every_architecture_has_its_own_look():
    names = [*ACTIVATIONS, *GATED]
    looks = looks_of((name, kind) for name in names for kind in ("mlp", "transformer"))
    assert len({(look["color"], look["ls"]) for look in looks.values()}) == 2 * len(names)
