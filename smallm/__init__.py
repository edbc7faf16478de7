"""SmaLLM trains, compares and serves small next-word language models."""

from importlib import import_module

import wrapt

__version__ = "0.1.0"

# Saved SmaLLMs load through transformers' Auto classes as soon as both are imported, in any
# order, without paying for transformers where nobody uses it.
for _module in ("modeling_auto", "tokenization_auto"):
    wrapt.register_post_import_hook(
        lambda _: import_module("smallm.models.huggingface"), f"transformers.models.auto.{_module}"
    )
