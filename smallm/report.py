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
NONE = "-"
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
DEFINITIONS = {
    "Bits per byte": "The size of the text if the model compressed it, in bits for each byte of "
    "UTF-8. Lower is better. It compares models whatever their tokenizers.",
    "± spread": "The standard deviation over the seeds of a trial.",
    "95 % interval": "Where the score is expected with other seeds and other documents like "
    "these: a bootstrap over both, widened because seeds are few.",
    "Probability of improvement": "How likely the champion beats the other config when both are "
    "trained with one more seed.",
    "Selection slice": "Held-out text on which every choice is made.",
    "Final slice": "Other held-out text, scored once, after all choices are made.",
    "Seeds": "Replicates of a config: a seed fixes initialization, data order and dropout. "
    "Finalists are trained again with seeds that the search never used.",
    "Perplexity": "The exponential of the mean negative log-likelihood per token, word or byte. "
    "Token perplexity compares only models with the same tokenizer.",
    "Importance": "The share of the variance of scores that goes with a setting.",
}


class Html(str):
    """Markup; `tag` escapes every other string."""

    __slots__ = ()


def read_result(path: Path) -> dict[str, Any]:
    """The record in a `result.json`; raises SmallmError if it holds none that can be read."""
    result = read_json(path)
    if not isinstance(result, dict) or "trials" not in result:
        raise SmallmError(f"{path}: is not the result of a search")
    if result.get("schema") != SCHEMA:
        raise SmallmError(f"{path}: has schema {result.get('schema')}; this smallm reads {SCHEMA}")
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
        "Corpus": _corpus(result.get("corpus") or {}),
        "How it was measured": _measured(result),
        "Load the champion": _load(result.get("champion")),
    }
    page = _page(result, {title: body for title, body in sections.items() if body})
    write_text(path, page.encode(errors="backslashreplace").decode())


def leaderboard(result: Record) -> pd.DataFrame:
    """One row per config: finalists, then full budgets by score, then trials cut short."""
    import pandas as pd

    finalists = {each["trial"]: each for each in result.get("finalists") or ()}
    rows = [_row(trial, finalists.pop(trial["id"], None), result) for trial in _ranked(result)]
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

    ranked = _ranked(result)
    tables: list[RenderableType] = [_trial_table(result, ranked[:rows])]
    if result.get("finalists"):
        tables.insert(0, _finalist_table(result["finalists"]))
    if len(ranked) > rows:
        tables.append(f"and {len(ranked) - rows} more trials in report.html and leaderboard.csv")
    return Group(*tables)


def _finalist_table(finalists: Sequence[Record]) -> Table:
    title = "Confirmed with fresh seeds, on the final slice"
    table = _terminal(title, ["config", "role"], ["bits per byte", "95 % interval", "seeds"])
    for each in finalists:
        cells = (each["name"], each["role"], *_final_score(each), len(each["seeds"]))
        table.add_row(*_texts(cells), style="bold" if each["role"] == "champion" else None)
    return table


def _trial_table(result: Record, trials: Sequence[Record]) -> Table:
    names = list(result.get("searched") or ())
    table = _terminal(
        "Search, on the selection slice",
        ["trial", ", ".join(map(label, names)) or "settings"],
        ["bits per byte", "tokens", "time", "note"],
    )
    roles = _roles(result)
    for trial in trials:
        note = roles.get(trial["id"]) or ("" if at_full_budget(trial, result) else trial["status"])
        settings = " ".join(shown(trial["settings"].get(name)) for name in names)
        cells = (trial["number"], settings, _mean_and_spread(trial), *_effort(trial), note)
        table.add_row(*_texts(cells), style="bold" if note == "champion" else None)
    return table


def _terminal(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _texts(cells: Iterable[object]) -> list[Any]:
    """Cells that rich does not search for its own markup."""
    from rich.text import Text

    return [Text(str(cell)) for cell in cells]


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


def _ranked(result: Record) -> list[Record]:
    """Trials: finalists in their order, then full budgets by score, the longest, the failed."""
    places = {trial: place for place, trial in enumerate(_roles(result))}

    def rank(trial: Record) -> tuple[float, ...]:
        mean, full = score(trial), at_full_budget(trial, result)
        place = places.get(trial["id"], len(places))
        if mean is None:
            return place, 2, trial["number"]
        return place, not full, 0 if full else -trial["tokens"], mean, trial["number"]

    return sorted(result.get("trials") or (), key=rank)


def _roles(result: Record) -> dict[str, str]:
    """The role of each finalist's trial, in their order."""
    return {each["trial"]: each["role"] for each in result.get("finalists") or ()}


def _mean_and_spread(trial: Record) -> str:
    mean, spread = score(trial), (trial.get("bits_per_byte") or {}).get("spread")
    if mean is None:
        return NONE
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _effort(trial: Record) -> tuple[str, str]:
    return tokens_shown(trial["tokens"]), _duration(trial["seconds"])


def _final_score(finalist: Record) -> tuple[str, str]:
    final = (finalist.get("final") or {}).get("bits_per_byte")
    return (f"{final['value']:.3f}", _span(final)) if final else (NONE, NONE)


def _span(interval: Record, decimals: int = 3) -> str:
    return f"{interval['low']:.{decimals}f} to {interval['high']:.{decimals}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _size(part: Record) -> str:
    count = part.get("bytes", 0)
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} bytes"


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; attributes and children that are not markup are escaped."""
    inside = "".join(c if isinstance(c, Html) else escape(str(c)) for c in children)
    listed = "".join(f' {key.rstrip("_")}="{escape(str(v))}"' for key, v in attributes.items())
    return Html(f"<{name}{listed}>{inside}</{name}>")


def join(*parts: Html) -> Html:
    """Markup after markup."""
    return Html("".join(parts))


def _table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls sideways in its box; the first column names the row."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_=f"wide {kind}")


def _pairs(pairs: Iterable[tuple[object, object]]) -> Html:
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs))


def _figures(plots: Sequence[Plot], section: str, *beside: Html) -> Html:
    figures = [
        tag("figure", Html(plot.svg), tag("figcaption", plot.caption))
        for plot in plots
        if plot.section == section
    ]
    return tag("div", *figures, *beside, class_="plots")


def _conclusion(result: Record) -> Html:
    finalists: Sequence[Record] = result.get("finalists") or ()
    champion: Record = next((each for each in finalists if each["role"] == "champion"), {})
    parts = []
    if champion.get("final"):
        value, interval = _final_score(champion)
        words = f" bits per byte on the final slice, 95 % interval {interval}"
        parts.append(tag("p", tag("strong", value), words, class_="headline"))
    lines = list(result.get("conclusion") or _no_conclusion(result))
    comparisons = result.get("comparisons") or ()
    # The conclusion may quote them, with a capital at the start.
    lines += [s for each in comparisons if (s := each["sentence"])[1:] not in " ".join(lines)]
    parts += [tag("p", line) for line in lines]
    rows = [
        (
            f"the {each['against']}",
            f"{each['difference']['value']:.3f} ({_span(each['difference'])})",
            f"{each['probability_of_improvement']['value']:.2f} "
            f"({_span(each['probability_of_improvement'], 2)})",
        )
        for each in comparisons
    ]
    header = "champion against", "ahead by, bits per byte", "probability of improvement"
    return join(tag("div", *parts, class_="conclusion"), _table(header, rows) if rows else Html())


def _no_conclusion(result: Record) -> list[str]:
    best = next((trial for trial in _ranked(result) if score(trial) is not None), None)
    start = "The search ended before a champion was confirmed."
    if best is None:
        return [start, "No trial has a score."]
    return [
        start,
        f"Best so far, unconfirmed: trial {best['number']} with {score(best):.3f} bits per byte on "
        f"the selection slice after {tokens_shown(best['tokens'])} tokens.",
    ]


def _finalists(result: Record, plots: Sequence[Plot]) -> Html:
    finalists = result.get("finalists") or ()
    if not finalists:
        return Html()
    finals = [each.get("final") or {} for each in finalists]
    selection = [(each.get("selection") or {}).get("mean") for each in finalists]
    rows: dict[str, Iterable[object]] = {
        "Bits per byte, final slice": (tag("strong", _final_score(f)[0]) for f in finalists),
        "95 % interval": (_final_score(each)[1] for each in finalists),
        "Bits per byte, selection slice": (f"{s:.3f}" if s else NONE for s in selection),
        **{title: [_metric(final, key) for final in finals] for key, title in METRICS.items()},
        "Parameters": (f"{each.get('parameters') or 0:,}" for each in finalists),
        "Seeds": (", ".join(map(str, each["seeds"])) for each in finalists),
    }
    for name in result.get("searched") or ():
        rows[label(name).capitalize()] = [shown(each["settings"].get(name)) for each in finalists]
    header = [
        Html(),
        *(join(tag("span", each["name"]), tag("small", each["role"])) for each in finalists),
    ]
    table = _table(header, ([title, *cells] for title, cells in rows.items()))
    if len(finalists) > 3:  # too wide to stand beside the plot
        return join(_figures(plots, "finalists"), table)
    return _figures(plots, "finalists", table)


def _metric(final: Record, key: str) -> str:
    value = final.get(key)
    if value is None:
        return NONE
    if key.startswith("top_"):
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _references(result: Record, plots: Sequence[Plot]) -> Html:
    references = result.get("references") or ()
    rows = [(r["name"], f"{r['bits_per_byte']:.3f}", r.get("note") or "") for r in references]
    table = _table(["model", "bits per byte", "note"], rows)
    return _figures(plots, "references", table) if rows else Html()


def _search(result: Record, plots: Sequence[Plot]) -> Html:
    advice, correlation = result.get("replication_advice"), result.get("intraclass_correlation")
    share = "" if correlation is None else f" (Intraclass correlation {correlation:.2f}.)"
    words = tag("p", tag("strong", "Seeds or configs? "), f"{advice}{share}") if advice else Html()
    return join(_figures(plots, "search"), words, _figures(plots, "settings"))


def _trials(result: Record) -> Html:
    names = list(result.get("searched") or ())
    roles = _roles(result)
    rows = [
        (
            trial["number"],
            _mean_and_spread(trial),
            *_effort(trial),
            *(shown(trial["settings"].get(name)) for name in names),
            ": ".join(filter(None, [roles.get(trial["id"]), _end(trial), trial.get("reason")])),
        )
        for trial in _ranked(result)
    ]
    header = ["trial", "bits per byte", "tokens", "time", *map(label, names), "note"]
    words = "Scores on the selection slice. Trials that ended early saw fewer tokens than the "
    words += f"full budget of {tokens_shown(result['full_budget'])}: their scores do not compare."
    return join(tag("p", words), _table(header, rows, "trials"))


def _end(trial: Record) -> str:
    return "" if trial["status"] == "completed" else str(trial["status"])


def _corpus(corpus: Record) -> Html:
    if not corpus:
        return Html()
    slices = dict(corpus.get("slices") or {})
    parts = {f"training, ratio {k}": v for k, v in (slices.pop("training", None) or {}).items()}
    rows = [(k, f"{v['documents']:,}", _size(v)) for k, v in {**parts, **slices}.items()]
    pairs = [
        ("Source", corpus.get("source", NONE)),
        ("Documents", f"{corpus.get('documents', 0):,}"),
        ("Text", f"{_size(corpus)}, {corpus.get('words', 0):,} words"),
        ("Duplicates removed", _listed(corpus.get("duplicates"))),
        ("Digest", tag("code", corpus.get("digest", NONE))),
        ("Versions", _listed(corpus.get("versions"))),
    ]
    left_out = [
        _details(f"{reason}: {each['count']:,}", tag("ul", *(tag("li", p) for p in each["places"])))
        for reason, each in (corpus.get("dropped") or {}).items()
    ]
    heading = tag("h3", "Left out, by reason") if left_out else Html()
    table = _table(["slice", "documents", "size"], rows) if rows else Html()
    return join(_pairs(pairs), table, heading, *left_out)


def _details(summary: str, body: Html) -> Html:
    return tag("details", tag("summary", summary), body)


def _listed(values: Record | None) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in (values or {}).items()) or NONE


def _measured(result: Record) -> Html:
    pairs = [("Full budget", f"{tokens_shown(result['full_budget'])} tokens for each seed")]
    if result.get("seeds"):
        pairs.append(("Seeds of the search", ", ".join(map(str, result["seeds"]))))
    if result.get("seconds"):
        times = {part: _duration(seconds) for part, seconds in result["seconds"].items()}
        pairs.append(("Time", _listed(times)))
    if result.get("overhead"):
        pairs.append(("Overhead", _overhead(result["overhead"])))
    pairs.append(("Hardware", _listed(result.get("hardware"))))
    fixed = [(label(name), shown(value)) for name, value in (result.get("settings") or {}).items()]
    return join(
        _pairs(DEFINITIONS.items()),
        tag("h3", "This search"),
        _pairs(pairs),
        _details(f"Fixed settings ({len(fixed)})", _pairs(fixed)) if fixed else Html(),
    )


def _overhead(spent: Record) -> str:
    return (
        f"{_duration(spent['wall'])} for {_duration(spent['trials'])} of training and scoring, "
        f"{spent['concurrent']} at a time: {shown(spent['ratio'])} times the least possible"
    )


def _load(champion: Record | None) -> Html:
    if not champion:
        return Html()
    code = f"""import smallm  # makes the model known to transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {champion["folder"]!r}
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The learning rate", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20)[0]))"""
    registry = tag("p", "In the MLflow registry: ", tag("code", champion["model_uri"]))
    return join(tag("pre", tag("code", code)), registry)


def _page(result: Record, sections: dict[str, Html]) -> str:
    facts = (
        f"SmaLLM {(result.get('smallm') or {}).get('version', NONE)}",
        f"source {(result.get('corpus') or {}).get('source', NONE)}",
        f"space {result.get('space', NONE)}",
        str(result.get("created", NONE)).replace("T", " "),
    )
    anchors = {title: title.lower().replace(" ", "-") for title in sections}
    main = tag(
        "main",
        tag("h1", result["name"]),
        tag("p", " · ".join(facts), class_="facts"),
        tag("nav", *(tag("a", title, href=f"#{anchor}") for title, anchor in anchors.items())),
        *(tag("section", tag("h2", k), body, id=anchors[k]) for k, body in sections.items()),
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + tag("title", f"{result['name']}: SmaLLM report")
        + tag("style", Html(CSS))
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{main}</body></html>\n'


CSS = """
:root { color-scheme: light; --ink: #22282f; --soft: #5b6570; --line: #dfe3e7; --blue: #0072b2 }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; padding-top: .6rem;
  border-top: 2px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
p, dd, li { max-width: 46rem; overflow-wrap: anywhere }
a { color: var(--blue) }
.facts, figcaption, small { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem }
.conclusion { max-width: 50rem; padding: .3rem 1.2rem; background: #f3f7fa;
  border-left: 4px solid var(--blue) }
.headline strong { font-size: 2rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1.5rem 2rem; align-items: start; margin-bottom: 1.5rem }
figure { margin: 0; break-inside: avoid; max-width: 560px }
figure svg { width: 100%; height: auto; display: block }
figcaption { font-size: .875rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line) }
tbody th { font-weight: 500; position: sticky; left: 0; background: #fff }
th small { display: block; font-weight: 400 }
.trials td { white-space: nowrap }
.trials td:last-child { white-space: normal; min-width: 12rem }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem }
dt { font-weight: 600 }
dd { margin: 0 }
pre { padding: .8rem 1rem; overflow-x: auto; background: #f4f5f7; font-size: .85rem }
@media (max-width: 600px) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  th, td { padding: .3rem .4rem }
}
@media print { nav { display: none } }
"""
