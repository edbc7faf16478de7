"""Learning rates keep their meaning when the width of a transformer changes."""

import math

import pytest
import torch

from smallm.errors import SmallmError
from smallm.muon import Muon
from smallm.optimizers import PEAK, optimizers_of
from smallm.replicates import Group
from smallm.settings import Settings
from smallm.training import Training

SMALL = Settings().replace(
    architecture="transformer",
    window=8,
    depth=2,
    batch_size=512,
    vocabulary=400,
    evaluate_at=[1.0],
    evaluation_bytes=None,
    precision="fp32",
    seeds=[1],
    weight_decay=0.0,
)
RATES = [2.0**power for power in range(-9, 0)]
WIDTHS = (32, 128)


def of_width(width, **changes):
    return SMALL.replace(embedding=width, hidden=4 * width, **changes)


def peak_rates(settings):
    group = Group(settings, 400, [1], torch.device("cpu"))
    names = {id(weight): name for name, weight in group.weights.items()}
    return {
        names[id(weight)]: each[PEAK]
        for optimizer in group.optimizers
        for each in optimizer.param_groups
        for weight in each["params"]
    }


def test_adamw_moves_hidden_matrices_less_the_wider_they_are_and_the_rest_alike():
    narrow, wide = (peak_rates(of_width(width, bigrams=10)) for width in (64, 256))
    for name, rate in narrow.items():
        hidden = name == "projection.weight" or name.endswith(
            ("query.weight", "key.weight", "value.weight", "output.weight", "hidden.weight")
        )
        assert wide[name] == (rate / 4 if hidden else rate)
        assert rate == SMALL.training.learning_rate * (2 if hidden else 1)


def test_muon_moves_matrices_of_any_width_alike():
    for width in (64, 256):
        rates = peak_rates(of_width(width, optimizer="muon", muon_learning_rate=0.03))
        assert rates["layers.0.attention.query.weight"] == 0.03
        assert rates["embedding.weight"] == SMALL.training.learning_rate


def test_a_perceptron_learns_at_the_given_rate_whatever_its_width():
    for width in (16, 64):
        settings = Settings().replace(embedding=width, seeds=[1])
        assert set(peak_rates(settings).values()) == {settings.training.learning_rate}


SHAPES = [(8, 8), (8, 8), (32, 8), (8, 32), (32, 8), (5, 7)]


def gradients():
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(4)]


def moved(optimizer_of, weights, steps):
    for weight in weights:
        weight.requires_grad_()
    optimizer = optimizer_of([{"params": weights, "weight_decay": 0.1, "lr": 0.03}])
    for step in steps:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        optimizer.step()
    return weights


def test_muon_moves_matrices_as_that_of_torch_does():
    start = gradients()[0]
    ours = moved(Muon, [each.clone() for each in start], gradients())
    torchs = moved(torch.optim.Muon, [each.clone() for each in start], gradients())
    for one, two in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, two, rtol=0.01, atol=1e-3)  # bf16 inside


def test_muon_moves_stacked_matrices_as_if_each_was_alone():
    start = gradients()[0]
    alone = moved(Muon, [each.clone() for each in start], gradients())
    other = [[2 - each for each in step] for step in gradients()]
    steps = [
        [torch.stack([one, two]) for one, two in zip(*both, strict=True)]
        for both in zip(gradients(), other, strict=True)
    ]
    stacked = moved(Muon, [torch.stack([each, -each]) for each in start], steps)
    for one, both in zip(alone, stacked, strict=True):
        torch.testing.assert_close(one, both[0], rtol=0.01, atol=1e-3)
        assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_first_steps_learn_alike_at_every_width(optimizer):
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 / torch.arange(1.0, 400.0)
    ids = 1 + torch.multinomial(frequencies, 1024, replacement=True, generator=generator)
    ids = ids.view(1, 32, 32)
    learned = []
    for width in (64, 256):
        settings = of_width(width, optimizer=optimizer, learning_rate=0.001)
        group = Group(settings, 400, [1], torch.device("cpu"))
        for step in range(12):
            loss = group.step(ids[..., :-1], ids[..., 1:], factor=1.0, noise=step)
        learned.append(math.log(400) - loss.item())
    assert min(learned) > 0.5
    assert max(learned) / min(learned) < 1.35


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_best_rate_moves_little_when_the_width_is_four_times_as_large(bpe_tokens, optimizer):
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    name = "muon_learning_rate" if optimizer == "muon" else "learning_rate"

    def bits(width, rate):
        settings = of_width(width, optimizer=optimizer, training_tokens=512 * 25, **{name: rate})
        (progress,) = Training(settings, bpe_tokens, selection=selection)
        return progress.mean

    check_the_best_rate_moves_little(*([bits(width, rate) for rate in RATES] for width in WIDTHS))


@pytest.mark.long
def test_the_best_rate_of_a_perceptron_moves_little_with_its_hidden_units(bpe_tokens):
    selection, _ = bpe_tokens.tape.heldout([0.75, 0.8, 0.9])
    small = SMALL.replace(architecture="mlp", depth=1, batch_size=128, training_tokens=128 * 100)

    def bits(hidden, rate):
        settings = small.replace(embedding=32, hidden=hidden, learning_rate=rate)
        (progress,) = Training(settings, bpe_tokens, selection=selection)
        return progress.mean

    check_the_best_rate_moves_little(
        *([bits(hidden, rate) for rate in RATES] for hidden in (48, 768))
    )


def check_the_best_rate_moves_little(narrow, wide):
    """Of bits per byte at RATES."""
    best, best_wide = (values.index(min(values)) for values in (narrow, wide))
    assert 0 < best < len(RATES) - 1  # inside, or the range says nothing
    assert abs(best - best_wide) <= 1, (narrow, wide)  # rates are powers of two
    # and the narrow one's best rate costs the wide one next to nothing
    assert wide[best] < min(wide) * 1.03


def test_weights_of_no_known_group_are_named():
    weights = {"embedding.weight": torch.zeros(3, 2), "adapter.weight": torch.zeros(2, 2)}
    with pytest.raises(SmallmError, match="adapter: weights of no group that an optimizer knows"):
        optimizers_of(Settings(), weights, stacked=False)
