"""What a champion keeps of how the trials of its search learned."""

import pytest

from smallm.files import write_json
from smallm.learning_curves import MOST, kept_learning_curves, learning_curves
from smallm.settings import Settings
from smallm.training import PENALTY


def trial(number, activation="relu", *, bits=(3.0, 2.0), **settings):
    curve = [
        {"tokens": 100 * place, "mean": each, "per_seed": {"1": each}, "activity": None}
        for place, each in enumerate(bits, 1)
    ]
    settings = {"activation": activation, **settings}
    tokens = 100 * len(bits)
    return dict(id=f"t{number}", number=number, tokens=tokens, settings=settings, curve=curve)


def shown(found):
    return {
        ", ".join(filter(None, (group["activation"], group["architecture"]))): [
            each["trial"] for each in group["curves"]
        ]
        for group in found["groups"]
    }


def test_groups_are_by_activation_and_the_best_comes_first():
    trials = [
        trial(0, "tanh"),
        trial(1, bits=(3, 2.5)),
        trial(2, bits=(3, 1.5)),
        trial(3, bits=(1.0,)),  # ended early
    ]
    found = learning_curves(trials, {"architecture": "mlp"}, champion="t1")
    relu = ["trial 2", "trial 1", "trial 3"]
    assert shown(found) == {"relu, mlp": relu, "tanh, mlp": ["trial 0"]}
    champions = [each for group in found["groups"] for each in group["curves"] if each["champion"]]
    assert [each["trial"] for each in champions] == ["trial 1"]
    assert champions[0]["dead_units"] is None  # units were not watched


def test_architectures_are_apart_when_there_are_two():
    trials = [trial(0, architecture="mlp"), trial(1, architecture="transformer")]
    assert set(shown(learning_curves(trials, {}))) == {"relu, mlp", "relu, transformer"}
    fixed = {"architecture": "mlp", "activation": "gelu"}
    assert set(shown(learning_curves([trial(0)], fixed))) == {"relu, mlp"}


def test_of_many_trials_the_champion_and_the_best_remain():
    many = [trial(number, bits=(3, 2 + number / 1000)) for number in range(3 * MOST)]
    worst = trial(3 * MOST, "sigmoid", bits=(3, 2.9))
    found = learning_curves([*many, worst], {}, champion=f"t{2 * MOST}")
    assert found["trials"] == 3 * MOST + 1
    left = shown(found)
    assert left["sigmoid"] == [f"trial {3 * MOST}"]
    best = [f"trial {number}" for number in range(MOST - 2)]
    assert left["relu"] == [*best, f"trial {2 * MOST}"]


def test_points_at_which_a_seed_had_failed_are_left_out():
    trials = [trial(0, bits=(3, PENALTY)), trial(1, bits=(PENALTY, PENALTY))]
    found = learning_curves(trials, {})
    (group,) = found["groups"]
    (curve,) = group["curves"]
    assert curve["tokens"] == [100]
    assert found["trials"] == 2
    diverged = trial(2, bits=(2.9, PENALTY))  # spent its budget, but for nothing
    found = learning_curves([diverged, trial(3, bits=(2.8,)), trial(4, bits=(3, 2))], {})
    assert shown(found) == {"relu": ["trial 4", "trial 3", "trial 2"]}


def test_a_trained_model_has_its_own_curve(tmp_path):
    assert kept_learning_curves(tmp_path) is None
    (tmp_path / "settings.yaml").write_text(Settings().replace(activation="tanh").to_yaml())
    write_json(tmp_path / "curve.json", trial(0)["curve"])
    found = kept_learning_curves(tmp_path)
    assert shown(found) == {"tanh, mlp": [tmp_path.name]}
    assert found["groups"][0]["curves"][0]["champion"]
    assert found["groups"][0]["curves"][0]["bits_per_byte"] == pytest.approx([3, 2])
