"""The loop: exact resume, independent seeds, clean failures."""

import math

import pytest
import torch

from smallm.errors import SmallmError
from smallm.scoring import score
from smallm.settings import Settings
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


def run(settings, tokens, **options):
    selection, _ = tokens.tape.heldout([0.75, 0.8, 0.9])
    training = Training(settings, tokens, selection=selection, **options)
    return training, list(training)


def figures(progress):
    return [(each.tokens, each.loss, each.bits_per_byte) for each in progress]


@pytest.mark.parametrize("replication", ["sequential", "stacked"])
def test_a_resumed_run_gives_the_numbers_of_the_uninterrupted_one(
    bpe_tokens, tmp_path, replication
):
    settings = SMALL.replace(replication=replication, dropout=0.2)
    _, whole = run(settings, bpe_tokens)
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    interrupted = Training(settings, bpe_tokens, selection=selection)
    first = next(iter(interrupted))
    interrupted.save(tmp_path / "saved")
    _, rest = run(settings, bpe_tokens, resume_from=tmp_path / "saved")
    assert figures([first, *rest]) == figures(whole)


def test_stacked_and_sequential_replicates_agree(bpe_tokens):
    _, one = run(SMALL, bpe_tokens)
    _, two = run(SMALL.replace(replication="stacked"), bpe_tokens)
    for left, right in zip(one, two, strict=True):
        assert left.bits_per_byte == pytest.approx(right.bits_per_byte, rel=1e-3)
        assert left.loss == pytest.approx(right.loss, rel=1e-3)


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


def test_a_deterministic_language_is_learned_to_almost_no_entropy(tmp_path):
    from smallm.settings import CorpusSettings, TokenizerSettings
    from smallm.tape import build_tape, tokenize_tape

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


def test_other_settings_do_not_resume(bpe_tokens, tmp_path):
    training, _ = run(SMALL, bpe_tokens)
    training.save(tmp_path / "saved")
    with pytest.raises(SmallmError, match="other settings"):
        run(SMALL.replace(learning_rate=0.1), bpe_tokens, resume_from=tmp_path / "saved")


def test_bf16_comes_near_fp32(bpe_tokens):
    _, exact = run(SMALL, bpe_tokens)
    _, rough = run(SMALL.replace(precision="bf16"), bpe_tokens)
    assert rough[-1].mean == pytest.approx(exact[-1].mean, rel=0.02)


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
