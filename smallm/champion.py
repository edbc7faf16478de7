"""A trained model as a Hugging Face folder with its tokenizer and model card, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from smallm.errors import SmallmError
from smallm.files import read_json, write_json, write_text
from smallm.settings import ModelSettings, Settings, read_yaml
from smallm.token_tape import TokenTape, copy_tokenizer
from smallm.tokens import Tokenizer, load_tokenizer

ORIGIN = "origin.json"


def save_model(
    core: nn.Module,
    settings: Settings,
    tokens: TokenTape,
    folder: Path,
    *,
    card: str,
    heldout_above: float,
    temperature: float | None = None,
) -> None:
    """Writes config, safetensors weights, tokenizer and model card into an existing folder.

    `heldout_above` is the largest split ratio of the search: above it lie the selection slice and
    the final slice. With a fitted temperature, the model's `generate` samples with it unless told
    otherwise.
    """
    from transformers.utils import logging

    from smallm.models.huggingface import wrap

    logging.disable_progress_bar()  # one small file: a bar would only flood a log
    model = wrap(core, settings.model, tokens.tokenizer)
    if temperature is not None:
        # transformers refuses to save a temperature that its own default, greedy, would ignore
        model.generation_config.update(do_sample=True, temperature=temperature)
    model.save_pretrained(folder)
    copy_tokenizer(tokens, folder)
    write_text(folder / "README.md", card)
    write_text(folder / "settings.yaml", settings.to_yaml())
    origin = {
        "corpus": tokens.tape.manifest["digest"],
        "heldout_above": heldout_above,
        "code": tokens.tape.manifest["code"],
        "sources": sorted(set(tokens.tape.column("source"))),
    }
    write_json(folder / ORIGIN, origin)


@dataclass(frozen=True)
class Origin:
    """What a saved SmaLLM was trained and chosen on."""

    settings: Settings
    corpus: str
    """Digest of the tape."""
    heldout_above: float
    """Largest split ratio of its search."""
    code: str = ""
    """Digest of the code that made its documents."""
    sources: Sequence[str] = ()
    """Names of the sources of its text."""


def read_origin(folder: Path) -> Origin:
    """The origin of a folder that `save_model` wrote."""
    settings = Settings.from_flat(read_yaml(folder / "settings.yaml"))
    try:
        return Origin(settings, **read_json(folder / ORIGIN))
    except TypeError as error:
        raise SmallmError(f"{folder / ORIGIN}: is no origin of a model: {error}") from None


def load_core(folder: Path) -> tuple[nn.Module, ModelSettings, Tokenizer]:
    """The module, its shape and its tokenizer from a folder that `save_model` wrote."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from smallm.models.huggingface import SmaLLMForCausalLM

    logging.disable_progress_bar()
    if not (folder / "config.json").exists():
        raise SmallmError(f"{folder}: is no model folder, it holds no config.json")
    model = AutoModelForCausalLM.from_pretrained(folder)
    if not isinstance(model, SmaLLMForCausalLM):
        raise SmallmError(f"{folder}: holds a {type(model).__name__}, not a SmaLLM")
    return model.core, ModelSettings(**model.config.shape), load_tokenizer(folder)


def saved_temperature(folder: Path) -> float:
    """The fitted temperature that `save_model` wrote; SmallmError when there is none."""
    file = folder / "generation_config.json"
    temperature = read_json(file).get("temperature") if file.exists() else None
    if temperature is None:
        raise SmallmError(f"{folder}: holds no fitted temperature; give --temperature a number")
    return float(temperature)


def model_card(
    *,
    title: str,
    facts: dict[str, object],
    metrics: dict[str, str],
    settings: Settings,
    conclusion: list[str],
) -> str:
    """A model card: what it is, how good with intervals, what it was trained on, how to load it."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in metrics.items())
    known = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [smallm]
---
# {title}

{" ".join(conclusion)}

## Scores on the final slice

| metric | value |
|---|---|
{rows}

## Origin

{known}

## Load

```python
import smallm
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this folder")
model = AutoModelForCausalLM.from_pretrained("this folder")
ids = tokenizer("Neural networks are", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))
```

## Settings

```yaml
{settings.to_yaml()}```
"""
