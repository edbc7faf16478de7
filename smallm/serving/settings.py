"""The settings of the server, as `serve run serve.app:build name=value` gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from smallm.baselines import default_models
from smallm.settings import Group, validated


def _listed(given: Any) -> Any:
    """Names separated by commas, as a command line has them."""
    return (
        tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given
    )


class ServeSettings(Group):
    """Which models are served, and how much one request may ask for."""

    models: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = tuple(
        default_models()
    )
    """The champion of MLflow, baselines, folders, hub ids."""
    threads: int = Field(default=1, ge=1)
    """Threads of each model."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    request_timeout: float = Field(default=60, gt=0)
    """Seconds after which a request that has no answer gets an error."""
    most_tokens: int = Field(default=1024, ge=1)
    """Largest max_tokens."""
    most_prompts: int = Field(default=16, ge=1)
    """Largest number of prompts, and largest n, of one request."""
    most_words: int = Field(default=100, ge=1)
    """Largest k of next words."""


def from_arguments(arguments: Mapping[str, Any]) -> ServeSettings:
    """The settings of name=value arguments; SmallmError names what is wrong."""
    return validated(ServeSettings, dict(arguments))
