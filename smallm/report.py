"""The report of a search: one record in, `report.html` out.

Everything is made from the record alone (`result.json`), also from that of an interrupted search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from smallm.charts import Plot
from smallm.comparison_section import comparison_sections
from smallm.corpus_section import profile_section
from smallm.errors import SmallmError
from smallm.files import read_json, write_text
from smallm.leaderboard import (
    METRICS,
    NONE,
    duration,
    effort,
    final_score,
    mean_and_spread,
    ranked,
    roles,
    span,
)
from smallm.page import Html, broad_figure, details, figures, join, page, pairs, table, tag
from smallm.pictures import LAYER, draw_model, draw_neighbors, neighbors_table
from smallm.plots import Record, draw_plots, label, score, shown, tokens_shown

SCHEMA = 2  # of `result.json`: raise it where an older one can no longer be shown

DEFINITIONS = {
    "Bits per byte": "The size of the text if the model compressed it, in bits for each byte of "
    "UTF-8. Lower is better. It compares models whatever their tokenizers.",
    "± spread": "The standard deviation over the seeds of a trial.",
    "95 % interval": "Where the score is expected with other seeds and other documents like "
    "these: a bootstrap over both, widened because seeds, or documents, are few.",
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
        **comparison_sections(result.get("comparison") or {"models": ()}),
        "Search": _search(result, plots),
        "Inside the champion": _inside(result.get("pictures")),
        "All trials": _trials(result),
        "Corpus": _corpus(result.get("corpus") or {}),
        "How it was measured": _measured(result),
        "Load the champion": _load(result.get("champion")),
    }
    facts = (
        f"SmaLLM {(result.get('smallm') or {}).get('version', NONE)}",
        f"source {(result.get('corpus') or {}).get('source', NONE)}",
        f"space {result.get('space', NONE)}",
        str(result.get("created", NONE)).replace("T", " "),
    )
    filled = {title: body for title, body in sections.items() if body}
    html = page(result["name"], facts, filled)
    write_text(path, html.encode(errors="backslashreplace").decode())


def _size(part: Record) -> str:
    count = part.get("bytes", 0)
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} bytes"


def write_plots(result: Record, folder: Path) -> None:
    """Writes each plot as an SVG file, for where the report cannot be opened."""
    pictures = result.get("pictures")
    model = [*draw_model(pictures), *draw_neighbors(pictures)] if pictures else ()
    for plot in [*draw_plots(result), *model]:
        write_text(folder / f"{plot.name}.svg", plot.svg)


def _conclusion(result: Record) -> Html:
    finalists: Sequence[Record] = result.get("finalists") or ()
    champion: Record = next((each for each in finalists if each["role"] == "champion"), {})
    parts = []
    if champion.get("final"):
        value, interval = final_score(champion)
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
            f"{each['difference']['value']:.3f} ({span(each['difference'])})",
            f"{each['probability_of_improvement']['value']:.2f} "
            f"({span(each['probability_of_improvement'], 2)})",
        )
        for each in comparisons
    ]
    header = "champion against", "ahead by, bits per byte", "probability of improvement"
    return join(tag("div", *parts, class_="conclusion"), table(header, rows) if rows else Html())


def _no_conclusion(result: Record) -> list[str]:
    best = next((trial for trial in ranked(result) if score(trial) is not None), None)
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
        "Bits per byte, final slice": (tag("strong", final_score(f)[0]) for f in finalists),
        "95 % interval": (final_score(each)[1] for each in finalists),
        **_on_sources(finalists),
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
    body = table(header, ([title, *cells] for title, cells in rows.items()))
    if len(finalists) > 3:  # too wide to stand beside the plot
        return join(figures(plots, "finalists"), body)
    return figures(plots, "finalists", body)


def _on_sources(finalists: Sequence[Record]) -> dict[str, list[object]]:
    """A row for each source of a mixture."""
    names = sorted({name for each in finalists for name in each.get("by_source") or ()})
    return {
        f"on {name}": [
            f"{found['value']:.3f} ({span(found)})"
            if (found := (each.get("by_source") or {}).get(name))
            else NONE
            for each in finalists
        ]
        for name in names
    }


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
    body = table(["model", "bits per byte", "note"], rows)
    return figures(plots, "references", body) if rows else Html()


def _search(result: Record, plots: Sequence[Plot]) -> Html:
    advice, correlation = result.get("replication_advice"), result.get("intraclass_correlation")
    share = "" if correlation is None else f" (Intraclass correlation {correlation:.2f}.)"
    words = tag("p", tag("strong", "Seeds or configs? "), f"{advice}{share}") if advice else Html()
    return join(figures(plots, "search"), words, figures(plots, "settings"))


def _trials(result: Record) -> Html:
    names = list(result.get("searched") or ())
    role = roles(result)
    rows = [
        (
            trial["number"],
            mean_and_spread(trial),
            *effort(trial),
            *(shown(trial["settings"].get(name)) for name in names),
            ": ".join(filter(None, [role.get(trial["id"]), _end(trial), trial.get("reason")])),
        )
        for trial in ranked(result)
    ]
    header = ["trial", "bits per byte", "tokens", "time", *map(label, names), "note"]
    words = "Scores on the selection slice. Trials that ended early saw fewer tokens than the "
    words += f"full budget of {tokens_shown(result['full_budget'])}: their scores do not compare."
    return join(tag("p", words), table(header, rows, "trials"))


def _inside(pictures: Record | None) -> Html:
    if not pictures:
        return Html()
    drawn = draw_model(pictures)
    before = [plot for plot in drawn if plot.name.startswith(LAYER)][:-1]
    parts = [broad_figure(plot) for plot in drawn if plot not in before]
    if before:
        parts.append(details("Layers before the last", join(*map(broad_figure, before))))
    near = neighbors_table(pictures) if pictures.get("neighbors") else Html()
    words = "The mean of all embeddings is taken off before their cosines are compared."
    heading = join(tag("h3", "Nearest words"), tag("p", words)) if near else Html()
    return join(*parts, heading, near)


def _end(trial: Record) -> str:
    return "" if trial["status"] == "completed" else str(trial["status"])


def _corpus(corpus: Record) -> Html:
    if not corpus:
        return Html()
    slices = dict(corpus.get("slices") or {})
    parts = {f"training, ratio {k}": v for k, v in (slices.pop("training", None) or {}).items()}
    rows = [(k, f"{v['documents']:,}", _size(v)) for k, v in {**parts, **slices}.items()]
    facts = [
        ("Source", corpus.get("source", NONE)),
        ("Documents", f"{corpus.get('documents', 0):,}"),
        ("Text", f"{_size(corpus)}, {corpus.get('words', 0):,} words"),
        ("Duplicates removed", _listed(corpus.get("duplicates"))),
        ("Digest", tag("code", corpus.get("digest", NONE))),
        ("Versions", _listed(corpus.get("versions"))),
    ]
    left_out = [
        details(f"{reason}: {each['count']:,}", tag("ul", *(tag("li", p) for p in each["places"])))
        for reason, each in (corpus.get("dropped") or {}).items()
    ]
    heading = tag("h3", "Left out, by reason") if left_out else Html()
    slices_table = table(["slice", "documents", "size"], rows) if rows else Html()
    # searches of before this profile was kept have only their slices
    profile = profile_section(corpus["profile"]) if corpus.get("profile") else slices_table
    return join(pairs(facts), profile, heading, *left_out)


def _listed(values: Record | None) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in (values or {}).items()) or NONE


def _measured(result: Record) -> Html:
    facts = [("Full budget", f"{tokens_shown(result['full_budget'])} tokens for each seed")]
    if result.get("seeds"):
        facts.append(("Seeds of the search", ", ".join(map(str, result["seeds"]))))
    if result.get("seconds"):
        times = {part: duration(seconds) for part, seconds in result["seconds"].items()}
        facts.append(("Time", _listed(times)))
    if result.get("overhead"):
        facts.append(("Overhead", _overhead(result["overhead"])))
    facts.append(("Hardware", _listed(result.get("hardware"))))
    fixed = [(label(name), shown(value)) for name, value in (result.get("settings") or {}).items()]
    return join(
        pairs(DEFINITIONS.items()),
        tag("h3", "This search"),
        pairs(facts),
        details(f"Fixed settings ({len(fixed)})", pairs(fixed)) if fixed else Html(),
    )


def _overhead(spent: Record) -> str:
    return (
        f"{duration(spent['wall'])} for {duration(spent['trials'])} of training and scoring, "
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
