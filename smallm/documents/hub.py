"""Source `hub`: a dataset on the Hugging Face hub, or in a local folder, streamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smallm.documents import Document, Dropped
from smallm.errors import SmallmError, in_one_line
from smallm.settings import CorpusSettings

DATASET = ("dataset", "dataset_config", "dataset_split")
HEEDS = (*DATASET, "text_field")


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "a dataset on the Hugging Face hub (--dataset, --dataset-split, --text-field)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The dataset's revision on the hub or in the cache, or the state of a local folder."""
    name = _name(settings)
    folder = _local(name)
    if folder is not None:
        return {"dataset": str(folder), "state": _state(folder)}
    from datasets import load_dataset_builder
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import OfflineModeIsEnabled

    with _one_line(name):
        try:
            revision = str(dataset_info(name, timeout=20).sha)
        except OfflineModeIsEnabled:
            revision = f"cached {load_dataset_builder(name, settings.dataset_config).hash}"
    return {"dataset": name, "revision": revision}


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Document]:
    """Yields the rows' texts in the dataset's order."""
    for place, row in rows(settings):
        text = _text(row, settings.text_field, _name(settings))
        if not isinstance(text, str):
            dropped.add(f"row whose {settings.text_field!r} is no text", place)
        elif not text.strip():
            dropped.add("empty text", place)
        else:
            yield Document(place, "hub", text)


def rows(settings: CorpusSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of the dataset with a name for its place."""
    from datasets import load_dataset

    name = _name(settings)
    with _one_line(name):
        found = load_dataset(
            str(_local(name) or name),
            settings.dataset_config,
            split=settings.dataset_split,
            streaming=True,
        )
        for number, row in enumerate(found):
            yield f"{name}#{number}", row


def _name(settings: CorpusSettings) -> str:
    if not settings.dataset:
        other = "" if settings.source == "hub" else "--path, or "
        raise SmallmError(
            f"source {settings.source!r} needs {other}--dataset, an id on the hub or a local folder"
        )
    return settings.dataset


def _local(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else None


def _state(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        status = path.stat()
        content.update(os.fsencode(path))
        content.update(f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return content.hexdigest()


def _text(row: dict[str, Any], column: str, name: str) -> Any:
    if column not in row:
        raise SmallmError(
            f"dataset {name!r}: has no column {column!r}; columns found: {', '.join(row)}"
        )
    return row[column]


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turns what the libraries raise about a dataset into one line; theirs lists what exists."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # under either name

    try:
        yield
    except (RepositoryNotFoundError, FileNotFoundError) as error:
        raise SmallmError(f"dataset {name!r}: not found: {in_one_line(error)}") from None
    except (httpx.HTTPError, OSError) as error:
        raise SmallmError(
            f"dataset {name!r}: cannot be reached ({in_one_line(error)}); check the network, or "
            "give --dataset the folder of a downloaded copy; HF_HUB_OFFLINE=1 reads the cache alone"
        ) from None
    except (DatasetsError, RuntimeError, ValueError) as error:
        raise SmallmError(f"dataset {name!r}: {in_one_line(error)}") from None
