"""GGUF files, converted once into a folder of safetensors that loads quickly."""

from __future__ import annotations

import hashlib
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from smallm.errors import SmallmError, in_one_line
from smallm.files import whole_folder

CONVERSION = 1  # part of the digest: raise it when the result changes
AS_GPT2 = (
    "gpt-2",
    "default",
)  # pre-tokenizers that transformers' plain byte-level BPE is right for


def converted(file: Path, *, name: str, version: str, home: Path) -> Path:
    """The folder of safetensors made from a GGUF file; made now unless it is there already."""
    key = f"{CONVERSION} {file.stat().st_size} {version}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = home / "baselines" / f"{name}-{digest}"
    if not folder.exists():
        kind = _pre_tokenizer(file)
        with whole_folder(folder) as temporary:
            _convert(file, kind, temporary)
    return folder


def _pre_tokenizer(file: Path) -> str | None:
    """How the file says that text is cut before the merges; checks that it is whole, too."""
    import gguf

    try:
        field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
        return None if field is None else str(field.contents())
    except (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError) as error:
        raise SmallmError(f"{file}: is damaged or no GGUF file: {in_one_line(error)}") from None


def _convert(file: Path, pre_tokenizer: str | None, folder: Path) -> None:
    import torch
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise SmallmError(f"{file}: cannot be read by transformers: {in_one_line(error)}") from None
    _correct(tokenizer.backend_tokenizer, pre_tokenizer, file)
    tokenizer.save_pretrained(folder)
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # A model from GGUF refuses save_pretrained, though its weights are plain numbers now.
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _correct(backend: Any, pre_tokenizer: str | None, file: Path) -> None:
    """Puts the pre-tokenizer right where transformers takes that of GPT-2 for any other."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    plain = isinstance(backend.pre_tokenizer, ByteLevel)
    if pre_tokenizer == "smollm":  # every digit alone, as the model was trained
        backend.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    elif plain and pre_tokenizer not in AS_GPT2:
        raise SmallmError(
            f"{file}: its pre-tokenizer {pre_tokenizer!r} is not known here: give the folder of "
            "the original model with its tokenizer.json"
        )
