"""The searches that benchmarks.orchestration compares: `python -m benchmarks.orchestrators KIND`.

Each tries the same trivial objective in a process of its own and prints one line of JSON: seconds
of the search, seconds in which MLflow recorded the rest, and the driver's memory on the way.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

SLOTS = 2
LOOK_SECONDS = 0.5  # how often the memory of the driver is looked at
EXPERIMENT = "orchestration"
REDUCTION = 2  # of successive halving


def value(learning_rate: float, share: float) -> float:
    """The trivial objective: best at a rate of 0.01, lower the later it is asked."""
    return 2 + abs(math.log(learning_rate / 0.01)) - share


class Memory:
    """The resident memory of this process while it works, in MB."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(LOOK_SECONDS):
            self.seen.append(process.memory_info().rss / 1e6)

    def taken(self) -> list[float]:
        """All that was seen."""
        self._ended.set()
        self._thread.join()
        return self.seen


def smallm_search(folder: Path, trials: int, reports: int, *, mlflow: bool) -> dict[str, Any]:
    """SmaLLM's own, with its journal and MLflow behind it."""
    import ray

    from smallm.ledger import Ledger, new_search
    from smallm.settings import CorpusSettings
    from smallm.space import Space
    from smallm.tracking import local_uri
    from tune import search

    space = Space.model_validate(
        {
            "name": "trivial",
            "trials": trials,
            "reduction": REDUCTION,
            "seeds": [42],
            "confirmation_seeds": [1],
            "settings": {"evaluate_at": [(at + 1) / reports for at in range(reports)]},
            "search": {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}},
        }
    )
    ledger = Ledger(new_search(folder, space, CorpusSettings()), uri=local_uri(folder))
    ledger.folders = {}
    ledger.tracker.start_run("search", name=EXPERIMENT, params={}, tags={})
    tracker = ledger.tracker
    if not mlflow:
        ledger.tracker = NoTracker()  # type: ignore[assignment]
    _start_ray()
    mark = ledger.folder / "search.json"
    place = {"home": ledger.home, "storage": None, "say": print, "joined": False}
    job = search.make_job(space, ledger.folders, mark, **place)
    tuner = search.make_tuner(ledger, job, trial=_reports_of_smallm)
    found = _timed(tuner.fit, trials)
    start = time.perf_counter()
    pending = tracker.close(timeout=600)
    found["recording"] = time.perf_counter() - start
    assert not pending, f"{pending} records were not taken by MLflow"
    ray.shutdown()
    return found


class NoTracker:
    """Takes nothing down, to see what MLflow costs."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    def start_run(self, key: str, **_: Any) -> None:
        """Nothing."""

    def log(self, key: str, metrics: dict[str, float], **_: Any) -> None:
        """Nothing."""

    def end_run(self, key: str, **_: Any) -> None:
        """Nothing."""


def _reports_of_smallm(config: dict[str, Any], **given: Any) -> None:
    from ray import tune

    from smallm import results
    from smallm.training import Progress
    from tune.search import packed

    space = given["space"]
    settings = space.config(config["point"])
    budget, shares = settings.training.training_tokens, settings.training.evaluate_at
    for rung, share in enumerate(shares, start=1):
        scored = {42: value(settings.training.learning_rate, share)}
        progress = Progress(round(share * budget), budget, rung, 0.0, 0.0, scored, scored, {})
        tune.report(packed(results.reported(progress, reduction=space.reduction)))


def plain_tune(folder: Path, trials: int, reports: int, *, mlflow: bool) -> dict[str, Any]:
    """Ray Tune with its own OptunaSearch and, if asked for, its own MLflowLoggerCallback."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    from smallm.tracking import local_uri

    callbacks = (
        [MLflowLoggerCallback(tracking_uri=local_uri(folder), experiment_name=EXPERIMENT)]
        if mlflow
        else []
    )
    _start_ray()
    tuner = tune.Tuner(
        tune.with_parameters(_reports_of_tune, reports=reports),
        param_space={"learning_rate": tune.loguniform(0.001, 0.1)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="min",
            search_alg=OptunaSearch(seed=42),
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="milestone",
                grace_period=1,
                reduction_factor=REDUCTION,
                max_t=REDUCTION ** (reports - 1) + 1,
            ),
            num_samples=trials,
        ),
        run_config=tune.RunConfig(storage_path=str(folder), callbacks=callbacks, verbose=0),
    )
    found = _timed(tuner.fit, trials)
    ray.shutdown()
    return found


def _reports_of_tune(config: dict[str, Any], reports: int) -> None:
    from ray import tune

    for rung in range(reports):
        score = value(config["learning_rate"], (rung + 1) / reports)
        tune.report({"value": score, "milestone": REDUCTION**rung})


def joblib_optuna(folder: Path, trials: int, reports: int, *, mlflow: bool) -> dict[str, Any]:
    """Optuna alone: processes of joblib that share a journal file; nothing goes to MLflow."""
    import joblib
    import optuna

    del mlflow
    file = str(folder / "journal.log")
    optuna.create_study(storage=_journal(file), study_name=EXPERIMENT)

    def search() -> None:
        shares = [trials // SLOTS + (slot < trials % SLOTS) for slot in range(SLOTS)]
        joblib.Parallel(n_jobs=SLOTS)(
            joblib.delayed(_optimize)(file, share, reports, 42 + slot)
            for slot, share in enumerate(shares)
        )

    return _timed(search, trials)


def _journal(file: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(file))


def _optimize(file: str, trials: int, reports: int, seed: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(
        storage=_journal(file),
        study_name=EXPERIMENT,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(reduction_factor=REDUCTION),
    )

    def objective(trial: Any) -> float:
        rate = trial.suggest_float("learning_rate", 0.001, 0.1, log=True)
        for rung in range(reports):
            trial.report(value(rate, (rung + 1) / reports), step=REDUCTION**rung)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value(rate, 1.0)

    study.optimize(objective, n_trials=trials)


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _timed(work: Callable[[], Any], trials: int) -> dict[str, Any]:
    memory = Memory()
    start = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start, "memory": memory.taken(), "trials": trials}


KINDS = {"smallm": smallm_search, "tune": plain_tune, "optuna": joblib_optuna}


def main() -> None:
    """Searches once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--reports", type=int, required=True)
    parser.add_argument("--mlflow", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = KINDS[options.kind](
            Path(folder), options.trials, options.reports, mlflow=options.mlflow
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
