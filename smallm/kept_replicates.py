"""Replicates of a confirmation on disk: a search that goes on does not train them again.

A file has a replicate's weights and the columns of its scores as tensors, and the rest as JSON in
its header.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from smallm.confirmation import Finalist, Replicate
from smallm.files import whole_file
from smallm.scoring import Scores

FOLDER = "confirmed"  # inside that of a search
SLICES = ("selection", "final")


def keep(folder: Path, finalist: Finalist, text: str, replicate: Replicate) -> None:
    """Writes a replicate that was trained on the text of a digest into the folder of a search.

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
        "of": _origin(finalist, text),
        "seed": replicate.seed,
        "seconds": replicate.seconds,
    }
    weights = np.frombuffer(replicate.weights, dtype=np.uint8)
    with whole_file(_path(folder, finalist, replicate.seed)) as temporary:
        save_file({**columns, "weights": weights}, temporary, {"replicate": json.dumps(header)})


def kept(folder: Path, finalist: Finalist, text: str, seed: int) -> Replicate | None:
    """A replicate that was kept; None where there is none of this config, text and seed."""
    path = _path(folder, finalist, seed)
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["replicate"])
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    if header.pop("of") != _origin(finalist, text):
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


def _origin(finalist: Finalist, text: str) -> dict[str, Any]:
    """What decides a replicate besides its seed, as JSON gives it back."""
    origin: dict[str, Any] = json.loads(
        json.dumps({"settings": finalist.settings.flat(), "text": text})
    )
    return origin
