"""The engine of a name: the champion, another version in MLflow, a baseline, a folder, a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from smallm.baselines import CHAMPION
from smallm.champion import saved_temperature
from smallm.embeddings import WORD_MAP
from smallm.errors import SmallmError
from smallm.evaluation_run import kept_temperature
from smallm.files import read_json
from smallm.learning_curves import kept_learning_curves
from smallm.mlflow_store import fetched_version, registered_version
from smallm.predictors.causal import Causal
from smallm.predictors.loading import load_predictor, model_folder
from smallm.predictors.packing import pack
from smallm.serving.engine import Engine
from smallm.serving.settings import Resources, is_registered
from smallm.tracking import CHAMPION_URI, local_uri


def version_of(name: str, home: Path) -> str:
    """The version that a name means now; nothing for what has none."""
    if not is_registered(name):
        return ""
    return registered_version(_store(home), _model_uri(name))


def load_engine(name: str, resources: Resources, *, home: Path) -> tuple[Engine, str]:
    """The engine with the version it serves; SmallmError for what cannot be loaded."""
    version = version_of(name, home)
    folder = (
        fetched_version(_store(home), _model_uri(name), version, home)
        if version
        else model_folder(name, home=home)
    )
    predictor = load_predictor(
        str(folder), home=home, threads=resources.threads, device=resources.device
    )
    predictor.name = name
    if isinstance(predictor, Causal) and predictor.model.config.model_type != "smallm":
        pack(predictor.model)  # a SmaLLM uses its weights otherwise, and is small
    placed = folder / WORD_MAP
    words = read_json(placed) if placed.exists() else None
    temperature = _temperature(name, folder, home)
    learned = kept_learning_curves(folder)
    return Engine(predictor, temperature=temperature, words=words, learned=learned), version


def _model_uri(name: str) -> str:
    return CHAMPION_URI if name == CHAMPION else name


def _store(home: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or local_uri(home)


def _temperature(name: str, folder: Path, home: Path) -> float | None:
    """The fitted temperature, where there is one."""
    try:
        if (folder / "settings.yaml").exists():
            return saved_temperature(folder)
        return kept_temperature(name, folder=None, home=home)
    except SmallmError:  # asking for it is answered with an error of its own
        return None
