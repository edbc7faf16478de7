"""The loop: exact resume, independent seeds, clean failures."""

import json
import math
import os
import shutil
import sysconfig
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from smallm.calibration import fitted_temperature
from smallm.errors import SmallmError
from smallm.replicates import Group
from smallm.scoring import score
from smallm.settings import CorpusSettings, Settings, TokenizerSettings
from smallm.tape_building import build_tape
from smallm.token_tape import tokenize_tape
from smallm.training import PENALTY, Training, schedule

SMALL = Settings().replace(
    window=4,
    embedding=8,
    hidden=16,
    batch_size=64,
    training_tokens=3_200,
    seeds=[1, 2],
    evaluate_at=[0.3, 0.6, 1.0],
    evaluation_bytes=3_000,
    precision="fp32",
    vocabulary=400,
    replication="sequential",
)

TRANSFORMER = SMALL.replace(
    architecture="transformer", embedding=16, depth=2, kv_heads=2, bigrams=40, activation="swiglu"
)
MUON = TRANSFORMER.replace(optimizer="muon", learning_rate=0.02)
OUTPUTS = [
    {},
    {"normalized_output": True},
    {"normalized_output": True, "learned_temperature": False},
]


def run(settings, tokens, **options):
    selection, _ = tokens.tape.heldout([0.75, 0.8, 0.9])
    training = Training(settings, tokens, selection=selection, **options)
    return training, list(training)


def figures(progress):
    return [(each.tokens, each.loss, each.bits_per_byte) for each in progress]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("replication", ["sequential", "stacked"])
def test_a_resumed_run_gives_the_numbers_of_the_uninterrupted_one(
    bpe_tokens, tmp_path, replication, output
):
    settings = SMALL.replace(replication=replication, dropout=0.2, **output)
    _, whole = run(settings, bpe_tokens)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    interrupted = Training(settings, bpe_tokens, selection=selection)
    first = next(iter(interrupted))
    interrupted.save(tmp_path / "saved")
    _, rest = run(settings, bpe_tokens, resume_from=tmp_path / "saved")
    assert figures([first, *rest]) == figures(whole)


@pytest.mark.parametrize(
    "settings",
    [
        TRANSFORMER.replace(dropout=0.2),
        TRANSFORMER.replace(replication="stacked"),
        MUON,
        MUON.replace(replication="stacked"),
        MUON.replace(precision="fp16"),
    ],
    ids=["sequential", "stacked", "muon", "stacked-muon", "fp16"],
)
def test_a_transformer_resumes_exactly(bpe_tokens, tmp_path, settings):
    _, whole = run(settings, bpe_tokens)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    interrupted = Training(settings, bpe_tokens, selection=selection)
    first = next(iter(interrupted))
    interrupted.save(tmp_path / "saved")
    _, rest = run(settings, bpe_tokens, resume_from=tmp_path / "saved")
    assert figures([first, *rest]) == figures(whole)


@pytest.mark.parametrize("settings", [TRANSFORMER, MUON], ids=["adamw", "muon"])
def test_a_transformer_learns_and_its_reported_score_is_its_own(bpe_tokens, settings):
    longer = settings.replace(training_tokens=32_000, learning_rate=0.01, evaluation_bytes=10**9)
    training, progress = run(longer, bpe_tokens)
    bits = [each.mean for each in progress]
    assert bits[0] > bits[1] > bits[2]
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    scores = score(training.trained(2), bpe_tokens, selection, window=4)
    assert scores.bits_per_byte == progress[-1].bits_per_byte[2]


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        SMALL.replace(**OUTPUTS[1]),
        SMALL.replace(**OUTPUTS[2]),
        TRANSFORMER,
        MUON.replace(**OUTPUTS[1]),
        MUON.replace(**OUTPUTS[2]),
    ],
    ids=["mlp", "learned", "fixed", "transformer", "muon-learned", "muon-fixed"],
)
def test_stacked_and_sequential_replicates_agree(bpe_tokens, settings):
    _, one = run(settings, bpe_tokens)
    with warnings.catch_warnings():
        # of operations that run one replicate after the other
        warnings.filterwarnings("error", message=".*batching rule")
        _, two = run(settings.replace(replication="stacked"), bpe_tokens)
    for left, right in zip(one, two, strict=True):
        assert left.bits_per_byte == pytest.approx(right.bits_per_byte, rel=1e-3)
        assert left.loss == pytest.approx(right.loss, rel=1e-3)


def test_the_faster_way_to_train_replicates_is_measured_once_for_a_shape(bpe_tokens, monkeypatch):
    settings = SMALL.replace(replication="auto", hidden=17)
    first, _ = run(settings, bpe_tokens)
    monkeypatch.setattr(Training, "_seconds_of_steps", None)  # a second measurement would fail
    again, _ = run(settings, bpe_tokens)
    assert again.stacked == first.stacked
    kept = bpe_tokens.tape.folder / "replication" / f"{first._shape_digest()}.json"
    for seconds, faster in ((0.5, True), (2.0, False)):
        kept.write_text(json.dumps({"sequential": 1.0, "stacked": seconds}))
        assert run(settings, bpe_tokens)[0].stacked is faster


def test_both_ways_are_measured_in_turns_and_the_shortest_time_counts(bpe_tokens, monkeypatch):
    asked = []
    spent = iter([0, 0, 9.0, 2.0, 3.0, 8.0, 4.0, 5.0])  # other load disturbs one round of each

    def seconds(self, groups, first, until):
        asked.append(len(groups))
        return next(spent)

    monkeypatch.setattr(Training, "_seconds_of_steps", seconds)
    training, _ = run(SMALL.replace(replication="auto", hidden=18), bpe_tokens)
    assert asked == [2, 1] * 4  # a group for each seed, or one of both
    assert training.stacked
    kept = bpe_tokens.tape.folder / "replication" / f"{training._shape_digest()}.json"
    assert json.loads(kept.read_text()) == {"sequential": 3.0, "stacked": 2.0}


def test_with_dropout_replicates_train_in_turn_unless_stacking_is_asked_for(
    bpe_tokens, monkeypatch
):
    monkeypatch.setattr(Training, "_seconds_of_ways", lambda _: {"sequential": 2.0, "stacked": 1.0})
    settings = SMALL.replace(replication="auto", hidden=19)
    _, alone = run(settings.replace(dropout=0.2, seeds=[2]), bpe_tokens)
    training, both = run(settings.replace(dropout=0.2), bpe_tokens)
    assert not training.stacked
    assert [each.bits_per_byte[2] for each in both] == [each.bits_per_byte[2] for each in alone]
    assert run(settings, bpe_tokens)[0].stacked
    assert run(settings.replace(dropout=0.2, replication="stacked"), bpe_tokens)[0].stacked


def test_a_seed_gives_the_same_numbers_alone_and_among_others(bpe_tokens):
    _, both = run(SMALL.replace(dropout=0.1), bpe_tokens)
    _, alone = run(SMALL.replace(dropout=0.1, seeds=[2]), bpe_tokens)
    assert [each.bits_per_byte[2] for each in both] == [each.bits_per_byte[2] for each in alone]
    assert both[-1].bits_per_byte[1] != both[-1].bits_per_byte[2]


def test_training_learns(bpe_tokens):
    _, progress = run(SMALL.replace(training_tokens=32_000, learning_rate=0.01), bpe_tokens)
    bits = [each.mean for each in progress]
    assert bits[0] > bits[1] > bits[2]
    assert progress[-1].done
    assert progress[-1].tokens == 32_000
    assert progress[-1].tokens_per_second > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_with_a_normalized_output_learns_and_so_does_its_temperature(
    bpe_tokens, tied
):
    settings = MUON.replace(training_tokens=32_000, tied=tied, seeds=[1])
    training, progress = run(settings.replace(normalized_output=True), bpe_tokens)
    _, plain = run(settings, bpe_tokens)
    assert progress[-1].mean == pytest.approx(plain[-1].mean, rel=0.1)
    assert training.trained(1).log_scale.exp().item() > 1.2 * 16**0.5


@pytest.mark.parametrize("tied", [True, False])
def test_a_normalized_output_learns_and_so_does_its_temperature(bpe_tokens, tied):
    settings = SMALL.replace(training_tokens=32_000, learning_rate=0.01, tied=tied)
    training, progress = run(settings.replace(normalized_output=True), bpe_tokens)
    _, plain = run(settings, bpe_tokens)
    assert progress[-1].mean == pytest.approx(plain[-1].mean, rel=0.1)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    core = training.trained(1)
    first = (8 if tied else 16) ** 0.5
    assert core.log_scale.exp().item() > 1.2 * first
    fitted = fitted_temperature(core, bpe_tokens, selection, window=4)
    assert fitted == pytest.approx(1, abs=0.25)  # 500 steps bring it no nearer


def test_a_deterministic_language_is_learned_to_almost_no_entropy(tmp_path):
    words = " ".join(chr(97 + n % 7) * (1 + n % 7) for n in range(60))
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text(f"{number * 7919} {words}")
    settings = CorpusSettings(source="folder", path=tmp_path, near_duplicate_threshold=1.0)
    tape = build_tape(settings, home=tmp_path / "home")
    tokens = tokenize_tape(tape, TokenizerSettings(vocabulary=300), ratios=[0.75, 0.8, 0.9])
    learned = SMALL.replace(
        training_tokens=60_000, learning_rate=0.02, window=10, seeds=[1], vocabulary=300
    )
    _, progress = run(learned, tokens)
    digits = sum(len(str(n * 7919)) for n in range(300)) / 300
    floor = digits * math.log2(10) / (len(words) + digits + 1)  # only the number is random
    assert floor < progress[-1].mean < floor + 0.5


def test_divergence_ends_a_replicate_with_a_reason_and_a_finite_penalty(bpe_tokens):
    _, progress = run(SMALL.replace(learning_rate=1e4, clip=1e6), bpe_tokens)
    last = progress[-1]
    assert set(last.failures) == {1, 2}
    assert "learning rate 10000" in last.failures[1]
    assert last.mean == PENALTY
    assert all(math.isfinite(loss) for loss in last.loss.values())
    assert len(progress) == 1  # nothing left to train


@pytest.mark.parametrize("replication", ["sequential", "stacked"])
def test_a_replicate_that_fails_leaves_the_others_as_they_are(bpe_tokens, replication):
    settings = SMALL.replace(replication=replication)
    _, whole = run(settings, bpe_tokens)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    training = Training(settings, bpe_tokens, selection=selection)
    progress = [next(iter(training))]
    with torch.no_grad():
        bias = training.groups[0].weights["bias"]
        (bias[0] if training.stacked else bias).fill_(math.nan)
    progress.extend(training)
    assert progress[0].failures == {}
    for each, expected in zip(progress[1:], whole[1:], strict=True):
        assert "NaN" in each.failures[1]
        assert (each.loss[1], each.bits_per_byte[1]) == (PENALTY, PENALTY)
        assert (each.loss[2], each.bits_per_byte[2]) == (
            expected.loss[2],
            expected.bits_per_byte[2],
        )
        assert each.mean == pytest.approx((PENALTY + expected.bits_per_byte[2]) / 2)


def test_a_folder_that_holds_something_is_not_saved_over(bpe_tokens, tmp_path):
    training, _ = run(SMALL, bpe_tokens)
    training.save(tmp_path / "saved")
    with pytest.raises(SmallmError, match="new folder"):
        training.save(tmp_path / "saved")


def test_the_neural_model_comes_near_the_entropy_that_a_count_table_reaches(tmp_path):
    """Each word follows from the two before it and a fair coin: log 2 nats a word."""
    rng = np.random.default_rng(0)
    for number in range(150):
        chain = [int(rng.integers(9)), int(rng.integers(9))]
        for coin in rng.integers(2, size=150):
            chain.append((3 * chain[-1] + 2 * chain[-2] + int(coin)) % 9)
        (tmp_path / f"{number}.txt").write_text("".join(f" {'abcdefghi'[n]}" for n in chain))
    corpus = CorpusSettings(source="folder", path=tmp_path, near_duplicate_threshold=1.0)
    tape = build_tape(corpus, home=tmp_path / "home")
    kind = TokenizerSettings(tokenizer="words", vocabulary=300)
    tokens = tokenize_tape(tape, kind, ratios=[0.75, 0.8, 0.9])
    changes = {"tokenizer": "words", "vocabulary": 300, "window": 2, "hidden": 64, "seeds": [1]}
    settings = SMALL.replace(**changes, training_tokens=60_000, learning_rate=0.02)
    training, _ = run(settings, tokens)
    selection, _ = tape.heldout([0.75, 0.8, 0.9])
    found = score(training.trained(1), tokens, selection, window=2).metrics()["cross_entropy"]
    counts = np.zeros((300, 300, 300))
    stream = tokens.tokens[: tokens.span(tape.training(0.8))[1]]
    np.add.at(counts, (stream[:-2], stream[1:-1], stream[2:]), 1)
    heldout = tokens.tokens[slice(*tokens.span(selection))]
    at = (heldout[:-2], heldout[1:-1], heldout[2:])
    inside = (heldout[:-2] != 0) & (heldout[1:-1] != 0) & (heldout[2:] != 0)
    table = -np.log(counts[at][inside] / counts.sum(2)[at[:2]][inside]).mean()
    assert table == pytest.approx(math.log(2), rel=0.03)
    openings = 2 * (math.log(9) - math.log(2)) / 152  # the first two words of a text are free
    assert found == pytest.approx(table + openings, rel=0.03)


def test_other_settings_do_not_resume(bpe_tokens, tmp_path):
    training, _ = run(SMALL, bpe_tokens)
    training.save(tmp_path / "saved")
    with pytest.raises(SmallmError, match="other settings"):
        run(SMALL.replace(learning_rate=0.1), bpe_tokens, resume_from=tmp_path / "saved")


def test_a_checkpoint_of_another_text_is_refused(bpe_tokens, tmp_path):
    training, _ = run(SMALL, bpe_tokens)
    training.save(tmp_path / "saved")
    file = tmp_path / "saved" / "training.json"
    kept = json.loads(file.read_text())
    kept["text"]["tape"] = "of another text"
    file.write_text(json.dumps(kept))
    with pytest.raises(SmallmError, match="was saved by a run on another text"):
        run(SMALL, bpe_tokens, resume_from=tmp_path / "saved")


@pytest.mark.parametrize("settings", [SMALL, TRANSFORMER], ids=["mlp", "transformer"])
def test_a_short_run_with_a_curriculum_measures_which_way_is_faster(bpe_tokens, settings):
    short = settings.replace(
        training_tokens=64, evaluate_at=[1.0], curriculum="length", replication="auto", hidden=20
    )
    _, progress = run(short, bpe_tokens)
    assert progress[-1].done


def test_what_diverges_while_it_guesses_is_a_failed_replicate(bpe_tokens):
    wild = TRANSFORMER.replace(scheduled_sampling=1.0, learning_rate=1e30)
    _, progress = run(wild, bpe_tokens)
    assert set(progress[-1].failures) == {1, 2}
    assert progress[-1].mean == PENALTY


def test_a_checkpoint_from_before_a_setting_existed_resumes(bpe_tokens, tmp_path):
    training, _ = run(SMALL, bpe_tokens)
    training.save(tmp_path / "saved")
    file = tmp_path / "saved" / "training.json"
    kept = json.loads(file.read_text())
    del kept["settings"]["normalized_output"]
    file.write_text(json.dumps(kept))
    resumed, _ = run(SMALL, bpe_tokens, resume_from=tmp_path / "saved")
    assert resumed.step == training.step


@pytest.mark.parametrize("settings", [SMALL, MUON], ids=["mlp", "muon"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_comes_near_fp32(bpe_tokens, settings, precision):
    _, exact = run(settings, bpe_tokens)
    _, rough = run(settings.replace(precision=precision), bpe_tokens)
    assert rough[-1].bits_per_byte != exact[-1].bits_per_byte
    assert rough[-1].mean == pytest.approx(exact[-1].mean, rel=0.02)


COMPILER = shutil.which(os.environ.get("CXX", "g++"))
HEADERS = Path(sysconfig.get_path("include"), "Python.h")


@pytest.mark.long
@pytest.mark.skipif(not COMPILER or not HEADERS.exists(), reason="needs g++ and Python's headers")
@pytest.mark.parametrize("replication", ["sequential", "stacked"])
def test_a_compiled_model_comes_to_the_same_numbers(bpe_tokens, replication):
    settings = MUON.replace(replication=replication)
    _, plain = run(settings, bpe_tokens)
    counters.clear()
    _, fast = run(settings.replace(compile=True), bpe_tokens)
    assert counters["stats"]["unique_graphs"] > 0
    for one, two in zip(plain, fast, strict=True):
        assert two.bits_per_byte == pytest.approx(one.bits_per_byte, rel=1e-3)
        assert two.loss == pytest.approx(one.loss, rel=1e-3)


def test_no_compiler_is_one_line(bpe_tokens, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SmallmError, match="needs a C\\+\\+ compiler, and there is no no-such"):
        run(SMALL.replace(compile=True), bpe_tokens)


def test_a_step_that_overflows_in_fp16_is_left_out_and_the_next_is_smaller(bpe_tokens):
    settings = MUON.replace(precision="fp16", seeds=[1])
    training, _ = run(settings, bpe_tokens)
    (group,) = training.groups
    group.scaler.load_state_dict({**group.scaler.state_dict(), "scale": 2.0**60})
    before = {name: weight.clone() for name, weight in group.weights.items()}
    inputs, targets = (torch.from_numpy(each) for each in training.batches.steps(1, 0, 1))
    group.step(inputs, targets, factor=1.0, noise=0)
    assert all(torch.equal(weight, before[name]) for name, weight in group.weights.items())
    assert group.scaler.get_scale() == 2.0**59
    group.scaler.load_state_dict({**group.scaler.state_dict(), "scale": 2.0**10})
    group.step(inputs, targets, factor=1.0, noise=0)
    assert not any(torch.equal(weight, before[name]) for name, weight in group.weights.items())


def test_replicates_are_not_stacked_in_fp16(bpe_tokens):
    settings = SMALL.replace(precision="fp16", replication="auto")
    assert not run(settings, bpe_tokens)[0].stacked
    with pytest.raises(SmallmError, match="with precision fp16 replicates train in turn: allowed"):
        run(settings.replace(replication="stacked"), bpe_tokens)


def test_the_reported_score_is_the_trained_model_s(bpe_tokens):
    training, progress = run(SMALL.replace(evaluation_bytes=10**9), bpe_tokens)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    scores = score(training.trained(2), bpe_tokens, selection, window=4)
    assert scores.bits_per_byte == progress[-1].bits_per_byte[2]


def test_the_schedule_rises_stays_and_falls():
    values = [schedule(step, 100, 0.1, 0.2) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:81] == [1.0] * 72
    assert values[90] == pytest.approx(0.5)
    assert values[99] == pytest.approx(0.05)
    assert schedule(0, 100, 0, 0) == 1


def test_seeds_do_not_touch_the_global_generator(bpe_tokens):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(SMALL.replace(dropout=0.3, seeds=[1]), bpe_tokens)
    assert torch.equal(torch.rand(3), expected)


def test_replicates_that_stacked_need_too_much_memory_train_in_turn(bpe_tokens, monkeypatch):
    step = Group.step

    def short_of_memory(group, *inputs, **options):
        if group.stacked:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(group, *inputs, **options)

    monkeypatch.setattr(Group, "step", short_of_memory)
    training, records = run(SMALL.replace(replication="auto", hidden=21), bpe_tokens)
    assert training.not_stacked.startswith("out of memory: CUDA out of memory")
    assert not training.stacked
    assert not records[-1].failures
    kept = bpe_tokens.tape.folder / "replication" / f"{training._shape_digest()}.json"
    assert not kept.exists()


@pytest.mark.parametrize("steps", [9, 40, 196, 333])
def test_an_evaluation_has_the_number_of_its_share_whatever_the_budget(bpe_tokens, steps):
    settings = SMALL.replace(
        training_tokens=64 * steps, evaluate_at=[0.1111111111, 0.3333333333, 1.0], seeds=[1]
    )
    _, progress = run(settings, bpe_tokens)
    assert [each.rung for each in progress] == [1, 2, 3]
    assert {each.precision for each in progress} == {"fp32"}
