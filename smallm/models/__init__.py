"""SmaLLMs as Hugging Face models: configuration, wrapper, and the registry of architectures."""

from __future__ import annotations

from importlib import import_module

ARCHITECTURES: dict[str, str] = {"mlp": "smallm.models.mlp:MLP"}


def architecture(name: str) -> type:
    """The module class of an architecture; torch is imported only now."""
    module, attribute = ARCHITECTURES[name].split(":")
    found: type = getattr(import_module(module), attribute)
    return found
