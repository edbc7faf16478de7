"""The settings of the server, as `serve run serve.app:build name=value` gives them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from smallm.baselines import CHAMPION, default_models
from smallm.serving import api_page, page
from smallm.serving.guard import OPEN_PATHS, Rules
from smallm.serving.keys import Keys, is_loopback
from smallm.settings import Group, validated

REGISTERED = "models:/"


def is_registered(name: str) -> bool:
    """Whether a name means a version in MLflow, which may change."""
    return name == CHAMPION or name.startswith(REGISTERED)


def is_on_this_machine(name: str) -> bool:
    """Whether a model is from an MLflow that no other machine reaches: a file, or on loopback."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    host = urlsplit(uri).hostname  # a file has none
    return is_registered(name) and (host is None or is_loopback(host))


class Resources(Group):
    """What one model gets."""

    threads: int = Field(default=1, ge=1)
    """Threads of each replica."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    cpus: float = Field(default=0, ge=0)
    """Processors that Ray keeps for each replica; 0 lets the models share the machine."""
    gpus: float = Field(default=0, ge=0)
    """GPUs, or a part of one, that Ray keeps for each replica."""
    replicas: int = Field(default=1, ge=1)
    """Processes that serve the model; with most_replicas the fewest."""
    most_replicas: int | None = Field(default=None, ge=1)
    """As many as Ray starts when more is asked than the others can answer."""

    @field_validator("most_replicas")
    @classmethod
    def _not_fewer(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < info.data.get("replicas", 1):
            raise ValueError("must not be below replicas")
        return most

    @property
    def largest(self) -> int:
        """The most processes there can be."""
        return self.most_replicas or self.replicas


def _by_name(given: Any) -> Any:
    """Names separated by commas, a list of names, or names with resources."""
    if isinstance(given, str):
        given = list(filter(None, map(str.strip, given.split(","))))
    if isinstance(given, list | tuple):
        return {name: {} for name in given}
    return {name: own or {} for name, own in given.items()} if isinstance(given, dict) else given


class ServeSettings(Resources):
    """Which models are served, and how much one request may ask for."""

    models: Annotated[dict[str, dict[str, Any]], BeforeValidator(_by_name), Field(min_length=1)] = (
        Field(default_factory=lambda: _by_name(default_models()))
    )
    """The champion of MLflow, models:/smallm/3, baselines, folders, hub ids: a name, or a name
    with resources of its own."""
    key_file: Path | None = None
    """API keys, one a line; without it those of SMALLM_API_KEYS, separated by commas. Without
    keys only this machine is answered."""
    poll_seconds: float = Field(default=30, gt=0)
    """How often MLflow is asked for a new champion."""
    request_timeout: float = Field(default=60, gt=0)
    """Seconds after which a request that has no answer gets an error."""
    most_tokens: int = Field(default=1024, ge=1)
    """Largest max_tokens."""
    most_continuations: int = Field(default=16, ge=1)
    """Largest number of prompts times n of one request."""
    most_words: int = Field(default=100, ge=1)
    """Largest k of next words."""
    most_characters: int = Field(default=20_000, ge=1)
    """Longest prompt or text."""
    most_waiting: int = Field(default=256, ge=1)
    """Requests that one model works on or that wait for it; others are told to try again."""
    most_body_bytes: int = Field(default=Rules.most_body_bytes, ge=1)
    """Largest body of a request."""
    most_running: int = Field(default=Rules.most_running, ge=1)
    """Requests of all clients at once."""
    most_running_per_key: int = Field(default=Rules.most_running_per_key, ge=1)
    """Requests at once of one key; without keys, of one client address."""
    body_timeout: float = Field(default=Rules.body_timeout, gt=0)
    """Seconds in which the body of a request must arrive."""

    def of(self, model: str) -> Resources:
        """What a model gets: its own, else what is given for all; SmallmError names a wrong one."""
        shared = {name: getattr(self, name) for name in Resources.model_fields}
        return validated(Resources, shared | self.models[model])

    def rules(self, keys: Keys | None) -> Rules:
        """What the guard heeds."""
        return Rules(
            keys=keys,
            open_paths=OPEN_PATHS | page.OPEN_PATHS | api_page.PATHS,
            most_body_bytes=self.most_body_bytes,
            most_running=self.most_running,
            most_running_per_key=self.most_running_per_key,
            body_timeout=self.body_timeout,
        )


def from_arguments(arguments: Mapping[str, Any]) -> ServeSettings:
    """The settings of name=value arguments; SmallmError names what is wrong."""
    settings = validated(ServeSettings, dict(arguments))
    for name in settings.models:
        settings.of(name)
    return settings
