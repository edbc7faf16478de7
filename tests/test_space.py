"""Search spaces: settings that are searched only where others have some value."""

import optuna
import pytest

from smallm.errors import SmallmError
from smallm.results import importance
from smallm.settings import validated
from smallm.space import Space, load_space

BOTH = {
    "settings": {"batch_size": 512},
    "search": {
        "architecture": {"choices": ["mlp", "transformer"]},
        "preset": {"choices": ["tiny", "small"], "when": {"architecture": "transformer"}},
        "hidden": {"choices": [64, 128], "when": {"architecture": "mlp"}},
        "learning_rate": {"low": 0.001, "high": 0.01, "log": True},
    },
}


def space(**changes):
    return validated(Space, {"name": "both", **BOTH, **changes})


def asked(searched, trials):
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4))
    study.enqueue_trial(searched.default_point())
    for number in range(trials):
        trial = study.ask()
        point = searched.suggest(trial)
        assert point == trial.params
        study.tell(trial, float(number % 5))
        yield point


def test_the_text_of_a_search_is_fixed_not_searched():
    with pytest.raises(SmallmError, match=r"search\.order: all trials read one text; fix it in"):
        space(search={"order": {"choices": ["hash", "stratified"]}})


def test_a_conditional_setting_is_searched_only_where_its_condition_holds():
    points = list(asked(space(), 24))
    assert points[0] == {"architecture": "mlp", "hidden": 64, "learning_rate": 0.004}
    kinds = {point["architecture"] for point in points}
    assert kinds == {"mlp", "transformer"}
    for point in points:
        assert ("hidden" in point) == (point["architecture"] == "mlp")
        assert ("preset" in point) == (point["architecture"] == "transformer")
        assert space().config(point).flat().items() >= point.items()


def test_importance_leaves_out_what_not_all_trials_have():
    points = asked(space(), 12)
    trials = [
        {"settings": point, "curve": [{"mean": 1 + 100 * point["learning_rate"]}]}
        for point in points
    ]
    assert set(importance(space(), trials)) == {"architecture", "learning_rate"}


@pytest.mark.parametrize("name", ["quick", "full"])
def test_every_config_of_a_shipped_space_is_valid(name):
    shipped = load_space(name)
    configs = [shipped.config(point) for point in asked(shipped, 30)]
    kinds = {config.model.architecture for config in configs}
    assert kinds == ({"mlp", "transformer"} if name == "full" else {"mlp"})


def test_a_fixed_setting_decides_a_condition():
    fixed = {"architecture": "transformer", "batch_size": 512}
    search = {name: each for name, each in BOTH["search"].items() if name != "architecture"}
    assert set(space(settings=fixed, search=search).default_point()) == {"preset", "learning_rate"}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"hidden": 64}, "search.preset.when names 'hidden': must be a setting, fixed or searched"),
        ({"colour": 1}, "search.preset.when names 'colour'"),
        ({"architecture": "cnn"}, "search.preset.when: architecture is never 'cnn' in this space"),
    ],
)
def test_a_condition_that_can_not_hold_is_one_line(when, expected):
    search = {**BOTH["search"], "preset": {"choices": ["tiny"], "when": when}}
    with pytest.raises(SmallmError, match=expected) as caught:
        space(search=search)
    assert "\n" not in str(caught.value)


def test_a_space_is_read_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("trials: 7\nsearch: {activation: {choices: [relu, gelu]}}\n")
    assert load_space("~/own.yaml").trials == 7


def test_the_largest_window_is_that_of_any_trial():
    space = load_space("full")
    presets = [space.config(space.default_point({"architecture": "transformer", "preset": name}))
               for name in ("tiny", "small")]  # fmt: skip
    assert space.largest_window() == max(32, *(each.model.window for each in presets))
