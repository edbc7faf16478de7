"""Training on a GPU: `pytest -m gpu` on a machine with one; skipped elsewhere.

The CPU is the oracle. What of it needs no GPU, such as stacked replicates, is tested on the CPU as
well, in test_training.py.
"""

import time

import pytest
import torch
from test_training import SMALL, TRANSFORMER, figures, run

from smallm.champion import save_model
from smallm.hardware import half_dtype, precision_of
from smallm.training import product_dtype

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
BOTH = pytest.mark.parametrize("settings", [SMALL, TRANSFORMER], ids=["mlp", "transformer"])
REPLICATIONS = pytest.mark.parametrize("replication", ["sequential", "stacked"])


def assert_near(left, right, rel):
    for one, two in zip(left, right, strict=True):
        assert one.bits_per_byte == pytest.approx(two.bits_per_byte, rel=rel)
        assert one.loss == pytest.approx(two.loss, rel=rel)


@BOTH
@REPLICATIONS
def test_a_gpu_gives_the_numbers_of_the_cpu(bpe_tokens, settings, replication):
    settings = settings.replace(replication=replication)
    _, here = run(settings, bpe_tokens)
    training, there = run(settings, bpe_tokens, device="cuda")
    assert all(weight.is_cuda for weight in training.trained(1).parameters())
    assert_near(here, there, rel=1e-2)


@BOTH
def test_stacked_replicates_give_the_numbers_of_one_after_the_other(bpe_tokens, settings):
    _, one = run(settings, bpe_tokens, device="cuda")
    _, two = run(settings.replace(replication="stacked"), bpe_tokens, device="cuda")
    assert_near(one, two, rel=1e-2)


@BOTH
def test_the_half_precision_of_the_gpu_is_used_and_comes_near_fp32(bpe_tokens, settings):
    device = torch.device("cuda")
    dtype = half_dtype(device)
    assert product_dtype(settings.replace(precision="auto"), 4096, device) == dtype
    if dtype == torch.float32:
        pytest.skip(f"{torch.cuda.get_device_name()} is not faster in half precision")
    _, exact = run(settings, bpe_tokens, device="cuda")
    _, half = run(settings.replace(precision=precision_of(dtype)), bpe_tokens, device="cuda")
    assert_near(exact, half, rel=2e-2)


@REPLICATIONS
def test_a_run_resumes_on_a_gpu_and_one_of_a_gpu_on_the_cpu(bpe_tokens, tmp_path, replication):
    settings = SMALL.replace(replication=replication)
    whole, expected = run(settings, bpe_tokens, device="cuda")
    training = type(whole)(
        settings, bpe_tokens, selection=bpe_tokens.tape.heldout([0.75, 0.8, 0.9])[0], device="cuda"
    )
    next(iter(training))
    training.save(tmp_path / "state")
    for device in ("cuda", "cpu"):
        _, rest = run(settings, bpe_tokens, device=device, resume_from=tmp_path / "state")
        assert_near(rest, expected[1:], rel=1e-2)


def test_a_seed_gives_the_same_numbers_alone_and_leaves_the_generators_alone(bpe_tokens):
    settings = SMALL.replace(dropout=0.1)
    before = torch.cuda.get_rng_state()
    _, both = run(settings, bpe_tokens, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    _, alone = run(settings.replace(seeds=[2]), bpe_tokens, device="cuda")
    assert [each.bits_per_byte[2] for each in both] == pytest.approx(
        [each.bits_per_byte[2] for each in alone], rel=1e-3
    )
    assert len(figures(both)) == len(alone)


def test_a_model_of_a_gpu_is_saved_for_any_machine(bpe_tokens, tmp_path):
    from transformers import AutoModelForCausalLM

    training, _ = run(SMALL, bpe_tokens, device="cuda")
    core = training.trained(1)
    save_model(core, SMALL, bpe_tokens, tmp_path, card="", heldout_above=0.9, temperature=1.0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert next(loaded.parameters()).device.type == "cpu"


def test_eight_seeds_cost_less_than_three_in_turn(bpe_tokens):
    """Small models leave a GPU idle: stacked, more of them take hardly longer."""
    settings = SMALL.replace(training_tokens=64_000, evaluate_at=[1.0], replication="stacked")
    seconds = {}
    for seeds in ([1], [1], list(range(1, 9))):  # the first one warms up
        start = time.perf_counter()
        run(settings.replace(seeds=seeds, evaluation_bytes=500), bpe_tokens, device="cuda")
        torch.cuda.synchronize()
        seconds[len(seeds)] = time.perf_counter() - start
    assert seconds[8] < 3 * seconds[1], seconds
