"""What a person sees while a search runs: a line for every event, and on a terminal a bar below.

In a log file the lines alone remain, each with the time since the start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from smallm.results import METRIC, short, time_left

if TYPE_CHECKING:
    from smallm.confirmation import Replicate


class SearchDisplay:
    """Trials, rungs, best so far and time left."""

    def __init__(self, *, trials: int, rungs: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.trials, self.rungs = trials, rungs
        self.concurrent = 1
        self.start = time.perf_counter()
        self.best: tuple[float, str] | None = None
        self.seconds: list[float] = []
        self.spent_before = 0.0  # seconds of work, when a resumed search goes on
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("trials", total=trials, note="")

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        self.console.print(f"[{time.perf_counter() - self.start:5.0f} s] {text}", markup=False)

    def started(self, number: int, point: Mapping[str, Any]) -> None:
        """A trial begins."""
        chosen = ", ".join(f"{name} {short(value)}" for name, value in point.items())
        self.say(f"trial {number} starts: {chosen}")

    def scored(self, number: int, report: Mapping[str, Any]) -> None:
        """A trial reached a rung."""
        self._compare(number, report)
        self.say(
            f"trial {number} rung {report['rung']}/{self.rungs}: {report[METRIC]:.3f} ± "
            f"{report['spread']:.3f} bits per byte after {report['tokens']:,} tokens; "
            f"{self._best()}"
        )
        self.bar.update(self.task, note=self._best())

    def resumed(self, ended: Mapping[int, Mapping[str, Any]]) -> None:
        """A search goes on in which these trials, by number, have ended with their last reports."""
        for number, report in ended.items():
            self._count(report)
            if METRIC in report:
                self._compare(number, report)
        if ended:
            self.say(f"{len(ended)}/{self.trials} trials ended before; {self._best()}".rstrip("; "))

    def ended(self, number: int, report: Mapping[str, Any], reason: str) -> None:
        """A trial has ended."""
        self._count(report)
        left = time_left(self.seconds, trials=self.trials, concurrent=self.concurrent)
        note = "" if left is None else f", about {left:.0f} s left before confirmation"
        self.say(f"trial {number} ended: {reason}; {len(self.seconds)}/{self.trials} trials{note}")

    def confirmed(self, name: str, replicate: Replicate, done: int, total: int) -> None:
        """A finalist has been trained with a fresh seed, now or before."""
        bits = replicate.failure or (
            f"{replicate.selection.bits_per_byte:.3f} bits per byte on the selection slice"
        )
        self.say(f"confirmation {done}/{total}: {name} with seed {replicate.seed}: {bits}")

    def _count(self, report: Mapping[str, Any]) -> None:
        self.seconds.append(float(report.get("seconds", 0)))
        self.bar.advance(self.task)

    def _compare(self, number: int, report: Mapping[str, Any]) -> None:
        if self.best is None or report[METRIC] < self.best[0]:
            self.best = (report[METRIC], f"trial {number}")

    def _best(self) -> str:
        return "" if self.best is None else f"best {self.best[0]:.3f} ({self.best[1]})"
