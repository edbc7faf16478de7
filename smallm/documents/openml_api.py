"""The descriptions of OpenML's datasets, from its API through the package `openml`."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from smallm.documents import Dropped
from smallm.errors import SmallmError, in_one_line

OPENML = "openml"


def openml_fingerprint() -> Mapping[str, str]:
    """Which datasets there are."""
    with _connected() as api:
        numbers = " ".join(map(str, sorted(_listing(api)["did"])))
        return {"openml": hashlib.sha256(numbers.encode()).hexdigest()}


def openml_records(dropped: Dropped) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and description of every active dataset."""
    with _connected() as api:
        listed = _listing(api)
        for number, name in zip(listed["did"], listed["name"], strict=True):
            place = f"openml#{number}"
            try:
                text = api.datasets.get_dataset(int(number), download_data=False).description
            except api.exceptions.OpenMLServerException as error:
                dropped.add("dataset that OpenML does not give", f"{place}: {in_one_line(error)}")
                continue
            if text:
                yield place, {"kind": "description", "title": str(name), "text": text}
            else:
                dropped.add("dataset without a description", place)


def _listing(api: ModuleType) -> Any:
    return api.datasets.list_datasets(output_format="dataframe", status="active")


@contextmanager
def _connected() -> Iterator[ModuleType]:
    """The package, with a cache that does not outlive the block; trouble as one line."""
    try:
        import openml
    except ImportError:
        raise SmallmError(
            "--dataset openml needs the package openml: pip install 'smallm[openml]'"
        ) from None
    import requests

    with tempfile.TemporaryDirectory(prefix="smallm-openml-") as cache:
        openml.config.set_root_cache_directory(cache)
        try:
            yield openml
        except (OSError, requests.RequestException, openml.exceptions.PyOpenMLError) as error:
            raise SmallmError(
                f"OpenML at {openml.config.server} cannot be read: {in_one_line(error)}"
            ) from None
