"""An ablation as a person starts it: all arms trained, held against the control, recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallm import significance
from smallm.ablation_section import ablation_section
from smallm.ablations import ablation
from smallm.errors import SmallmError
from smallm.hardware import out_of_memory
from smallm.page import page
from smallm.recorded_run import RecordedRun
from smallm.scoring import Scores, score
from smallm.settings import Settings
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.training import Training
from smallm.training_run import unused_window

BOOTSTRAP_SEED = 0
Bytes = NDArray[np.int64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """An arm with the scores of its replicates on the selection slice."""

    settings: Settings
    scores: tuple[Scores, ...]
    """One for each seed; none where the memory was too small."""
    failures: Mapping[int, str]
    """Why a replicate ended early, by seed: such an arm is not compared."""
    seconds: float
    tokens: int
    """The budget of each replicate."""

    @property
    def nll(self) -> NDArray[np.float64]:
        """(seeds, documents), in nats."""
        return np.stack([each.nll for each in self.scores])

    @property
    def reason(self) -> str:
        """Why replicates ended early, once where it is the same for all seeds; else empty."""
        reasons = set(self.failures.values())
        if len(reasons) == 1 and set(self.failures) == set(self.settings.training.seeds):
            return next(iter(reasons))
        return "; ".join(f"seed {seed}: {why}" for seed, why in self.failures.items())

    def __str__(self) -> str:
        if self.failures:
            return f"failed ({self.reason})"
        return f"{np.mean([each.bits_per_byte for each in self.scores]):.3f} bits per byte"


def train_arm(
    settings: Settings, tokens: TokenTape, selection: Slice, *, threads: int, device: str
) -> Trained:
    """Trains all replicates of an arm and scores them in fp32 on the whole selection slice."""
    scored_later = settings.replace(evaluation_bytes=1)
    start = time.perf_counter()
    try:
        training = Training(
            scored_later, tokens, selection=selection, threads=threads, device=device
        )
        *_, last = training
        seconds = time.perf_counter() - start
        scores = tuple(
            score(training.trained(seed), tokens, selection, window=settings.model.window)
            for seed in settings.training.seeds
        )
    except (MemoryError, RuntimeError) as error:
        if not (why := out_of_memory(error)):
            raise
        failures = dict.fromkeys(settings.training.seeds, why)
        seconds = time.perf_counter() - start
        return Trained(settings, (), failures, seconds, settings.training.training_tokens)
    return Trained(settings, scores, last.failures, seconds, last.budget)


def arm_row(name: str, arm: str, trained: Trained, control: Trained, sizes: Bytes) -> Row:
    """What an arm reached, and how it differs from the control unless it is the control.

    `sizes` has the bytes of each document of the selection slice.
    """
    chosen = ablation(name)
    seeds = trained.settings.training.seeds
    row: Row = {
        "name": arm,
        "changes": dict(chosen.arms[arm]),
        "seeds": list(seeds),
        "seconds": trained.seconds,
    }
    if trained.failures:
        return row | {"reason": trained.reason}
    interval = significance.multi_bootstrap(trained.nll, sizes, seed=BOOTSTRAP_SEED)
    row["bits_per_byte"] = asdict(interval) | {
        "per_seed": {
            str(seed): scores.bits_per_byte
            for seed, scores in zip(seeds, trained.scores, strict=True)
        }
    }
    if arm != chosen.control:
        row |= _compared(arm, trained, chosen.control, control, sizes)
    return row


def pair_rows(name: str, arm: str, every: Mapping[str, Trained], sizes: Bytes) -> list[Row]:
    """How the latest arm differs from those that it is held against beside the control."""
    return [
        {"name": one, "against": other, **_compared(one, every[one], other, every[other], sizes)}
        for one, other in ablation(name).also
        if arm in (one, other)
        and {one, other} <= set(every)
        and not (every[one].failures or every[other].failures)
    ]


def ablation_record(
    name: str, control: Trained, rows: list[Row], pairs: list[Row], sizes: Bytes
) -> dict[str, Any]:
    """The record of an ablation up to the arms that have a row."""
    chosen = ablation(name)
    return {
        "ablation": name,
        "question": chosen.question,
        "control": chosen.control,
        "tokens": control.tokens,
        "slice": "selection",
        "bytes": int(sizes.sum()),
        "documents": len(sizes),
        "settings": {
            key: value
            for key, value in control.settings.flat().items()
            if key not in chosen.varied and key != "seeds"
        },
        "arms": rows,
        "untrained": list(chosen.arms)[len(rows) :],
        "pairs": pairs,
        "conclusion": _conclusion(rows, pairs),
    }


def _compared(name: str, arm: Trained, other_name: str, other: Trained, sizes: Bytes) -> Row:
    comparison = significance.compare(arm.nll, other.nll, sizes, seed=BOOTSTRAP_SEED)
    names = (f"“{name}”", f"“{other_name}”")
    words = significance.sentence(comparison, *names, source="this ablation")
    return {
        "better_by": asdict(comparison.difference),
        "real": comparison.real,
        "sentence": words[0].upper() + words[1:],
    }


def _conclusion(rows: list[Row], pairs: list[Row]) -> list[str]:
    """A sentence for each arm and further pair, and a warning when there are many arms."""
    failed = [
        f"“{row['name']}” did not train to its end ({row['reason']}): it is not compared."
        for row in rows
        if "reason" in row
    ]
    found = [row["sentence"] for row in rows if "sentence" in row]
    if len(found) > 2:
        found.append(
            f"{len(found)} arms meet one control: of so many, one may look different by chance."
        )
    return found + [pair["sentence"] for pair in pairs] + failed


class AblationRun(RecordedRun):
    """The folder and the MLflow run of one ablation."""

    kind = "ablation"

    def keep(self, name: str, arm: str, trained: Trained) -> None:
        """Records an arm in MLflow as soon as it is trained."""
        key = f"{self.kind}/{arm}"
        self.tracker.start_run(
            key,
            name=arm,
            parent=self.kind,
            params=trained.settings.flat(),
            tags={"smallm.kind": "arm", "smallm.ablation": name},
        )
        figures = {
            f"selection/bits_per_byte/seed_{seed}": scores.bits_per_byte
            for seed, scores in zip(trained.settings.training.seeds, trained.scores, strict=False)
            if seed not in trained.failures
        }
        self.tracker.log(key, figures, step=trained.tokens)
        self.tracker.end_run(
            key,
            status="FAILED" if trained.failures else "FINISHED",
            reason=trained.reason or "trained",
        )

    def show(self, record: Mapping[str, Any]) -> None:
        """Writes the record and its page."""
        facts = [
            f"{record['tokens']:,} tokens a replicate",
            f"{record['bytes']:,} bytes of the selection slice",
        ]
        title = f"Ablation {record['ablation']}"
        self.write(record, page(title, facts, {"Result": ablation_section(record)}))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Records the figures of the comparisons, and ends."""
        for row in record["arms"]:
            if "better_by" in row:
                ends = {f"better_by/{row['name']}/{end}": v for end, v in row["better_by"].items()}
                self.tracker.log(self.kind, ends, step=0)
        for pair in record["pairs"]:
            key = f"better_by/{pair['name']}/{pair['against']}"
            ends = {f"{key}/{end}": v for end, v in pair["better_by"].items()}
            self.tracker.log(self.kind, ends, step=0)
        self.end()


def run(
    name: str,
    arms: Mapping[str, Settings],
    tokens_of: Callable[[Settings], TokenTape],
    recorded: AblationRun,
    *,
    selection: Slice,
    threads: int,
    device: str,
) -> dict[str, Any]:
    """Trains the arms one after another, records each as it ends, gives the record.

    SmallmError when the control fails: there is nothing to hold the others against.
    """
    every: dict[str, Trained] = {}
    record: dict[str, Any] = {}
    rows: list[Row] = []
    pairs: list[Row] = []
    for place, (arm, settings) in enumerate(arms.items(), start=1):
        tokens = tokens_of(settings)
        if unused := unused_window(tokens, settings.model.window):
            recorded.tell(f"arm {arm}: {unused}")
        trained = train_arm(settings, tokens, selection, threads=threads, device=device)
        every[arm] = trained
        control = next(iter(every.values()))
        recorded.keep(name, arm, trained)
        sizes = tokens.bytes[selection.first : selection.last]
        rows.append(arm_row(name, arm, trained, control, sizes))
        pairs += pair_rows(name, arm, every, sizes)
        record = ablation_record(name, control, rows, pairs, sizes)
        recorded.show(record)
        recorded.tell(f"arm {place}/{len(arms)}, {arm}: {trained} in {trained.seconds:.0f} s")
        if control.failures:
            raise SmallmError(
                f"ablation {name}: its control, {arm!r}, did not train to its end: {trained.reason}"
            )
    recorded.finish(record)
    return record
