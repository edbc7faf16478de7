"""Replicates of a confirmation on disk: a search that goes on does not train them again.

A file has a replicate's weights and the columns of its scores as tensors, and the rest as JSON in
its header.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smallm.confirmation import Finalist, Replicate
from smallm.errors import SmallmError, in_one_line
from smallm.files import whole_file
from smallm.scoring import Scores
from smallm.storage import SEARCHES, Storage

FOLDER = "confirmed"  # inside that of a search
SLICES = ("selection", "final")
DAMAGED = (SafetensorError, OSError, KeyError, TypeError, ValueError)

Origin = Mapping[str, Any]
"""What decides a replicate besides its config and seed, as JSON takes it."""


def keep(folder: Path, finalist: Finalist, origin: Origin, replicate: Replicate) -> None:
    """Writes a replicate into the folder of a search.

    One that failed is not kept: it is tried again.
    """
    if replicate.failure:
        return
    columns = {
        f"{part}.{field.name}": column
        for part in SLICES
        for field in fields(Scores)
        if (column := getattr(getattr(replicate, part), field.name)) is not None
    }
    header = {
        "of": _of(finalist, origin),
        "seed": replicate.seed,
        "seconds": replicate.seconds,
    }
    weights = np.frombuffer(replicate.weights, dtype=np.uint8)
    with whole_file(_path(folder, finalist, replicate.seed)) as temporary:
        save_file({**columns, "weights": weights}, temporary, {"replicate": json.dumps(header)})


def kept(folder: Path, finalist: Finalist, origin: Origin, seed: int) -> Replicate | None:
    """A replicate that was kept; None where there is none of this config, origin and seed.

    Raises SmallmError where it cannot be read.
    """
    path = _path(folder, finalist, seed)
    try:
        return _read(path, _of(finalist, origin)) if path.exists() else None
    except DAMAGED as error:
        raise SmallmError(f"{path}: cannot be read: {in_one_line(error)}") from error


def forget(folder: Path, storage: Storage | None) -> None:
    """Deletes all that was kept of a search, here and in its storage."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    if storage:
        storage.delete(f"{SEARCHES}/{folder.name}/{FOLDER}")


def _read(path: Path, of: dict[str, Any]) -> Replicate | None:
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["replicate"])
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    if header.pop("of") != of:
        return None
    weights = columns.pop("weights").tobytes()
    parts: dict[str, dict[str, Any]] = {part: {} for part in SLICES}
    for name, column in columns.items():
        part, _, field = name.partition(".")
        parts[part][field] = column
    return Replicate(
        **header,
        failure=None,
        selection=Scores(**parts["selection"]),
        final=Scores(**parts["final"]),
        weights=weights,
    )


def _path(folder: Path, finalist: Finalist, seed: int) -> Path:
    return folder / FOLDER / f"{finalist.name.replace(' ', '-')}-{seed}.safetensors"


def _of(finalist: Finalist, origin: Origin) -> dict[str, Any]:
    """What decides a replicate besides its seed, as JSON gives it back."""
    of: dict[str, Any] = json.loads(json.dumps({**origin, "settings": finalist.settings.flat()}))
    return of
