"""Settings of the server: names with or without resources, and what they become in Ray Serve."""

from pathlib import Path

import click
import pytest
import yaml

from serve.app import build, deployment_of
from smallm.errors import SmallmError
from smallm.serving.keys import VARIABLE
from smallm.serving.settings import from_arguments

CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"


@pytest.mark.parametrize("models", ["a, b,", ["a", "b"], {"a": {}, "b": None}])
def test_models_are_given_as_a_line_a_list_or_a_mapping(models):
    settings = from_arguments({"models": models, "threads": "2"})
    assert list(settings.models) == ["a", "b"]
    assert settings.of("a").threads == 2


def test_a_model_has_what_is_given_for_all_unless_it_has_its_own():
    settings = from_arguments({"models": {"a": {"threads": 4, "gpus": 0.5}, "b": {}}, "cpus": 1})
    assert (settings.of("a").threads, settings.of("a").cpus, settings.of("a").gpus) == (4, 1, 0.5)
    assert (settings.of("b").threads, settings.of("b").cpus, settings.of("b").gpus) == (1, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"models": ""}, "models"),
        ({"models": {"a": {"thread": 1}}}, "thread"),
        ({"models": {"a": {"threads": 0}}}, "threads is 0"),
        ({"models": "a", "most_tokns": 3}, "most_tokns"),
        ({"models": "a", "request_timeout": "soon"}, "request_timeout"),
        ({"models": {"a": {"replicas": 3, "most_replicas": 2}}}, "most_replicas"),
    ],
)
def test_wrong_settings_are_named(arguments, says):
    with pytest.raises(SmallmError, match=says):
        from_arguments(arguments)
    with pytest.raises(click.ClickException, match=says):
        build(arguments)


def test_resources_replicas_and_autoscaling_reach_ray():
    settings = from_arguments(
        {"models": {"a": {"replicas": 2, "cpus": 1.5, "gpus": 0.25}, "b/c": {"most_replicas": 4}}}
    )
    fixed, scaled = (deployment_of(name, settings) for name in settings.models)
    assert fixed.num_replicas == 2
    assert fixed.ray_actor_options["num_cpus"] == 1.5
    assert fixed.ray_actor_options["num_gpus"] == 0.25
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaled.name == "b-c"


@pytest.mark.parametrize(
    ("uri", "name", "on_the_head"),
    [
        ("http://127.0.0.1:5000", "champion", True),
        ("sqlite:////root/mlflow.db", "models:/smallm/3", True),
        ("", "champion", True),
        ("https://mlflow.example.org", "champion", False),
        ("http://127.0.0.1:5000", "smollm2-135m", False),
    ],
)
def test_a_model_that_only_the_head_can_fetch_is_served_there(monkeypatch, uri, name, on_the_head):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    settings = from_arguments({"models": [name]})
    assert bool(deployment_of(name, settings).ray_actor_options["resources"]) == on_the_head


def test_the_settings_file_of_a_cluster_is_what_ray_and_the_server_take():
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    deployed = ServeDeploySchema.model_validate(content)
    assert deployed.http_options.host == "127.0.0.1"
    (application,) = deployed.applications
    assert application.import_path == "serve.app:build"
    settings = from_arguments(application.args)
    timeout = content["http_options"]["request_timeout_s"]
    assert timeout > settings.request_timeout


def test_the_fast_front_and_a_bad_file_of_keys_end_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(click.ClickException, match="all addresses: give a file of keys"):
        build({"models": "a"})
    keys = tmp_path / "keys"
    keys.write_text("short\n", encoding="utf-8")
    keys.chmod(0o600)
    with pytest.raises(click.ClickException, match="line 1: a key has at least 16"):
        build({"models": "a", "key_file": str(keys)})
