"""Temperatures and calibration errors: the oracles are hand-made cases, scipy and known truths."""

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from smallm import calibration
from smallm.calibration import (
    FittedTemperature,
    Predictions,
    calibration_error,
    calibration_interval,
    calibration_noise,
    calibration_record,
    fit_temperature,
    fitted_temperature,
    reliability,
)
from smallm.errors import SmallmError
from smallm.models import architecture
from smallm.scoring import Scores, score
from smallm.settings import ModelSettings


def drawn(count, ids, *, sharpness, seed=0):
    """Logits whose gold ids are drawn from their own softmax at temperature 1 / sharpness."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, ids, generator=generator)
    gold = torch.multinomial((logits * sharpness).softmax(1), 1, generator=generator)[:, 0]
    return logits, gold


def nll(logits, gold, temperature):
    return F.cross_entropy(logits.double() / temperature, gold).item()


class WithDocuments(NamedTuple):
    """A batch with more in it, as predictors yield them."""

    document: torch.Tensor
    logits: torch.Tensor
    gold: torch.Tensor


# Temperature


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.6, 5.0])
def test_the_temperature_of_drawn_ids_is_found_again(temperature):
    logits, gold = drawn(4000, 40, sharpness=1.0)
    fitted = fit_temperature([Predictions(logits * temperature, gold)])
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    assert fitted.positions == 4000
    assert fitted.warning is None


def test_a_factor_on_the_logits_is_a_factor_on_the_temperature():
    logits, gold = drawn(500, 30, sharpness=1.4)
    one, three = (fit_temperature([Predictions(f * logits, gold)]).temperature for f in (1, 3))
    assert three == pytest.approx(3 * one, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fit_is_the_minimum_that_scipy_finds(dtype):
    logits, gold = drawn(300, 25, sharpness=0.6)
    logits = logits.to(dtype) - 90  # pretrained models' logits are far from zero
    fitted = fit_temperature([Predictions(logits, gold)])
    best = minimize_scalar(lambda t: nll(logits, gold, t), bounds=(0.1, 10), method="bounded")
    assert fitted.temperature == pytest.approx(best.x, rel=1e-3)
    assert fitted.nll == pytest.approx(best.fun, abs=1e-4)
    assert fitted.nll_at_1 == pytest.approx(nll(logits, gold, 1), abs=1e-4)


def test_at_the_fit_the_mean_gold_logit_is_the_mean_expected_logit():
    logits, gold = drawn(800, 50, sharpness=0.5)
    fitted = fit_temperature([Predictions(logits, gold)])
    probabilities = (logits.double() / fitted.temperature).softmax(1)
    expected = (probabilities * logits).sum(1).mean().item()
    assert logits.gather(1, gold[:, None]).mean().item() == pytest.approx(expected, abs=2e-3)
    at_1 = (logits.double().softmax(1) * logits).sum(1).mean().item()
    assert abs(at_1 - expected) > 0.2


@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 30), count=st.integers(1, 12))
@settings(max_examples=60)
def test_a_fit_is_never_worse_than_temperature_1(seed, spread, count):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, 7, generator=generator)
    gold = torch.randint(7, (count,), generator=generator)
    fitted = fit_temperature([Predictions(logits, gold)])
    assert fitted.nll <= fitted.nll_at_1
    assert calibration.LEAST <= fitted.temperature <= calibration.MOST + 1e-9
    found, at_1 = nll(logits, gold, fitted.temperature), nll(logits, gold, 1)
    assert found <= at_1 + 1e-3 * max(1, at_1)  # the fit keeps two bytes a logit


def test_batches_of_any_size_and_kind_give_one_fit():
    logits, gold = drawn(700, 20, sharpness=1.5)
    whole = fit_temperature([Predictions(logits, gold)])
    parts = zip(logits.split(45), gold.split(45), strict=True)
    batches = (WithDocuments(torch.zeros(len(y)), x, y) for x, y in parts)
    again = fit_temperature(batches)
    assert again.temperature == pytest.approx(whole.temperature, rel=1e-6)
    assert again.positions == 700


def test_only_a_random_sample_of_positions_is_kept(monkeypatch):
    monkeypatch.setattr(calibration, "MOST_POSITIONS", 400)
    logits, gold = drawn(4000, 20, sharpness=1.0)
    logits[:2000] *= 3  # a sample of the first positions would find 3, of the last ones 1
    parts = zip(logits.split(90), gold.split(90), strict=True)
    fitted = fit_temperature(Predictions(x, y) for x, y in parts)
    assert fitted.positions == 400
    whole = minimize_scalar(lambda t: nll(logits, gold, t), bounds=(0.1, 10), method="bounded")
    assert fitted.temperature == pytest.approx(whole.x, rel=0.15)


def test_a_sample_holds_every_position_equally_often(monkeypatch):
    monkeypatch.setattr(calibration, "MOST_POSITIONS", 20)
    counts = np.zeros(100)
    for seed in range(300):
        monkeypatch.setattr(calibration, "SEED", seed)
        ids = torch.arange(100)
        batches = [Predictions(torch.zeros(len(part), 100), part) for part in ids.split(13)]
        _, kept = calibration._sample(batches)
        assert len(set(kept.tolist())) == 20
        counts[kept.numpy()] += 1
    expected = 300 * 20 / 100
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi squared, 99 degrees of freedom


def test_a_large_vocabulary_keeps_fewer_positions(monkeypatch):
    monkeypatch.setattr(calibration, "MOST_VALUES", 1000)
    logits, gold = drawn(300, 20, sharpness=1.0)
    assert fit_temperature([Predictions(logits, gold)]).positions == 50


def test_flat_logits_are_said_to_fit_at_any_temperature():
    fitted = fit_temperature([Predictions(torch.full((9, 8), 3.5), torch.arange(8).repeat(2)[:9])])
    assert fitted.temperature == 1
    assert fitted.nll == fitted.nll_at_1 == pytest.approx(math.log(8))
    assert "flat" in fitted.warning


def test_a_fit_at_a_bound_is_said():
    logits, gold = torch.eye(6), torch.arange(6)
    sure = fit_temperature([Predictions(logits, gold)])
    assert sure.temperature == pytest.approx(calibration.LEAST)
    assert "always right" in sure.warning
    wrong = fit_temperature([Predictions(logits, (gold + 1) % 6)])
    assert wrong.temperature == pytest.approx(calibration.MOST)
    assert "mislead" in wrong.warning


def test_ids_that_a_model_rules_out_leave_the_fit_as_it_is():
    logits, gold = drawn(200, 15, sharpness=0.8)
    impossible = torch.full((200, 3), torch.finfo(torch.float32).min)
    both = torch.cat([logits, impossible, torch.full((200, 2), -math.inf)], 1)
    expected = fit_temperature([Predictions(logits, gold)])
    found = fit_temperature([Predictions(both, gold)])
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "gold", "reason"),
    [
        (torch.empty(0, 4), torch.empty(0, dtype=torch.long), "no token"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "NaN"),
        (torch.tensor([[0.0, math.inf]]), torch.tensor([0]), "infinity"),
        (torch.tensor([[0.0, -math.inf]]), torch.tensor([1]), "rules out"),
    ],
)
def test_what_cannot_be_fitted_is_one_clear_line(logits, gold, reason):
    with pytest.raises(SmallmError, match=reason):
        fit_temperature([Predictions(logits, gold)])


def test_no_batch_at_all_is_no_token():
    with pytest.raises(SmallmError, match="no token"):
        fit_temperature([])


def unigram(tokens, *, factor):
    """A core whose logits are the log-frequencies of the text's ids times a factor."""
    shape = ModelSettings(window=3, embedding=6, hidden=8)
    core = architecture("mlp")(shape, tokens.vocabulary)
    core.initialize(torch.Generator().manual_seed(0))
    counts = np.bincount(tokens.tokens[tokens.tokens != 0], minlength=tokens.vocabulary)
    with torch.no_grad():
        core.bias.copy_(factor * torch.from_numpy(np.log(counts + 0.1)))
    return core


def test_a_smallm_s_temperature_lowers_the_score_of_the_slice(tokens):
    part, _ = tokens.tape.heldout([0.75, 0.8, 0.9])
    core = unigram(tokens, factor=3).train()
    temperature = fitted_temperature(core, tokens, part, window=3)
    assert temperature == pytest.approx(3, rel=0.1)
    assert core.training
    before = score(core, tokens, part, window=3).nll.sum()
    with torch.no_grad():
        core.bias.div_(temperature)
    after = score(core, tokens, part, window=3).nll.sum()
    assert after < before
    assert fitted_temperature(core, tokens, part, window=3) == pytest.approx(1, rel=1e-3)


def test_a_smallm_is_fitted_on_a_sample_of_the_slice(bpe_tokens, monkeypatch):
    part, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    core = unigram(bpe_tokens, factor=2)
    whole = fitted_temperature(core, bpe_tokens, part, window=3)
    monkeypatch.setattr(calibration, "MOST_POSITIONS", 1000)
    sample = fitted_temperature(core, bpe_tokens, part, window=3)
    assert sample != whole
    assert sample == pytest.approx(whole, rel=0.1)


# Calibration error


CONFIDENCE = np.array([0.05, 0.3, 0.45, 0.5, 0.9, 0.95, 1.0, 0.65], dtype=np.float32)
CORRECT = np.array([0, 1, 0, 1, 1, 1, 0, 0], dtype=bool)


def test_the_error_of_a_small_case_is_the_one_on_paper():
    # (0, 0.5]: confidence 1.3 in all, 2 right; (0.5, 1]: 3.5, 2 right
    by_hand = (abs(1.3 - 2) + abs(3.5 - 2)) / 8
    assert calibration_error(CONFIDENCE, CORRECT, bins=2) == pytest.approx(by_hand)
    # four each: .05 .3 .45 .5 | .65 .9 .95 1
    assert calibration_error(CONFIDENCE, CORRECT, bins=2, by="mass") == pytest.approx(by_hand)
    # three, three, two: .05 .3 .45 | .5 .65 .9 | .95 1
    by_hand = (abs(0.8 - 1) + abs(2.05 - 2) + abs(1.95 - 1)) / 8
    assert calibration_error(CONFIDENCE, CORRECT, bins=3, by="mass") == pytest.approx(by_hand)
    assert calibration_error(CONFIDENCE, CORRECT, bins=1) == pytest.approx(abs(4.8 - 4) / 8)


def test_a_sure_and_right_model_has_no_error_and_a_sure_and_wrong_one_has_all():
    sure, right = np.ones(10), np.ones(10, dtype=bool)
    assert calibration_error(sure, right) == 0
    assert calibration_error(sure, ~right, by="mass") == 1


def test_a_reliability_row_is_a_bin_with_its_means():
    rows = reliability(CONFIDENCE, CORRECT, bins=4)
    assert [row.tokens for row in rows] == [1, 3, 1, 3]
    assert [row.accuracy for row in rows] == pytest.approx([0, 2 / 3, 0, 2 / 3])
    assert [row.confidence for row in rows] == pytest.approx([0.05, 1.25 / 3, 0.65, 2.85 / 3])
    assert [row.tokens for row in reliability(CONFIDENCE, CORRECT, bins=8, by="mass")] == [1] * 8


def test_empty_bins_have_no_row():
    assert len(reliability(np.array([0.1, 0.9]), np.array([True, False]))) == 2


BINNINGS = st.sampled_from(["width", "mass"])
PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(PAIRS, BINNINGS, st.integers(1, 20), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_the_error_is_a_share_that_the_order_of_tokens_does_not_change(pairs, by, bins, random):
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    error = calibration_error(confidence, correct, bins=bins, by=by)
    assert 0 <= error <= 1
    random.shuffle(pairs)
    confidence, correct = (np.array(column) for column in zip(*pairs, strict=True))
    assert calibration_error(confidence, correct, bins=bins, by=by) == pytest.approx(error)
    rows = reliability(confidence, correct, bins=bins, by=by)
    assert sum(row.tokens for row in rows) == len(pairs)
    weighted = sum(row.tokens * abs(row.accuracy - row.confidence) for row in rows) / len(pairs)
    assert weighted == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize("by", ["width", "mass"])
def test_a_calibrated_sample_has_an_error_near_its_sampling_noise(by):
    rng = np.random.default_rng(1)
    confidence = rng.beta(1, 2, size=20_000)
    noise = calibration_noise(confidence, by=by)
    errors = [
        calibration_error(confidence, rng.random(20_000) < confidence, by=by) for _ in range(40)
    ]
    assert np.mean(errors) == pytest.approx(noise, rel=0.1)
    assert 0.001 < noise < 0.02
    shifted = rng.random(20_000) < confidence * 0.8
    assert calibration_error(confidence, shifted, by=by) > 5 * noise


def test_an_interval_covers_the_error_of_new_documents():
    """Documents of one text differ in how calibrated the model is; the truth is a large sample."""
    rng = np.random.default_rng(2)

    def text(documents):
        tokens = rng.integers(20, 60, size=documents)
        skill = np.repeat(rng.uniform(0.6, 1.0, size=documents), tokens)
        confidence = rng.uniform(0.1, 0.9, size=tokens.sum())
        return confidence, rng.random(tokens.sum()) < confidence * skill, tokens

    confidence, correct, _ = text(20_000)
    truth = calibration_error(confidence, correct, bins=5)
    covered = 0
    for _ in range(60):
        found = calibration_interval(*text(100), bins=5, draws=200)
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert covered >= 52


def test_an_interval_is_reproducible_and_its_value_is_the_error():
    tokens = np.array([3, 1, 4])
    first, again = (calibration_interval(CONFIDENCE, CORRECT, tokens, bins=3) for _ in range(2))
    assert first == again
    assert first.value == calibration_error(CONFIDENCE, CORRECT, bins=3)
    with pytest.raises(ValueError, match="9 tokens in documents, but 8"):
        calibration_interval(CONFIDENCE, CORRECT, np.array([4, 5]))


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [([], []), ([0.5], [True, False]), ([1.2], [True]), ([math.nan], [True])],
)
def test_what_cannot_be_binned_is_an_error(confidence, correct):
    with pytest.raises(ValueError, match="confidences"):
        calibration_error(np.array(confidence), np.array(correct, dtype=bool))


# Record


def scores(temperature, *, documents=30):
    """Of logits that are twice too large, in documents of 20 tokens and an empty one."""
    logits, gold = drawn(20 * documents, 12, sharpness=0.5)
    probabilities = (logits / temperature).softmax(1)
    best, where = probabilities.max(1)
    cost = -probabilities.gather(1, gold[:, None]).log()[:, 0].view(documents, 20).sum(1)
    tokens = np.array([20] * documents + [0])
    return Scores(
        nll=np.append(cost.double().numpy(), 0.0),
        bytes=tokens * 4,
        words=tokens,
        tokens=tokens,
        confidence=best.numpy(),
        correct=(where == gold).numpy(),
    ), fit_temperature([Predictions(logits, gold)])


def test_the_record_tells_before_and_after_with_intervals_and_is_json():
    (before, fitted), (after, _) = scores(1.0), scores(2.0)
    record = json.loads(json.dumps(calibration_record(before, after, fitted), allow_nan=False))
    assert record["temperature"] == pytest.approx(2, rel=0.15)
    assert record["before"]["nll"]["value"] == pytest.approx(fitted.nll_at_1, abs=1e-3)
    for when in ("before", "after"):
        for name in ("nll", "ece_width", "ece_mass"):
            row = record[when][name]
            assert row["low"] < row["value"] < row["high"]
        assert sum(row["tokens"] for row in record[when]["reliability"]) == 600
    assert record["after"]["ece_width"]["value"] < record["before"]["ece_width"]["low"]
    gain = record["nll_gain"]
    difference = record["before"]["nll"]["value"] - record["after"]["nll"]["value"]
    assert gain["value"] == pytest.approx(difference)
    assert 0 < gain["low"] < gain["value"] < gain["high"]


def test_a_single_document_has_figures_without_intervals():
    (before, fitted), (after, _) = scores(1.0, documents=1), scores(2.0, documents=1)
    one = [
        Scores(x.nll[:1], x.bytes[:1], x.words[:1], x.tokens[:1], None, x.confidence, x.correct)
        for x in (before, after)
    ]
    record = calibration_record(*one, fitted)
    for row in (record["before"]["nll"], record["after"]["ece_mass"], record["nll_gain"]):
        assert row["low"] is None
        assert row["high"] is None
        assert math.isfinite(row["value"])


def test_scores_without_confidence_have_no_record():
    one = np.ones(1)
    bare = Scores(nll=one, bytes=one, words=one, tokens=one)
    with pytest.raises(ValueError, match="confidence"):
        calibration_record(bare, bare, FittedTemperature(1.0, 1.0, 1.0, 1, None))
