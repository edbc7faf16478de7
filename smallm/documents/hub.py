"""Source `hub`: a dataset on the Hugging Face hub, or in a local folder, streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smallm.documents import Document, Dropped
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return "a dataset on the Hugging Face hub (--dataset, --dataset-split, --text-field)"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The dataset's revision on the hub, or the files of a local folder with sizes and times."""
    name = _name(settings)
    folder = Path(name).expanduser()
    if folder.is_dir():
        content = hashlib.sha256()
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            status = path.stat()
            content.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return {"dataset": str(folder.resolve()), "state": content.hexdigest()}
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return {"dataset": name, "revision": str(dataset_info(name, timeout=20).sha)}
    except HFValidationError as error:
        raise SmallmError(f"dataset {name!r}: no such folder, nor a hub id: {error}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(name, error) from None


def read(settings: CorpusSettings, dropped: Dropped, *, workers: int) -> Iterator[Document]:
    """Yields the rows' texts in the dataset's order."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name = _name(settings)
    try:
        rows = load_dataset(
            name, settings.dataset_config, split=settings.dataset_split, streaming=True
        )
    except ValueError as error:  # unknown split or configuration: the message lists them
        raise SmallmError(f"dataset {name!r}: {' '.join(str(error).split())}") from None
    except (DatasetNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(name, error) from None
    for number, row in enumerate(rows):
        text = _text(row, settings.text_field, name)
        if not isinstance(text, str):
            dropped.add(f"row whose {settings.text_field!r} is no text", f"{name}:{number}")
        elif not text.strip():
            dropped.add("empty text", f"{name}:{number}")
        else:
            yield Document(f"{name}#{number}", "hub", text)


def _text(row: dict[str, Any], column: str, name: str) -> Any:
    if column not in row:
        raise SmallmError(
            f"dataset {name!r}: has no column {column!r}; columns found: {', '.join(row)}"
        )
    return row[column]


def _name(settings: CorpusSettings) -> str:
    if not settings.dataset:
        raise SmallmError("source 'hub' needs --dataset, an id on the hub or a local folder")
    return settings.dataset


def _unreachable(name: str, error: Exception) -> SmallmError:
    return SmallmError(
        f"dataset {name!r}: cannot be reached ({' '.join(str(error).split())[:200]}); check the "
        "id and the network, or give --dataset the folder of a downloaded copy"
    )
