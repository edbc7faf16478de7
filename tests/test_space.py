"""Search spaces: settings that are searched only where others have some value."""

import itertools
import json

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_report import realistic_result

from smallm.errors import SmallmError
from smallm.leaderboard import terminal_table, write_leaderboard
from smallm.report import write_report
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


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("order", ["hash", "stratified"], "search.order: all trials read one text"),
        ("training_tokens", [1000, 2000], "search.training_tokens: all trials have one budget"),
        ("evaluation_bytes", [None, 100], "evaluation_bytes: all trials are scored on the same"),
        ("evaluate_at", [[0.5, 1], [1]], "evaluate_at: all trials are scored at the same shares"),
        ("seeds", [[1], [2]], "seeds are replicates, never searched: set `seeds` of the space"),
    ],
)
def test_what_trials_must_share_to_be_compared_is_not_searched(name, choices, expected):
    with pytest.raises(SmallmError, match=expected) as caught:
        space(search={name: {"choices": choices}})
    assert "\n" not in str(caught.value)
    assert "; fix it in `settings`" in str(caught.value) or name == "seeds"


@pytest.mark.parametrize("form", [["activation"], "activation", {"activation": None}, {1: [2]}])
def test_a_search_of_another_form_is_one_line(form):
    with pytest.raises(SmallmError) as caught:
        space(search=form)
    assert "\n" not in str(caught.value)


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


def reach(**search):
    """A space of perceptrons and transformers in which only transformers differ so."""
    only = {"when": {"architecture": "transformer"}}
    architecture = {"choices": ["mlp", "transformer"]}
    return space(
        search={
            "architecture": architecture,
            **{name: {"choices": choices, **only} for name, choices in search.items()},
        }
    )


def test_a_ratio_of_trials_that_do_not_search_it_is_held_out_too():
    assert sorted(reach(split_ratio=[0.5, 0.6]).heldout_ratios()) == [0.5, 0.6, 0.8]
    below = {"split_ratio": {"low": 0.5, "high": 0.7, "when": {"architecture": "transformer"}}}
    ranged = space(search={"architecture": {"choices": ["mlp", "transformer"]}, **below})
    assert sorted(ranged.heldout_ratios()) == [0.5, 0.7, 0.8]


def test_the_tokenizers_are_those_of_all_trials():
    vocabularies = [each.vocabulary for each in reach(vocabulary=[2048, 8192]).tokenizers()]
    assert sorted(vocabularies) == [2048, 4096, 8192]


def test_the_largest_window_is_that_of_trials_that_do_not_search_it_too():
    assert reach(window=[4, 8]).largest_window() == 16
    fixed = {"batch_size": 512, "architecture": "transformer", "preset": "small"}
    narrow = {"choices": [4, 8], "when": {"activation": "relu"}}
    search = {"activation": {"choices": ["relu", "gelu"]}, "window": narrow}
    assert space(settings=fixed, search=search).largest_window() == 128


def test_a_setting_that_never_applies_adds_nothing():
    never = {"choices": [2048, 8192], "when": {"optimizer": "muon"}}
    search = {"activation": {"choices": ["relu", "gelu"]}, "vocabulary": never}
    assert [each.vocabulary for each in space(search=search).tokenizers()] == [4096]


@st.composite
def random_spaces(draw):
    """Small spaces of choices in any order, each searched under some of those above it."""
    values = {
        "architecture": ["mlp", "transformer"],
        "optimizer": ["adamw", "muon"],
        "tokenizer": ["bpe", "words"],
        "vocabulary": [2048, 8192, 16384],
        "split_ratio": [0.5, 0.6, 0.9],
    }
    search = {}
    for name in draw(st.permutations(list(values)))[: draw(st.integers(1, 5))]:
        choices = draw(st.lists(st.sampled_from(values[name]), min_size=1, unique=True))
        above = draw(st.lists(st.sampled_from(sorted(search)), unique=True)) if search else []
        when = {each: draw(st.sampled_from(search[each]["choices"])) for each in above}
        search[name] = {"choices": choices, "when": when}
    free = sorted(set(values) - set(search))
    fixed = draw(st.lists(st.sampled_from(free), unique=True)) if free else []
    return space(
        settings={name: draw(st.sampled_from(values[name])) for name in fixed}, search=search
    )


@given(random_spaces())
@settings(max_examples=60)
def test_ratios_and_tokenizers_are_exactly_those_of_all_points(searched):
    choices = [each.choices for each in searched.search.values()]
    combinations = [
        dict(zip(searched.search, values, strict=True)) for values in itertools.product(*choices)
    ]
    points = [
        searched.point(lambda name, _, chosen=chosen: chosen[name]) for chosen in combinations
    ]
    configs = [searched.config(point) for point in points]
    assert set(searched.heldout_ratios()) == {each.training.split_ratio for each in configs}
    assert set(searched.tokenizers()) == {each.tokens for each in configs}
    assert len(set(searched.tokenizers())) == len(searched.tokenizers())


NULLS = {
    "settings": {"architecture": "transformer", "batch_size": 512},
    "search": {
        "preset": {"choices": [None, "tiny"]},
        "kv_heads": {"choices": [None, 2]},
        "window": {"choices": [32, 64], "when": {"preset": None}},
        "learning_rate": {"low": 0.001, "high": 0.01, "log": True},
    },
}


def test_null_is_a_choice_and_survives_json():
    searched = space(**NULLS)
    again = validated(Space, json.loads(json.dumps(searched.model_dump(mode="json"))))
    assert again == searched
    points = list(asked(again, 24))
    assert points[0] == {"preset": None, "kv_heads": None, "window": 32, "learning_rate": 0.004}
    assert {point["preset"] for point in points} == {None, "tiny"}
    assert {point["kv_heads"] for point in points} == {None, 2}
    for point in points:
        assert ("window" in point) == (point["preset"] is None)
        assert again.config(point).flat().items() >= point.items()


def test_a_condition_of_null_does_not_hold_where_the_setting_is_not_searched():
    under = {"architecture": {"choices": ["mlp", "transformer"]}, **NULLS["search"]}
    under["preset"] = {**under["preset"], "when": {"architecture": "transformer"}}
    under["kv_heads"] = {**under["kv_heads"], "when": {"architecture": "transformer"}}
    points = list(asked(space(search=under), 24))
    assert {"mlp", "transformer"} == {point["architecture"] for point in points}
    for point in points:
        assert ("window" in point) == (point.get("preset", "unknown") is None)


def test_null_where_a_setting_has_none_is_one_line():
    with pytest.raises(SmallmError, match="learning_rate is None: Input should be a valid number"):
        space(search={"learning_rate": {"choices": [None, 0.1]}})


def test_a_range_of_a_setting_that_is_null_by_default_starts_low():
    searched = space(settings=NULLS["settings"], search={"kv_heads": {"low": 1, "high": 2}})
    assert searched.default_point() == {"kv_heads": 1}


def test_a_range_of_vocabularies_is_refused_at_once():
    with pytest.raises(SmallmError, match=r"search\.vocabulary: tokenizers need `choices`"):
        space(search={"tokenizer": {"choices": ["bpe"]}, "vocabulary": {"low": 400, "high": 900}})


def test_null_is_in_importance_tables_and_the_report(tmp_path):
    searched = space(**NULLS)
    record = realistic_result()
    for each, point in zip(record["trials"], asked(searched, 12), strict=True):
        each["settings"] = point
    for each in record["finalists"]:
        each["settings"] = record["trials"][0]["settings"]
    record |= {
        "searched": list(searched.search),
        "importance": importance(searched, record["trials"]),
    }
    assert set(record["importance"]) == {"preset", "kv_heads", "learning_rate"}
    console = Console(width=200, record=True)
    console.print(terminal_table(record))
    assert "none none" in console.export_text()
    write_leaderboard(record, tmp_path / "leaderboard.csv")
    write_report(record, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Kv heads against bits per byte" in html
    assert "The best trial had kv heads" in html
