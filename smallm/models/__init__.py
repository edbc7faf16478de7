"""SmaLLMs as Hugging Face models: configuration, wrapper, and the registry of architectures."""

from __future__ import annotations

from importlib import import_module

ARCHITECTURES: dict[str, str] = {
    "mlp": "smallm.models.mlp:MLP",
    "transformer": "smallm.models.transformer:Transformer",
}


def architecture(name: str) -> type:
    """The module class of an architecture; torch is imported only now.

    Built from the settings and the number of ids it predicts, a module draws its weights by
    `initialize`. With `reads_sequences`, it gives logits (b, t, ids) of ids (b, t); else (b, ids)
    of windows (b, window). Its logits depend on the last `reach` ids.
    """
    module, attribute = ARCHITECTURES[name].split(":")
    found: type = getattr(import_module(module), attribute)
    return found
