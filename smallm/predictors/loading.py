"""From a name to a predictor: a baseline, a folder, a GGUF file or a hub id. No pickle is read."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smallm.baselines import BASELINES, WEIGHTS, Unavailable, baseline, state
from smallm.errors import SmallmError, in_one_line
from smallm.files import read_json
from smallm.predictors import Kind, Predictor

FETCHED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")  # never a pickle
TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model", "words.json")  # any of these
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def load_predictor(name: str, *, home: Path, threads: int, device: str = "cpu") -> Predictor:
    """Loads a model by the name of a baseline, a folder, a GGUF file or a hub id.

    Raises SmallmError, one line, for whatever cannot be loaded.
    """
    import torch

    torch.set_num_threads(threads)
    folder = model_folder(name, home=home)
    require_model(folder)
    if kind_of(folder) == "masked":
        from smallm.predictors.masked import Masked

        model, tokenizer = _loaded(folder, "masked", device)
        return Masked(name, model, tokenizer, device=device)
    from smallm.predictors.attention import attend_together
    from smallm.predictors.causal import Causal

    model, tokenizer = _loaded(folder, "causal", device)
    attend_together(model)
    return Causal(name, model, tokenizer, device=device)


def model_folder(name: str, *, home: Path) -> Path:
    """The local folder of safetensors of a model, fetched or converted where it has to be."""
    found = state(name)
    if isinstance(found, Unavailable):
        raise SmallmError(f"{name}: {found.reason}; {found.remedy}")
    if isinstance(found.place, str):
        return _fetched(found.place)
    if found.place.is_dir():
        return found.place
    from smallm.predictors.gguf_conversion import converted

    return converted(
        found.place,
        name=name if name in BASELINES else found.place.stem,
        version=_version(name, found.place),
        home=home,
    )


def _version(name: str, file: Path) -> str:
    """What changes when a GGUF file of the same size does."""
    known = baseline(name)
    if known and known.package:
        try:
            return version(known.package)
        except PackageNotFoundError:  # a folder on the path that nobody installed
            pass
    return str(file.stat().st_mtime_ns)


def require_model(folder: Path) -> None:
    """Raises SmallmError unless the folder has config, tokenizer and whole safetensors files."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").exists():
        raise SmallmError(f"{folder}: is no model folder, it holds no config.json")
    single, index = (folder / name for name in WEIGHTS)
    files = [single]
    if not single.exists() and index.exists():
        parts = read_json(index).get("weight_map", {})
        files = [folder / part for part in sorted(set(parts.values()))]
    elif not single.exists():
        if any(each for pattern in PICKLES for each in folder.glob(pattern)):
            raise SmallmError(
                f"{folder}: holds weights only as a pickle or in another format, which can run "
                "code or is not read here: save them as model.safetensors"
            )
        raise SmallmError(f"{folder}: holds no weights (model.safetensors)")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except FileNotFoundError:
            raise SmallmError(f"{file}: is missing, the index names it") from None
        except (SafetensorError, OSError) as error:
            raise SmallmError(f"{file}: is damaged: {error}") from None
    if not any(each for pattern in TOKENIZERS for each in folder.glob(pattern)):
        raise SmallmError(f"{folder}: holds no tokenizer (tokenizer.json)")


def kind_of(folder: Path) -> Kind:
    """Causal or masked, by the model's own word, else by what transformers has for its type."""
    from transformers.models.auto import modeling_auto as auto

    config = read_json(folder / "config.json")
    kind, classes = config.get("model_type"), config.get("architectures") or []
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if any(name.endswith("ForMaskedLM") for name in classes):
        return "masked"
    if any(name == causal.get(kind) or name.endswith("ForCausalLM") for name in classes):
        return "causal"
    if kind in masked:  # some of these have a causal class as well, hardly ever trained
        return "masked"
    if kind in causal:
        return "causal"
    raise SmallmError(f"{folder}: a model of type {kind!r} is neither causal nor masked")


def _loaded(folder: Path, kind: Kind, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; in bf16 where the hardware has it, a SmaLLM in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    from smallm.hardware import has_bf16

    logging.disable_progress_bar()
    half = (
        has_bf16(torch.device(device))
        and read_json(folder / "config.json").get("model_type") != "smallm"
    )
    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForMaskedLM
    try:
        model, report = auto.from_pretrained(
            folder,
            dtype=torch.bfloat16 if half else torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises any kind, such as for a missing library
        raise SmallmError(f"{folder}: cannot be loaded: {in_one_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise SmallmError(
            f"{folder}: its weights lack {len(missing)} of the model's, such as {missing[0]}"
        )
    return model, tokenizer


def _fetched(repository: str) -> Path:
    """The local copy of a hub repository, fetched into the Hugging Face cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # under either name

    try:
        return Path(snapshot_download(repository, allow_patterns=list(FETCHED)))
    except RepositoryNotFoundError:
        raise SmallmError(f"{repository}: is not on the hub, or not for everybody") from None
    except (httpx.HTTPError, OSError) as error:
        raise SmallmError(f"{repository}: cannot be fetched: {in_one_line(error)}") from None
