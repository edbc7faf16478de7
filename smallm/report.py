"""The report of a search: one record in; terminal tables, `report.html` and `leaderboard.csv` out.

Everything is made from the record alone (`result.json`), also from that of an interrupted search.
All markup is built by `tag`, which escapes whatever is not markup already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm.errors import SmallmError
from smallm.files import read_json, write_text
from smallm.plots import (
    Plot,
    Record,
    at_full_budget,
    draw_plots,
    label,
    score,
    shown,
    tokens_shown,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table

SCHEMA = 1
NONE = "–"
METRICS = {
    "cross_entropy": "Cross-entropy (nats per token)",
    "token_perplexity": "Token perplexity",
    "word_perplexity": "Word perplexity",
    "byte_perplexity": "Byte perplexity",
    "top_1": "Next token right (%)",
    "top_3": "Next token among 3 best (%)",
    "top_10": "Next token among 10 best (%)",
}
DEFINITIONS = {
    "Bits per byte": "the size of the text if the model compressed it, in bits for each byte of "
    "UTF-8. Lower is better; 8 is no compression. It compares models with different tokenizers.",
    "± spread": "the standard deviation over the seeds of a trial.",
    "95 % interval": "where the score would lie with other seeds and other documents like these "
    "(bootstrap over both, widened for few seeds).",
    "Probability of improvement": "how likely one config beats the other when both are trained "
    "with one more seed.",
    "Selection slice": "held-out text on which every choice is made.",
    "Final slice": "other held-out text, scored once, after all choices are made.",
    "Seeds": "replicates of a config: initialization, data order and dropout. Finalists are "
    "trained again with seeds that the search never used.",
    "Perplexity": "the exponential of the mean negative log-likelihood per token, word or byte. "
    "Token perplexity compares only models with the same tokenizer.",
    "Importance": "how much of the variance of scores a setting explains.",
}


class Html(str):
    """Markup: `tag` escapes every other string."""

    __slots__ = ()


def read_result(path: Path) -> dict[str, Any]:
    """The record in a search folder or a `result.json`; raises SmallmError if it is none."""
    file = path / "result.json" if path.is_dir() else path
    result = read_json(file)
    if not isinstance(result, dict) or "trials" not in result:
        raise SmallmError(f"{file}: is not the result of a search")
    if result.get("schema") != SCHEMA:
        raise SmallmError(
            f"{file}: has schema {result.get('schema')!r}; this smallm reads {SCHEMA}"
        )
    return result


def write_report(result: Record, path: Path) -> None:
    """Writes the whole report as one HTML file that needs no other and no network."""
    plots = draw_plots(result)
    sections = {
        "Conclusion": _conclusion(result),
        "Finalists": _finalists(result, plots),
        "Reference models": _references(result, plots),
        "Search": _search(result, plots),
        "All trials": _trials(result),
        "Corpus": _corpus(result),
        "How it was measured": _measured(result),
        "Load the champion": _load(result),
    }
    page = _page(result, {title: body for title, body in sections.items() if body})
    write_text(path, page.encode(errors="backslashreplace").decode())


def leaderboard(result: Record) -> pd.DataFrame:
    """One row per config, the best first: finalists, then full budgets, then those cut short."""
    import pandas as pd

    finalists = {each["trial"]: each for each in result.get("finalists") or ()}
    rows = [_row(trial, finalists.pop(trial["id"], {}), result) for trial in _ranked(result)]
    unsearched = [
        {"trial": each["trial"], "status": "confirmed only", **_confirmed(each), **each["settings"]}
        for each in finalists.values()
    ]
    return pd.DataFrame(rows + unsearched)


def write_leaderboard(result: Record, path: Path) -> None:
    """Writes the leaderboard as CSV."""
    write_text(path, leaderboard(result).to_csv(index=False, lineterminator="\n"))


def terminal_table(result: Record, *, rows: int = 20) -> RenderableType:
    """The finalists and the best trials, as tables that fit 80 columns."""
    from rich.console import Group

    tables: list[RenderableType] = []
    if result.get("finalists"):
        tables.append(_finalist_table(result))
    ranked = _ranked(result)
    tables.append(_trial_table(result, ranked[:rows]))
    if len(ranked) > rows:
        tables.append(f"and {len(ranked) - rows} more trials in report.html and leaderboard.csv")
    return Group(*tables)


def _finalist_table(result: Record) -> Table:
    table = _table(
        "Confirmed with fresh seeds, on the final slice",
        ["config", "role", _setting_names(result)],
        ["bits per byte", "95 % interval", "seeds"],
    )
    for each in result["finalists"]:
        table.add_row(
            *_texts(each["name"], each["role"], _setting_values(each, result)),
            *_texts(*_final_score(each), len(each["seeds"])),
            style="bold" if each["role"] == "champion" else None,
        )
    return table


def _trial_table(result: Record, trials: Sequence[Record]) -> Table:
    table = _table(
        "Search, on the selection slice",
        ["trial", _setting_names(result)],
        ["bits per byte", "tokens", "time", "note"],
    )
    roles = {each["trial"]: each["role"] for each in result.get("finalists") or ()}
    for trial in trials:
        note = roles.get(trial["id"]) or ("" if at_full_budget(trial, result) else trial["status"])
        table.add_row(
            *_texts(trial["number"], _setting_values(trial, result), _mean_and_spread(trial)),
            *_texts(tokens_shown(trial["tokens"]), _seconds(trial["seconds"]), note),
            style="bold" if note == "champion" else None,
        )
    return table


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.pad_edge = False
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _texts(*values: object) -> list[Any]:
    """Cells that rich does not search for its own markup."""
    from rich.text import Text

    return [Text(str(value)) for value in values]


def _row(trial: Record, finalist: Record, result: Record) -> dict[str, Any]:
    scores = trial.get("bits_per_byte") or {}
    return {
        "trial": trial["id"],
        "number": trial["number"],
        "status": trial["status"],
        "reason": trial.get("reason") or "",
        **(_confirmed(finalist) if finalist else {"role": ""}),
        **trial["settings"],
        "tokens": trial["tokens"],
        "full_budget": at_full_budget(trial, result),
        "seconds": trial["seconds"],
        "bits_per_byte": score(trial),
        "spread": scores.get("spread"),
    }


def _confirmed(finalist: Record) -> dict[str, Any]:
    final = finalist.get("final") or {}
    interval = final.get("bits_per_byte") or {}
    return {
        "role": finalist["role"],
        "parameters": finalist.get("parameters"),
        **{f"final_{name}": interval.get(name) for name in ("value", "low", "high")},
        **{f"final_{name}": final.get(name) for name in METRICS},
    }


def _ranked(result: Record) -> list[Record]:
    """Trials: finalists in their order, then full budgets by score, then by tokens, then failed."""
    finalists = [each["trial"] for each in result.get("finalists") or ()]

    def rank(trial: Record) -> tuple[Any, ...]:
        place = finalists.index(trial["id"]) if trial["id"] in finalists else len(finalists)
        mean = score(trial)
        if mean is None:
            return place, 2, 0, 0, trial["number"]
        full = at_full_budget(trial, result)
        return place, not full, 0 if full else -trial["tokens"], mean, trial["number"]

    return sorted(result.get("trials") or (), key=rank)


def _setting_names(result: Record) -> str:
    return ", ".join(label(name) for name in result.get("searched") or ()) or "settings"


def _setting_values(config: Record, result: Record) -> str:
    names = result.get("searched") or config["settings"]
    return ", ".join(shown(config["settings"].get(name)) for name in names)


def _mean_and_spread(trial: Record) -> str:
    mean, spread = score(trial), (trial.get("bits_per_byte") or {}).get("spread")
    if mean is None:
        return NONE
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _final_score(finalist: Record) -> tuple[str, str]:
    final = (finalist.get("final") or {}).get("bits_per_byte")
    if not final:
        return NONE, NONE
    return f"{final['value']:.3f}", f"{final['low']:.3f} to {final['high']:.3f}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _size(count: float | None) -> str:
    if count is None:
        return NONE
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} bytes"


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; children that are not markup and all attributes are escaped."""
    inside = "".join(c if isinstance(c, Html) else escape(str(c)) for c in children)
    listed = "".join(f' {key.rstrip("_")}="{escape(str(v))}"' for key, v in attributes.items())
    return Html(f"<{name}{listed}>{inside}</{name}>")


def _html_table(header: Sequence[object], rows: Iterable[Sequence[object]], **kind: object) -> Html:
    """A table that scrolls sideways inside its box; the first column names the row."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), **kind), class_="wide")


def _pairs(pairs: Iterable[tuple[object, object]]) -> Html:
    return tag("dl", *(Html(tag("dt", name) + tag("dd", value)) for name, value in pairs))


def _figures(plots: Sequence[Plot], section: str) -> Html:
    figures = [
        tag("figure", Html(plot.svg), tag("figcaption", plot.caption))
        for plot in plots
        if plot.section == section
    ]
    return tag("div", *figures, class_="plots") if figures else Html("")


def _conclusion(result: Record) -> Html:
    champion = next((f for f in result.get("finalists") or () if f["role"] == "champion"), None)
    parts = []
    if champion and champion.get("final"):
        value, interval = _final_score(champion)
        parts.append(
            tag("p", tag("strong", value), f" bits per byte ({interval})", class_="headline")
        )
        settings = ", ".join(f"{label(k)} {shown(v)}" for k, v in champion["settings"].items())
        parts.append(tag("p", f"Champion: {champion['name']} with {settings}."))
    parts += [tag("p", line) for line in result.get("conclusion") or (_no_conclusion(result),)]
    for each in result.get("comparisons") or ():
        chance = each["probability_of_improvement"]
        words = (
            f" Probability of improvement over the {each['against']}: {chance['value']:.2f} "
            f"({chance['low']:.2f} to {chance['high']:.2f})."
        )
        parts.append(tag("p", each["sentence"], words))
    return tag("div", *parts, class_="conclusion")


def _no_conclusion(result: Record) -> str:
    best = next((t for t in _ranked(result) if score(t) is not None), None)
    start = "The search ended before a champion was confirmed."
    if best is None:
        return f"{start} No trial has a score yet."
    return (
        f"{start} Best so far: trial {best['number']} with {score(best):.3f} bits per byte on the "
        f"selection slice after {tokens_shown(best['tokens'])} tokens, unconfirmed."
    )


def _finalists(result: Record, plots: Sequence[Plot]) -> Html:
    finalists = result.get("finalists") or ()
    if not finalists:
        return Html("")
    finals = [each.get("final") or {} for each in finalists]
    names = result.get("searched") or ()
    rows: list[list[object]] = [
        ["Bits per byte, final slice", *(tag("strong", _final_score(f)[0]) for f in finalists)],
        ["95 % interval", *(_final_score(f)[1] for f in finalists)],
        [
            "Bits per byte, selection slice",
            *(_number(f.get("selection"), "mean") for f in finalists),
        ],
        *_metric_rows(finals),
        ["Parameters", *(f"{f.get('parameters') or 0:,}" for f in finalists)],
        ["Seeds", *(", ".join(map(str, f["seeds"])) for f in finalists)],
    ]
    for name in names:
        rows.append(
            [label(name).capitalize(), *(shown(f["settings"].get(name)) for f in finalists)]
        )
    header = ["", *(Html(escape(f["name"]) + tag("small", f["role"])) for f in finalists)]
    return Html(_figures(plots, "finalists") + _html_table(header, rows, class_="finalists"))


def _metric_rows(finals: Sequence[Record]) -> list[list[object]]:
    return [[title, *(_metric(final, key) for final in finals)] for key, title in METRICS.items()]


def _number(record: Record | None, key: str) -> str:
    value = (record or {}).get(key)
    return NONE if value is None else f"{value:.3f}"


def _metric(final: Record, key: str) -> str:
    value = final.get(key)
    if value is None:
        return NONE
    return f"{100 * value:.1f}" if key.startswith("top_") else f"{value:.4g}"


def _references(result: Record, plots: Sequence[Plot]) -> Html:
    references = result.get("references") or ()
    if not references:
        return Html("")
    rows = [[r["name"], f"{r['bits_per_byte']:.3f}", r.get("note") or ""] for r in references]
    table = _html_table(["model", "bits per byte", "note"], rows)
    return Html(_figures(plots, "references") + table)


def _search(result: Record, plots: Sequence[Plot]) -> Html:
    correlation = result.get("intraclass_correlation")
    advice = result.get("replication_advice") or ""
    share = "" if correlation is None else f" (intraclass correlation {correlation:.2f})"
    words = tag("p", f"Seeds or configs? {advice}{share}") if advice else Html("")
    return Html(_figures(plots, "search") + words + _figures(plots, "settings"))


def _trials(result: Record) -> Html:
    names = list(result.get("searched") or ())
    roles = {each["trial"]: each["role"] for each in result.get("finalists") or ()}
    rows = [
        [
            trial["number"],
            *(shown(trial["settings"].get(name)) for name in names),
            _mean_and_spread(trial),
            tokens_shown(trial["tokens"]),
            _seconds(trial["seconds"]),
            _note(trial, roles.get(trial["id"])),
        ]
        for trial in _ranked(result)
    ]
    header = ["trial", *map(label, names), "bits per byte", "tokens", "time", "note"]
    words = (
        "Scores on the selection slice. Trials that ended early saw fewer tokens: "
        "their scores do not compare."
    )
    return Html(tag("p", words) + _html_table(header, rows, class_="trials"))


def _note(trial: Record, role: str | None) -> str:
    ended = "" if trial["status"] == "completed" else trial["status"]
    return ": ".join(filter(None, [role, ended, trial.get("reason")]))


def _corpus(result: Record) -> Html:
    corpus = result.get("corpus") or {}
    if not corpus:
        return Html("")
    duplicates = corpus.get("duplicates") or {}
    pairs = [
        ("Source", corpus.get("source", NONE)),
        ("Documents", f"{corpus.get('documents', 0):,}"),
        ("Text", f"{_size(corpus.get('bytes'))}, {corpus.get('words', 0):,} words"),
        (
            "Duplicates removed",
            ", ".join(f"{n:,} {kind}" for kind, n in duplicates.items()) or NONE,
        ),
        ("Digest", tag("code", corpus.get("digest", NONE))),
        (
            "Versions",
            ", ".join(f"{k} {v}" for k, v in (corpus.get("versions") or {}).items()) or NONE,
        ),
    ]
    return Html(_pairs(pairs) + _slices(corpus.get("slices") or {}) + _dropped(corpus))


def _slices(slices: Record) -> Html:
    parts = {f"training, ratio {k}": v for k, v in (slices.get("training") or {}).items()}
    parts |= {name: slices[name] for name in ("selection", "final") if slices.get(name)}
    rows = [[name, f"{part['documents']:,}", _size(part["bytes"])] for name, part in parts.items()]
    return _html_table(["slice", "documents", "size"], rows) if rows else Html("")


def _dropped(corpus: Record) -> Html:
    reasons = [
        tag(
            "details",
            tag("summary", f"{reason}: {left_out['count']:,}"),
            tag("ul", *(tag("li", place) for place in left_out.get("places") or ())),
        )
        for reason, left_out in (corpus.get("dropped") or {}).items()
    ]
    return Html(tag("h3", "Left out, by reason") + "".join(reasons)) if reasons else Html("")


def _measured(result: Record) -> Html:
    overhead, seconds = result.get("overhead") or {}, result.get("seconds") or {}
    pairs: list[tuple[str, str]] = []
    if seconds:
        pairs.append(("Time", ", ".join(f"{part} {_seconds(s)}" for part, s in seconds.items())))
    if overhead:
        pairs.append(("Overhead", _overhead(overhead)))
    if result.get("seeds"):
        pairs.append(("Seeds of the search", ", ".join(map(str, result["seeds"]))))
    pairs.append(("Full budget", f"{tokens_shown(result['full_budget'])} tokens for each seed"))
    pairs += [(label(k).capitalize(), shown(v)) for k, v in (result.get("hardware") or {}).items()]
    fixed = [(label(k), shown(v)) for k, v in (result.get("settings") or {}).items()]
    return Html(
        _pairs(DEFINITIONS.items())
        + tag("h3", "This search")
        + _pairs(pairs)
        + (tag("details", tag("summary", "Fixed settings"), _pairs(fixed)) if fixed else "")
    )


def _overhead(overhead: Record) -> str:
    return (
        f"the search took {_seconds(overhead['wall'])}, its trials {_seconds(overhead['trials'])} "
        f"of work, {overhead['concurrent']} at a time: {overhead['ratio']:.2f} times the ideal"
    )


def _load(result: Record) -> Html:
    champion = result.get("champion")
    if not champion:
        return Html("")
    code = f"""import smallm  # makes the model known to transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {champion["folder"]!r}
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The learning rate", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))"""
    registered = tag("p", "In the MLflow registry: ", tag("code", champion["model_uri"]))
    return Html(tag("pre", tag("code", code)) + registered)


def _page(result: Record, sections: dict[str, Html]) -> str:
    made = result.get("smallm") or {}
    facts = [
        f"SmaLLM {made.get('version', NONE)}",
        f"source {(result.get('corpus') or {}).get('source', NONE)}",
        f"space {result.get('space', NONE)}",
        result.get("created", ""),
    ]
    links = [tag("a", title, href=f"#{_anchor(title)}") for title in sections]
    bodies = [
        tag("section", tag("h2", title), body, id=_anchor(title))
        for title, body in sections.items()
    ]
    main = tag(
        "main",
        tag("h1", result["name"]),
        tag("p", " · ".join(filter(None, facts)), class_="facts"),
        tag("nav", *links),
        *bodies,
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + tag("title", f"{result['name']}: SmaLLM report")
        + tag("style", Html(CSS))
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{main}</body></html>\n'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


CSS = """
:root { color-scheme: light; --ink: #22282f; --soft: #5b6570; --line: #dfe3e7; --blue: #0072b2 }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .8rem; padding-top: .6rem }
h2 { border-top: 2px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
p, dd, li, figcaption { max-width: 46rem; overflow-wrap: anywhere }
a { color: var(--blue) }
.facts, figcaption, small { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem }
.conclusion { padding: .4rem 1.2rem; border-left: 4px solid var(--blue); background: #f3f7fa }
.headline strong { font-size: 2rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1.5rem 2rem; align-items: start; margin-bottom: 1.5rem }
figure { margin: 0; break-inside: avoid; max-width: 560px }
figure svg { width: 100%; height: auto; display: block }
figcaption { font-size: .875rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line) }
tbody th { font-weight: 500; text-align: left; position: sticky; left: 0; background: #fff }
td:last-child { white-space: normal; min-width: 6rem }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem }
dt { font-weight: 600 }
dd { margin: 0 }
pre { padding: .8rem 1rem; overflow-x: auto; background: #f4f5f7; font-size: .85rem }
th small { display: block; font-weight: 400 }
@media (max-width: 600px) { dl { grid-template-columns: 1fr } dd { margin-bottom: .5rem } }
@media print { nav { display: none } section { break-inside: auto } }
"""
