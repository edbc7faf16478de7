"""Losses, scheduled sampling, and ablations of them from the command line."""

import io
import json
import math

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from smallm.ablation_section import ablation_table
from smallm.ablations import ABLATIONS, Ablation, arms_of
from smallm.cli import cli
from smallm.errors import SmallmError
from smallm.losses import loss_of
from smallm.models.transformer import Transformer
from smallm.scheduled_sampling import with_guesses
from smallm.settings import ModelSettings, Settings, TrainingSettings
from smallm.tracking import local_uri
from smallm.training import Training

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
TARGETS = torch.tensor([2, 0])


def test_losses_have_the_values_that_their_formulas_give():
    first = math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 3
    expected = [first, math.log(3)]
    for training in (TrainingSettings(), TrainingSettings(loss="nll")):
        np.testing.assert_allclose(loss_of(training)(LOGITS, TARGETS), expected, rtol=1e-6)
    smooth = loss_of(TrainingSettings(label_smoothing=0.3))(LOGITS, TARGETS)
    over_all = np.mean([first + 3 - logit for logit in (1.0, 2.0, 3.0)])
    np.testing.assert_allclose(smooth, [0.7 * first + 0.3 * over_all, math.log(3)], rtol=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 500), st.floats(0.1, 30))
def test_cross_entropy_is_the_nll_of_the_log_softmax_to_rounding(seed, ids, scale):
    drawn = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(8, ids, generator=drawn)
    targets = torch.randint(ids, (8,), generator=drawn)
    one = loss_of(TrainingSettings())(logits, targets)
    other = loss_of(TrainingSettings(loss="nll"))(logits, targets)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def model(vocabulary=50):
    shape = ModelSettings(
        architecture="transformer", embedding=16, hidden=16, depth=1, heads=2, window=8
    )
    core = Transformer(shape, vocabulary)
    core.initialize(torch.Generator().manual_seed(1))
    return core


def test_guesses_take_their_share_and_leave_the_openings_alone():
    torch.manual_seed(0)
    inputs = torch.randint(0, 50, (64, 32))
    mixed = with_guesses(model(), inputs, 0.5)
    assert (mixed[:, 0] == inputs[:, 0]).all()
    assert ((mixed == 0) == (inputs == 0)).all()
    changed = (mixed != inputs)[:, 1:].float().mean()
    assert 0.4 < changed < 0.52  # a guess may be right, and openings stay
    assert (with_guesses(model(), inputs, 0.0) == inputs).all()


TINY = {
    "architecture": "transformer",
    "embedding": 16,
    "hidden": 32,
    "depth": 2,
    "heads": 2,
    "window": 16,
    "batch_size": 256,
    "training_tokens": 5_120,
    "evaluation_bytes": 2_000,
    "seeds": [42, 43],
}


def trained(tokens, **changes):
    config = Settings.from_flat({**TINY, **changes})
    selection, _ = tokens.tape.heldout([0.9])
    training = Training(config, tokens, selection=selection)
    *_, last = training
    return last


def test_scheduled_sampling_of_nothing_is_teacher_forcing_and_more_of_it_is_not(bpe_tokens):
    forced = trained(bpe_tokens)
    assert trained(bpe_tokens, scheduled_sampling=0.0).bits_per_byte == forced.bits_per_byte
    sampled = trained(bpe_tokens, scheduled_sampling=0.8)
    again = trained(bpe_tokens, scheduled_sampling=0.8)
    assert sampled.bits_per_byte == again.bits_per_byte
    assert all(sampled.bits_per_byte[seed] != forced.bits_per_byte[seed] for seed in (42, 43))
    assert sampled.tokens == forced.tokens


def test_losses_train_alike_and_smoothing_and_curricula_do_not(bpe_tokens):
    plain = trained(bpe_tokens, precision="fp32")
    nll = trained(bpe_tokens, precision="fp32", loss="nll")
    assert nll.mean == pytest.approx(plain.mean, abs=1e-4)
    for changes in ({"label_smoothing": 0.3}, {"curriculum": "length"}):
        other = trained(bpe_tokens, precision="fp32", **changes)
        assert other.tokens == plain.tokens
        assert other.mean != pytest.approx(plain.mean, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduled_sampling": 0.1}, "architecture mlp reads no sequences"),
        ({**TINY, "scheduled_sampling": 0.1, "replication": "stacked"}, "allowed are auto and"),
        ({"loss": "nll", "label_smoothing": 0.1}, "allowed is loss cross_entropy"),
        ({"curriculum_order": "random"}, "there is no curriculum"),
        ({"curriculum": "height"}, "curriculum is 'height'"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_a_lever_that_does_not_fit_is_one_clear_line(changes, message):
    with pytest.raises(SmallmError, match=message) as error:
        Settings.from_flat(changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_arms_of_an_ablation_differ_in_what_it_varies_and_nothing_else(name):
    control, *others = arms_of(name, {}).values()
    varied = ABLATIONS[name].varied | ({"seeds"} if ABLATIONS[name].other_seeds else set())
    for other in others:
        pairs = zip(control.flat().items(), other.flat().items(), strict=True)
        assert {key for (key, one), (_, two) in pairs if one != two} <= varied
        assert other != control
        assert len(other.training.seeds) == len(control.training.seeds) == 5


def test_an_ablation_does_not_take_what_it_varies_or_its_model_lacks():
    with pytest.raises(SmallmError, match="dropout: ablation dropout varies it; leave it out"):
        arms_of("dropout", {"dropout": 0.1})
    with pytest.raises(SmallmError, match="evaluate_at: an ablation scores once, at the end"):
        arms_of("dropout", {"evaluate_at": (0.5, 1.0)})
    with pytest.raises(SmallmError, match="known: activation, curriculum-length"):
        arms_of("activations", {})
    with pytest.raises(SmallmError, match="architecture mlp reads no sequences: allowed is trans"):
        arms_of("scheduled-sampling", {"architecture": "mlp"})


def run(*arguments):
    return CliRunner().invoke(cli, ["ablate", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def small(small_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLM_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fixed = {"vocabulary": 400, "hidden": 16, "embedding": 8, "window": 4, "batch-size": 128}
    flags = [part for name, value in fixed.items() for part in (f"--{name}", value)]
    return ["--source", "folder", "--path", small_corpus, *flags, "--threads", 1]


def test_an_ablation_trains_compares_and_is_recorded(small, tmp_path):
    done = run("label-smoothing", *small, "--training-tokens", 4_000, "--seeds", "1,2,3", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    control, *others = record["arms"]
    assert control["name"] == record["control"] == "0.0"
    assert "better_by" not in control
    assert [row["name"] for row in others] == ["0.05", "0.1"]
    for row in others:
        gaps = [
            control["bits_per_byte"]["per_seed"][seed] - row["bits_per_byte"]["per_seed"][seed]
            for seed in ("1", "2", "3")
        ]
        assert row["better_by"]["value"] == pytest.approx(np.mean(gaps))
        assert row["better_by"]["low"] <= row["better_by"]["value"] <= row["better_by"]["high"]
        assert row["sentence"] in record["conclusion"]
    (page,) = tmp_path.glob("ablations/*/ablation.html")
    assert "Does label smoothing help?" in page.read_text()
    client = mlflow.MlflowClient(local_uri(tmp_path))
    experiment = client.get_experiment_by_name("smallm").experiment_id
    runs = client.search_runs([experiment])
    kinds = sorted(each.data.tags["smallm.kind"] for each in runs)
    assert kinds == ["ablation", "arm", "arm", "arm"]
    assert {each.info.status for each in runs} == {"FINISHED"}


def test_arms_that_differ_in_one_thing_are_held_against_each_other_too(small):
    done = run("temperature", *small, "--training-tokens", 3_000, "--seeds", "1,2,3", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    (pair,) = record["pairs"]
    assert (pair["name"], pair["against"]) == ("learned", "fixed")
    mean = {row["name"]: row["bits_per_byte"]["per_seed"].values() for row in record["arms"]}
    gaps = [fixed - own for own, fixed in zip(mean["learned"], mean["fixed"], strict=True)]
    assert pair["better_by"]["value"] == pytest.approx(np.mean(gaps))
    assert pair["sentence"] in record["conclusion"]
    assert "“fixed”" in pair["sentence"]
    for name, each in ABLATIONS.items():
        assert {arm for both in each.also for arm in both} <= set(each.arms), name


def test_an_arm_that_diverges_is_named_and_the_others_are_compared(small, monkeypatch):
    wild = {"learning_rate": 1e6, "clip": 1e9}
    arms = {"slow": {"learning_rate": 1e-3, "clip": 1.0}, "wild": wild}
    monkeypatch.setitem(ABLATIONS, "rate", Ablation("How fast?", arms | {"plain": {"clip": 1.0}}))
    done = run("rate", *small, "--training-tokens", 3_000, "--seeds", "1,2")
    assert done.exit_code == 0, done.output
    assert "failed" in done.output
    assert "“wild” did not train to its end" in done.output
    assert "“plain”" in done.output


def test_without_its_control_an_ablation_ends(small, tmp_path):
    flags = ["--hidden", 10**11, "--training-tokens", 1_000, "--seeds", "1,2"]
    with pytest.raises(SmallmError, match=r"its control, '0\.0', did not train to its end: out of"):
        run("dropout", *small, *flags)
    (file,) = tmp_path.glob("ablations/*/ablation.json")
    assert json.loads(file.read_text())["untrained"] == ["0.1", "0.2"]


def test_flags_are_checked_together_with_what_an_ablation_has_of_its_own(small):
    flags = ["--heads", 2, "--hidden", 32, "--embedding", 8, "--batch-size", 128]
    flags += ["--training-tokens", 512, "--seeds", "1,2", "--muon-learning-rate", 0.03]
    done = run("scheduled-sampling", *small, *flags, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["heads"] == 2


def test_without_a_name_the_ablations_are_listed(small):
    done = run()
    assert all(name in done.output for name in ABLATIONS)
    assert "against teacher forcing" in done.output


def test_what_is_given_wins_over_what_an_ablation_has_of_its_own():
    for flags, expected in [
        ({"embedding": 256}, (256, 512, 2048)),
        ({"preset": "small"}, (256, 1024, 2048)),
        ({"architecture": "transformer", "batch_size": 512}, (128, 512, 512)),
    ]:
        arm, *_ = arms_of("scheduled-sampling", flags).values()
        assert (arm.model.embedding, arm.model.hidden, arm.training.batch_size) == expected
        assert arm.training.optimizer == "muon"


def test_an_arm_without_memory_fails_with_its_reason(small, monkeypatch):
    arms = {"narrow": {"hidden": 16}, "vast": {"hidden": 10**11}, "wide": {"hidden": 24}}
    monkeypatch.setitem(ABLATIONS, "width", Ablation("Does width help?", arms))
    small = [each for each in small if each not in ("--hidden", 16)]
    done = run("width", *small, "--training-tokens", 1_000, "--seeds", "1,2", "--json")
    assert done.exit_code == 0, done.output
    narrow, vast, wide = json.loads(done.stdout)["arms"]
    assert vast["reason"].startswith("out of memory: it needs")
    assert "bits_per_byte" not in vast
    assert {"better_by", "bits_per_byte"} <= set(wide)
    assert "better_by" not in narrow


def test_an_ablation_that_ends_early_has_written_the_arms_before(small, tmp_path, monkeypatch):
    arms = {"plain": {"compile": False}, "compiled": {"compile": True}}
    monkeypatch.setitem(ABLATIONS, "compile", Ablation("Is a compiled model as good?", arms))
    monkeypatch.setenv("CXX", "no-compiler-of-this-name")
    with pytest.raises(SmallmError, match="compile needs a C") as error:
        run("compile", *small, "--training-tokens", 1_000, "--seeds", "1,2")
    assert "\n" not in str(error.value)
    (file,) = tmp_path.glob("ablations/*/ablation.json")
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["arms"]] == ["plain"]
    assert record["untrained"] == ["compiled"]
    assert record["settings"]["evaluate_at"] == [1.0]
    assert "Not trained yet: compiled." in file.with_suffix(".html").read_text()
    client = mlflow.MlflowClient(local_uri(tmp_path))
    experiment = client.get_experiment_by_name("smallm").experiment_id
    statuses = {each.data.tags["smallm.kind"]: each.info.status
                for each in client.search_runs([experiment])}  # fmt: skip
    assert statuses == {"ablation": "FAILED", "arm": "FINISHED"}


def test_the_table_of_a_long_ablation_fits_a_terminal():
    bits = {"value": 1.575, "low": 1.549, "high": 1.603}
    worse = {"value": -0.0251, "low": -0.0276, "high": -0.0226}
    arm = {"name": "teacher forcing", "seconds": 1032, "bits_per_byte": bits}
    arms = [arm, {**arm, "name": "up to a tenth", "better_by": worse}]
    record = {"question": "Does it help?", "control": "teacher forcing", "arms": arms}
    console = Console(width=80, file=io.StringIO())
    console.print(ablation_table(record))
    printed = console.file.getvalue()
    assert "17 min" in printed
    assert "…" not in printed
