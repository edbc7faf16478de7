"""Settings: one source of defaults, one line for every mistake."""

import pytest
import yaml

from smallm.errors import SmallmError
from smallm.ledger import asked_for
from smallm.settings import SHAPE, Settings, fields, groups_of_fields, overlaid, read_yaml
from smallm.space import load_space


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"activation": "rellu"}, "unknown activation 'rellu' (did you mean relu"),
        ({"source": "foldr"}, "unknown source 'foldr' (did you mean folder?)"),
        ({"architecture": "cnn"}, "unknown architecture 'cnn'; known: mlp, transformer"),
        ({"learning_rat": 0.1}, "unknown setting 'learning_rat' (did you mean learning_rate"),
        ({"learning_rate": -1}, "learning_rate is -1: Input should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: Input should be a finite number"),
        ({"split_ratio": 1.0}, "split_ratio is 1.0: Input should be less than 1"),
        ({"vocabulary": 65_001}, "vocabulary is 65001: Input should be less than or equal to"),
        ({"tokenizer": "chars"}, "tokenizer is 'chars': Input should be 'bpe' or 'words'"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]: needs at least one seed, all different"),
        ({"evaluate_at": [0.5]}, "evaluate_at is [0.5]: must rise from above 0 to 1"),
        ({"window": "wide"}, "window is 'wide': Input should be a valid integer"),
    ],
)
def test_a_mistake_is_one_line_that_names_field_value_and_what_is_allowed(values, expected):
    with pytest.raises(SmallmError) as caught:
        Settings.from_flat(values)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_told_together():
    with pytest.raises(SmallmError, match=r"^dropout is 1.*; clip is 0: "):
        Settings.from_flat({"dropout": 1, "clip": 0})


def test_flat_values_give_the_settings_back():
    settings = Settings().replace(activation="tanh", seeds=[7], path="texts", evaluation_bytes=None)
    assert Settings.from_flat(settings.flat()) == settings
    assert settings.training.seeds == (7,)
    assert settings.corpus.path == "texts"


def test_a_yaml_file_gives_the_settings_back_and_explains_each(tmp_path):
    settings = Settings().replace(learning_rate=1e-5, order="stratified", text_field="Körper: x")
    file = tmp_path / "run.yaml"
    file.write_text(settings.to_yaml(), encoding="utf-8")
    assert Settings.from_flat(read_yaml(file)) == settings
    assert file.read_text(encoding="utf-8").count("# ") == len(fields())


def test_an_empty_yaml_file_means_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Settings.from_flat(read_yaml(tmp_path / "empty.yaml")) == Settings()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b\n", "must hold `name: value` lines, found list"),
        (b"a: [1\nb", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_yaml_file_is_named_in_one_line(tmp_path, content, expected):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SmallmError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


def test_every_flat_name_is_unique_and_has_an_explanation():
    names = [name for group in Settings().model_dump().values() for name in group]
    assert sorted(names) == sorted(groups_of_fields())
    assert all(field.description for field in fields().values())


def test_settings_can_not_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Settings().model.window = 3


def test_defaults_survive_a_yaml_parser():
    assert yaml.safe_load(Settings().to_yaml()) == Settings().flat()


V2 = {"architecture": "transformer"}


def test_a_preset_is_a_shape_where_no_other_is_given():
    model = Settings.from_flat({**V2, "preset": "tiny", "embedding": 64}).model
    assert (model.embedding, model.hidden, model.depth) == (64, 512, 4)
    tiny = Settings().replace(**V2, preset="tiny")
    assert tiny.model.embedding == 128
    assert tiny.replace(learning_rate=0.1).model == tiny.model
    assert tiny.replace(window=32).model == tiny.model.model_copy(update={"window": 32})


def test_a_preset_wins_over_a_whole_shape_that_it_is_laid_over():
    file = {**V2, "embedding": 64, "hidden": 9}
    assert overlaid(file, {"preset": "tiny"}) == {**V2, "preset": "tiny"}
    assert overlaid(file, {"preset": "tiny", "depth": 2}) == {**V2, "preset": "tiny", "depth": 2}
    assert overlaid({"preset": "tiny"}, {"depth": 2}) == {"preset": "tiny", "depth": 2}


def shapes(space, **point):
    model = space.config({**space.default_point(point), **point}).model
    return model.embedding, model.hidden, model.depth, model.window


def test_the_corpus_of_a_search_is_that_of_all_its_configs():
    quick = load_space("quick")
    searched, corpus = asked_for(quick, {"source": "folder", "path": "notes", "hidden": 9})
    assert (corpus.source, corpus.path) == ("folder", "notes")
    config = searched.config(searched.default_point())
    assert config.corpus == corpus
    assert config.model.hidden == 9
    own = quick.model_copy(
        update={"settings": {**quick.settings, "source": "folder", "path": "a", "order": "hash"}}
    )
    searched, corpus = asked_for(own, {"path": "b"})
    assert (corpus.source, corpus.path) == ("folder", "b")
    assert searched.config(searched.default_point()).corpus == corpus
    _, corpus = asked_for(own, {"source": "docs", "path": None})
    assert corpus.source == "docs"


def test_what_a_person_fixes_of_a_shape_is_not_searched_and_wins():
    fixed, _ = asked_for(load_space("quick"), {**V2, "preset": "tiny", "batch_size": 512})
    assert not SHAPE & set(fixed.search)
    assert shapes(fixed) == (128, 512, 4, 64)
    part, _ = asked_for(load_space("full"), {"window": 32, "muon_learning_rate": 0.05})
    assert shapes(part, architecture="transformer", preset="tiny") == (128, 512, 4, 32)
    assert shapes(part, architecture="transformer", preset="small") == (256, 1024, 6, 32)
    assert shapes(part, architecture="mlp")[3] == 32
    heads, _ = asked_for(load_space("full"), {**V2, "heads": 2})
    assert heads.config(heads.default_point()).model.heads == 2
