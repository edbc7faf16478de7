"""The engine of a name: the champion of MLflow, a baseline, a folder or a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from smallm.baselines import CHAMPION
from smallm.champion import saved_temperature
from smallm.errors import SmallmError
from smallm.evaluation_run import kept_temperature
from smallm.mlflow_store import fetched_champion
from smallm.predictors.loading import load_predictor, model_folder
from smallm.serving.engine import Engine
from smallm.tracking import local_uri


def load_engine(name: str, *, home: Path, threads: int, device: str) -> tuple[Engine, str]:
    """The engine with the version it serves; SmallmError for what cannot be loaded."""
    if name == CHAMPION:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(home)
        version, folder = fetched_champion(uri, home)
    else:
        version, folder = "", model_folder(name, home=home)
    predictor = load_predictor(str(folder), home=home, threads=threads, device=device)
    predictor.name = name
    return Engine(predictor, temperature=_temperature(name, folder, home)), version


def _temperature(name: str, folder: Path, home: Path) -> float | None:
    """The fitted temperature, where there is one."""
    try:
        if (folder / "settings.yaml").exists():
            return saved_temperature(folder)
        return kept_temperature(name, folder=None, home=home)
    except SmallmError:  # asking for it is answered with an error of its own
        return None
