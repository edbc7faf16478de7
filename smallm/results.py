"""The result record of a search, assembled from rows: what `result.json` and the report hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smallm import significance
from smallm.activity import ACTIVITY
from smallm.corpus_profile import corpus_profile
from smallm.space import Space
from smallm.tape import Tape
from smallm.training import PENALTY, Progress

METRIC = "bits_per_byte"
MILESTONE = "milestone"
SAMPLES = 3  # documents whose beginnings the report shows


def reported(progress: Progress, *, reduction: int) -> dict[str, Any]:
    """A progress record as Ray Tune and MLflow take it: flat numbers.

    `milestone` grows by the reduction factor at every evaluation, so that each one is a rung of
    successive halving wherever it lies in the budget.
    """
    return {
        METRIC: progress.mean,
        "spread": progress.spread,
        MILESTONE: reduction ** (progress.rung - 1),
        "rung": progress.rung,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second,
        "precision": progress.precision,
        "finished": progress.done or len(progress.failures) == len(progress.bits_per_byte),
        "failure": "; ".join(f"seed {seed} {why}" for seed, why in progress.failures.items()),
        **{f"{METRIC}/seed_{seed}": bits for seed, bits in progress.bits_per_byte.items()},
        **{f"loss/seed_{seed}": loss for seed, loss in progress.loss.items()},
        **{
            f"{name}/seed_{seed}": value
            for seed, found in progress.activity.items()
            for name, value in found.of_all().items()
        },
    }


def trial_record(
    *,
    id: str,
    number: int,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    error: str | None,
    interrupted: bool,
    seeds: Sequence[int],
    machine: str | None = None,
) -> dict[str, Any]:
    """A trial as the result record holds it, from what it reported; `machine` ran it last."""
    curve = [_point(row, seeds) for row in _once(rows)]
    last = rows[-1] if rows else {}
    status, reason = _ended(last, error, interrupted)
    measured = curve[-1] if curve and status != "failed" else None
    return {
        "id": id,
        "number": number,
        "settings": dict(settings),
        "status": status,
        "reason": reason,
        "machine": machine,
        "precision": last.get("precision"),
        "tokens": int(last.get("tokens", 0)),
        "seconds": float(last.get("seconds", 0.0)),
        METRIC: None
        if measured is None
        else {
            "mean": measured["mean"],
            "spread": float(last["spread"]),
            "per_seed": measured["per_seed"],
        },
        "curve": curve,
    }


def _once(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A resumed trial reports some rows again: the first of each stands."""
    first: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["tokens"], row)
    return list(first.values())


def _point(row: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "tokens": int(row["tokens"]),
        "seconds": float(row["seconds"]),
        "mean": float(row[METRIC]),
        "per_seed": {str(seed): float(row[f"{METRIC}/seed_{seed}"]) for seed in seeds},
        "activity": _activity(row, seeds),
    }


def _activity(row: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, float] | None:
    """What the hidden units did, as a mean over the seeds that have not failed."""
    found = {
        name: [
            float(value)
            for seed in seeds
            if math.isfinite(value := row.get(f"{name}/seed_{seed}", math.nan))
        ]
        for name in ACTIVITY
    }
    if not all(found.values()):
        return None
    return {name: statistics.fmean(values) for name, values in found.items()}


def _ended(last: Mapping[str, Any], error: str | None, interrupted: bool) -> tuple[str, str]:
    if error is not None:
        return "failed", error.strip().splitlines()[-1]
    if last.get("finished"):
        failure = str(last.get("failure") or "")
        return ("failed" if most_failed(last) else "completed"), failure
    if interrupted:
        return "interrupted", "the search was interrupted"
    return "stopped", f"behind the others at {int(last.get('tokens', 0)):,} tokens"


def most_failed(report: Mapping[str, Any]) -> bool:
    """Whether most replicates of a trial have failed by a report of it."""
    return bool(report.get("failure")) and report[METRIC] > (PENALTY + 8) / 3


def seed_noise(trials: Sequence[Mapping[str, Any]], *, seeds: int) -> dict[str, Any]:
    """Intraclass correlation over all trials at their first evaluation, and what it advises."""
    scores = [
        list(trial["curve"][0]["per_seed"].values())
        for trial in trials
        if trial["curve"] and PENALTY not in trial["curve"][0]["per_seed"].values()
    ]
    enough = len(scores) > 1 and seeds > 1
    correlation = significance.intraclass_correlation(scores) if enough else None
    return {
        "intraclass_correlation": correlation,
        "replication_advice": significance.replication_advice(correlation, seeds=seeds),
    }


def importance(space: Space, trials: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Share of each searched setting in the variance of the score at the first evaluation.

    All trials reach it, so stopped ones count on equal terms. None with too few trials. Settings
    that not all trials have are left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = [trial for trial in trials if trial["curve"] and trial["curve"][0]["mean"] < 8]
    if len(rows) < 4 or len({row["curve"][0]["mean"] for row in rows}) < 2:
        return None
    study = optuna.create_study()
    distributions = space.distributions()
    for row in rows:
        study.add_trial(
            optuna.trial.create_trial(
                params=row["settings"],
                distributions={name: distributions[name] for name in row["settings"]},
                value=row["curve"][0]["mean"],
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


def corpus_record(tape: Tape, ratios: Sequence[float]) -> dict[str, Any]:
    """The corpus as the result record holds it."""
    manifest = tape.manifest
    kept = ("source", "documents", "bytes", "words", "digest", "duplicates", "dropped")
    selection, final = tape.heldout(ratios)
    named = {"selection": selection, "final": final}
    training = {f"{ratio:g}": tape.training(ratio) for ratio in sorted(ratios)}
    return {
        **{name: manifest[name] for name in kept},
        "versions": manifest["fingerprint"],
        "profile": corpus_profile(tape, ratios, samples=SAMPLES),
        "slices": {
            "training": {
                name: {"documents": len(part), "bytes": tape.bytes(part)}
                for name, part in training.items()
            },
            **{
                name: {"documents": len(part), "bytes": tape.bytes(part)}
                for name, part in named.items()
            },
        },
    }


def overhead(*, wall: float, trials: float, concurrent: int) -> dict[str, float | None]:
    """How much longer the search took than its trials' own work, spread over the slots."""
    return {
        "wall": wall,
        "trials": trials,
        "concurrent": concurrent,
        "ratio": wall / (trials / concurrent) if trials > 0 else None,
    }


def time_left(ended: Sequence[float], *, trials: int, concurrent: int) -> float | None:
    """Seconds until the other trials have ended, if they take as long as those before."""
    if not ended:
        return None
    return statistics.fmean(ended) * max(trials - len(ended), 0) / concurrent


def trial_resources(
    machines: Iterable[Mapping[str, float]], *, models_per_gpu: int = 4
) -> dict[str, float]:
    """Ray resources of one trial: a thread each; on GPUs a share of one, and of its machine."""
    shares = [
        machine.get("CPU", 0) / (machine["GPU"] * models_per_gpu)
        for machine in machines
        if machine.get("GPU")
    ]
    if not shares:
        return {"CPU": 1}
    return {"CPU": max(1, min(*shares, 4)), "GPU": 1 / models_per_gpu}


def slots(each: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> int:
    """How many trials with those resources the machines take at once."""
    return sum(
        min(int(machine.get(name, 0) / amount + 1e-9) for name, amount in each.items())
        for machine in machines
    )


def too_small(each: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> str:
    """Says that no machine takes a trial, and what each of them has."""
    there = "; ".join(_amounts({name: one.get(name, 0) for name in each}) for one in machines)
    return f"a trial takes {_amounts(each)}, more than any machine has ({there or 'there is none'})"


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def sentences(record: Mapping[str, Any]) -> list[str]:
    """The conclusion in words: the champion, its comparisons, then the rest."""
    first, *rest = record["conclusion"] or [""]
    return [first, *(each["sentence"] for each in record["comparisons"]), *rest]


def short(value: object) -> str:
    """A setting's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
