"""What a search costs besides training: `python -m benchmarks.orchestration`.

SmaLLM's search, Ray Tune with its own OptunaSearch and MLflowLoggerCallback, and Optuna alone with
joblib try the same trivial objective on two slots, 10, 100 and 1,000 times; the two that use MLflow
also without it. Exits with 1 when a goal is not reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TRIALS = (10, 100, 1000)
REPORTS = 3
MORE_REPORTS = 12  # of each trial, to see what one more costs
REPORTS_AT = 100  # trials
COMPARED_AT = 100  # trials, unless fewer are tried
GOALS = {"plain_tune_over_smallm": 2.0, "memory_flat": 0.9}


@dataclass(frozen=True)
class Way:
    """One way to search."""

    label: str
    kind: str
    mlflow: bool = False


SMALLM = Way("SmaLLM", "smallm", mlflow=True)
PLAIN = Way("Ray Tune, OptunaSearch, MLflow callback", "tune", mlflow=True)
WAYS = (
    SMALLM,
    Way("SmaLLM without MLflow", "smallm"),
    PLAIN,
    Way("Ray Tune, OptunaSearch", "tune"),
    Way("Optuna, joblib, journal file", "optuna"),
)


def main() -> None:
    """Measures all ways, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=max(TRIALS), help="trials to go up to")
    options = parser.parse_args()
    sizes = [size for size in TRIALS if size <= options.most]
    if not sizes:
        parser.error(f"--most {options.most}: the fewest trials are {min(TRIALS)}")
    print(f"{'milliseconds of a trial':<42} {'trials':>6} {'search':>8} {'MLflow after':>13}")
    found = {}
    for way in WAYS:
        for trials in sizes:
            found[way, trials] = each = searched(way, trials, REPORTS)
            print(
                f"{way.label:<42} {trials:>6} {per_trial(each):>8.1f} "
                f"{1000 * each.get('recording', 0) / trials:>13.1f}",
                flush=True,
            )
    if REPORTS_AT in sizes:
        print(f"milliseconds of one more report of a trial, {REPORTS_AT} trials")
        for way in WAYS:
            more = searched(way, REPORTS_AT, MORE_REPORTS)
            before = found[way, REPORTS_AT]
            one = (per_trial(more) - per_trial(before)) / (MORE_REPORTS - REPORTS)
            print(f"{way.label:<42} {REPORTS_AT:>6} {one:>8.1f}", flush=True)
    ratios = compared(found, sizes)
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f} goal {GOALS[name]:g}")
    sys.exit(any(value < GOALS[name] for name, value in ratios.items()))


def searched(way: Way, trials: int, reports: int) -> dict[str, Any]:
    """What a search in a process of its own tells of itself."""
    command = [sys.executable, "-m", "benchmarks.orchestrators", way.kind]
    command += ["--trials", str(trials), "--reports", str(reports), *["--mlflow"] * way.mlflow]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{way.label} failed:\n{ended.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def per_trial(found: dict[str, Any]) -> float:
    """Milliseconds of the search for each trial: the objective itself takes none."""
    return 1000 * float(found["seconds"]) / int(found["trials"])


def in_all(found: dict[str, Any]) -> float:
    """Milliseconds of each trial with what MLflow takes after the search."""
    return per_trial(found) + 1000 * float(found.get("recording", 0)) / int(found["trials"])


def compared(found: dict[tuple[Way, int], dict[str, Any]], sizes: list[int]) -> dict[str, float]:
    """Time of plain Tune over ours; memory of our driver after a tenth of the search over last."""
    for size in sizes:
        bare, recorded = (in_all(found[way, size]) for way in (WAYS[1], SMALLM))
        share = 1 - bare / recorded
        print(f"MLflow's share of SmaLLM's time, {size} trials: {share:.0%} of {recorded:.1f} ms")
    size = min(COMPARED_AT, max(sizes))
    memory = found[SMALLM, max(sizes)]["memory"]
    early, late = memory[len(memory) // 10], memory[-1]
    print(f"driver of SmaLLM, {max(sizes)} trials: {early:.0f} MB early, {late:.0f} MB at last")
    return {
        "plain_tune_over_smallm": in_all(found[PLAIN, size]) / in_all(found[SMALLM, size]),
        "memory_flat": early / late,
    }


if __name__ == "__main__":
    main()
