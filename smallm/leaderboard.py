"""The configs of a search in order of merit: terminal tables and `leaderboard.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm.files import write_text
from smallm.plots import Record, at_full_budget, label, score, shown, tokens_shown
from smallm.terminal import plain_table, texts

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table

NONE = "-"
LONGEST_NAME = 24
NAMED = 5  # settings of a trial on a terminal: the first ones of the space
METRICS = {
    "nll": "Negative log-likelihood (nats)",
    "cross_entropy": "Cross-entropy (nats per token)",
    "token_perplexity": "Token perplexity",
    "word_perplexity": "Word perplexity",
    "byte_perplexity": "Byte perplexity",
    "top_1": "Next token right (%)",
    "top_3": "Next token among the 3 likeliest (%)",
    "top_10": "Next token among the 10 likeliest (%)",
}


def leaderboard(result: Record) -> pd.DataFrame:
    """One row per config: finalists, then full budgets by score, then trials cut short."""
    import pandas as pd

    finalists = {each["trial"]: each for each in result.get("finalists") or ()}
    rows = [_row(trial, finalists.pop(trial["id"], None), result) for trial in ranked(result)]
    rows += [
        {"role": each["role"], **each["settings"], **_final_row(each)}
        for each in finalists.values()  # the default config need not have been a trial
    ]
    return pd.DataFrame(rows).convert_dtypes()


def write_leaderboard(result: Record, path: Path) -> None:
    """Writes the leaderboard as CSV."""
    write_text(path, leaderboard(result).to_csv(index=False, lineterminator="\n"))


def terminal_table(result: Record, *, rows: int = 20) -> RenderableType:
    """The finalists and the best trials, as tables that fit 80 columns."""
    from rich.console import Group

    trials = ranked(result)
    tables: list[RenderableType] = [_trial_table(result, trials[:rows])]
    if result.get("finalists"):
        tables.insert(0, _finalist_table(result["finalists"]))
    more = {
        "trials": len(trials) - rows,
        "settings of each": len(result.get("searched") or ()) - NAMED,
    }
    if left := " and ".join(f"{count} more {what}" for what, count in more.items() if count > 0):
        tables.append(f"{left} are in report.html and leaderboard.csv")
    return Group(*tables)


def _finalist_table(finalists: Sequence[Record]) -> Table:
    title = "Confirmed with fresh seeds, on the final slice"
    table = plain_table(title, ["config", "role"], ["bits per byte", "95 % interval", "seeds"])
    for each in finalists:
        cells = (each["name"], each["role"], *final_score(each), len(each["seeds"]))
        table.add_row(*texts(cells), style="bold" if each["role"] == "champion" else None)
    return table


def _trial_table(result: Record, trials: Sequence[Record]) -> Table:
    names = list(result.get("searched") or ())[:NAMED]
    table = plain_table(
        "Search, on the selection slice",
        ["trial", ", ".join(map(label, names)) or "settings"],
        ["bits per byte", "tokens", "time", "note"],
    )
    role = roles(result)
    for trial in trials:
        note = role.get(trial["id"]) or ("" if at_full_budget(trial, result) else trial["status"])
        settings = " ".join(shown(trial["settings"].get(name)) for name in names)
        cells = (trial["number"], settings, mean_and_spread(trial), *effort(trial), note)
        table.add_row(*texts(cells), style="bold" if note == "champion" else None)
    return table


def _row(trial: Record, finalist: Record | None, result: Record) -> dict[str, Any]:
    return {
        "trial": trial["id"],
        "number": trial["number"],
        "role": finalist["role"] if finalist else "",
        "status": trial["status"],
        "reason": trial.get("reason") or "",
        "bits_per_byte": score(trial),
        "spread": (trial.get("bits_per_byte") or {}).get("spread"),
        "tokens": trial["tokens"],
        "full_budget": at_full_budget(trial, result),
        "seconds": trial["seconds"],
        **trial["settings"],
        **_final_row(finalist or {}),
    }


def _final_row(finalist: Record) -> dict[str, Any]:
    final = finalist.get("final") or {}
    interval = final.get("bits_per_byte") or {}
    return {
        "parameters": finalist.get("parameters"),
        **{f"final_bits_per_byte_{name}": interval.get(name) for name in ("value", "low", "high")},
        **{f"final_{name}": final.get(name) for name in METRICS},
    }


def ranked(result: Record) -> list[Record]:
    """Trials: finalists in their order, then full budgets by score, the longest, the failed."""
    places = {trial: place for place, trial in enumerate(roles(result))}

    def rank(trial: Record) -> tuple[float, ...]:
        mean, full = score(trial), at_full_budget(trial, result)
        place = places.get(trial["id"], len(places))
        if mean is None:
            return place, 2, trial["number"]
        return place, not full, 0 if full else -trial["tokens"], mean, trial["number"]

    return sorted(result.get("trials") or (), key=rank)


def roles(result: Record) -> dict[str, str]:
    """The role of each finalist's trial, in their order."""
    return {each["trial"]: each["role"] for each in result.get("finalists") or ()}


def mean_and_spread(trial: Record) -> str:
    """A trial's score as people write it."""
    mean, spread = score(trial), (trial.get("bits_per_byte") or {}).get("spread")
    if mean is None:
        return NONE
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def effort(trial: Record) -> tuple[str, str]:
    """A trial's tokens and time as people write them."""
    return tokens_shown(trial["tokens"]), duration(trial["seconds"])


def final_score(finalist: Record) -> tuple[str, str]:
    """A finalist's score on the final slice, and its interval."""
    final = (finalist.get("final") or {}).get("bits_per_byte")
    return (f"{final['value']:.3f}", span(final)) if final else (NONE, NONE)


def span(interval: Record, decimals: int = 3) -> str:
    """The two ends of an interval, where it has any."""
    if interval["low"] is None:
        return NONE
    return f"{interval['low']:.{decimals}f} to {interval['high']:.{decimals}f}"


def name_shown(name: str) -> str:
    """A model's name; of a long path the end, from the beginning of a part on if there is one."""
    if len(name) <= LONGEST_NAME:
        return name
    end = name[1 - LONGEST_NAME :]
    return f"…{end[max(end.find('/'), 0) :]}"


def duration(seconds: float) -> str:
    """A time as people write it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes >= 10:
        return f"{round(seconds / 60)} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
