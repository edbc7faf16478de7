"""The comparison of models as sections of a page: tables, plots, prompts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smallm.comparison_plots import draw_comparison, draw_next_words
from smallm.comparison_tables import (
    NO_TEMPERATURE,
    continuation_shown,
    note,
    own_token_rows,
    parameters_shown,
    percent,
    perplexity_shown,
    with_ends,
)
from smallm.leaderboard import NONE, name_shown, span
from smallm.page import Html, figures, join, table, tag
from smallm.source_matrix import has_matrix, matrix_section

Record = Mapping[str, Any]
WARNING = (
    "A pretrained model may have read the very text it is scored on: where that is so, its score "
    "is better than on text that is new to it. What each has read stands in its row."
)


def comparison_sections(record: Record) -> dict[str, Html]:
    """The sections that the record has data for, by title, in reading order."""
    sections = {}
    if "bytes" in record:
        sections["Beside pretrained models"] = _scores(record)
    if has_matrix(record):
        sections["Source by source"] = matrix_section(record)
    if record.get("prompts"):
        sections["Prompts side by side"] = _prompts(record)
    return sections


def _scores(record: Record) -> Html:
    rows = record["models"]
    causal = [row for row in rows if row["kind"] != "masked"]
    masked = [row for row in rows if row["kind"] == "masked"]
    plots = draw_comparison(record)
    words = (
        f"All models are scored on the same {record['bytes']:,} bytes of {record['documents']:,} "
        f"documents ({record['slice']} slice), each text after the model's own beginning token, "
        "as lm-evaluation-harness does. Intervals are over documents. The row of a SmaLLM is the "
        "saved model, the median of its seeds"
        + ("; the mean over seeds stands with the finalists." if "sentences" in record else ".")
    )
    parts = [
        tag("p", words),
        tag("p", tag("strong", "Read with care. "), WARNING),
        _comparable(causal),
        figures(plots, "comparison"),
    ]
    if masked:
        parts.append(_masked(masked))
    if any("calibration" in row for row in causal):
        parts += [_calibration(causal), figures(plots, "calibration")]
    elif record["slice"] != "final":
        parts.append(tag("p", NO_TEMPERATURE))
    if record.get("ceiling"):
        parts.append(_generation(causal, record["ceiling"]))
    parts += [_own_tokens(name, found) for name, found in (record.get("own_tokens") or {}).items()]
    return join(*parts)


def _row(row: Record, cells: Sequence[object], width: int) -> list[object]:
    """A table row; a model without the figures shows dashes and the reason."""
    return [name_shown(row["name"]), *(cells or [NONE] * width), note(row)]


def _comparable(rows: Sequence[Record]) -> Html:
    header = [
        *("model", "parameters", "sees, tokens", "bits per byte (95 %)"),
        *("word perplexity", "byte perplexity", "next word among first 1, 3, 10 (%)"),
        *("ms per kB", "ms per token", "note"),
    ]
    return table(
        header, [_row(row, _comparable_cells(row), len(header) - 2) for row in rows], "models"
    )


def _comparable_cells(row: Record) -> list[object]:
    if not row.get("bits_per_byte"):
        return []
    bits = row["bits_per_byte"]
    word, byte = (_below(row[f"{unit}_perplexity"]) for unit in ("word", "byte"))
    return [
        *(parameters_shown(row), row["context"]),
        join(tag("strong", f"{bits['value']:.3f}"), tag("div", span(bits))),
        *(word, byte, _next_word(row)),
        f"{row['milliseconds_per_kilobyte']:.1f}",
        f"{row['milliseconds_per_token']:.2f}",
    ]


def _below(found: Record) -> str:
    """A perplexity, and its interval below it where it has one."""
    ends = [perplexity_shown(found[end]) for end in ("low", "high") if found[end] is not None]
    return "\n".join([perplexity_shown(found["value"]), *([" to ".join(ends)] if ends else [])])


def _next_word(row: Record) -> str:
    found = row.get("next_word")
    if not found:
        return NONE
    shares = (with_ends(found[f"top_{k}"], factor=100, decimals=0) for k in (1, 3, 10))
    undecided = [f"{found['undecided']} undecided"] if found["undecided"] else []
    return "\n".join([*shares, f"of {found['positions']} words", *undecided])


def _masked(rows: Sequence[Record]) -> Html:
    header = ["model", "parameters", "nats per word", "95 % interval", "bytes", "note"]
    words = (
        "Masked models define no probability of a text, so no bits per byte. Their "
        "pseudo-log-likelihood masks each token and the rest of its word; it compares with other "
        "masked models only. It is slow, so only the first bytes of the text are looked at, in "
        "windows of 64 tokens."
    )
    body = [_row(row, _masked_cells(row), len(header) - 2) for row in rows]
    return join(tag("h3", "Masked models"), tag("p", words), table(header, body, "models"))


def _masked_cells(row: Record) -> list[object]:
    found = row.get("pseudo_log_likelihood_per_word")
    if not found:
        return []
    return [parameters_shown(row), f"{found['value']:.3f}", span(found), f"{row['bytes']:,}"]


def _calibration(rows: Sequence[Record]) -> Html:
    header = [
        *("model", "fitted temperature", "nats per token, before", "after"),
        *("calibration error (%), before", "after", "note"),
    ]
    words = (
        "One temperature for each model, fitted on the selection slice. The expected calibration "
        "error compares, in 15 bins of equally many tokens, how sure a model is of its first "
        "choice with how often that is right."
    )
    body = [_row(row, _calibration_cells(row), len(header) - 2) for row in rows]
    return join(tag("h3", "Calibration"), tag("p", words), table(header, body, "models"))


def _calibration_cells(row: Record) -> list[object]:
    found = row.get("calibration")
    if not found:
        return []
    times = (found["before"], found["after"])
    return [
        f"{found['temperature']:.3f}",
        *(with_ends(when["nll"]) for when in times),
        *(with_ends(when["ece_mass"], factor=100, decimals=1) for when in times),
    ]


def _generation(rows: Sequence[Record], ceiling: Record) -> Html:
    header = [
        *("model", "BLEU", "ROUGE-1 (%)", "ROUGE-2 (%)", "ROUGE-L (%)", "distinct-1 (%)"),
        *("distinct-2 (%)", "repetition (%)", "note"),
    ]
    words = (
        f"Continuations of {ceiling['prompts']} held-out passages, equally long in words and "
        "decoded alike, against the true ones. Alone these figures say little: the ceiling is what "
        "the words that follow in the same documents reach, beside the variety of the true "
        "continuations."
    )
    body = [_row(row, _quality_cells(row.get("quality")), len(header) - 2) for row in rows]
    body.append(["ceiling", *_quality_cells(ceiling), "text by the documents' own authors"])
    signature = tag("p", tag("small", ceiling["bleu_signature"]))
    return join(
        tag("h3", "Continuations"), tag("p", words), table(header, body, "models"), signature
    )


def _quality_cells(found: Record | None) -> list[object]:
    if not found:
        return []
    variety = found["diversity"]
    shares = [found["rouge_1"], found["rouge_2"], found["rouge_l"]["value"]]
    shares += [variety["distinct_1"], variety["distinct_2"], variety["repetition"]]
    return [with_ends(found["bleu"], decimals=1), *map(percent, shares)]


def _own_tokens(name: str, models: Mapping[str, Mapping[str, float]]) -> Html:
    words = (
        "The same text in this model's own tokens, beside models of counts that are made of this "
        "corpus' training slice. Figures per token compare only within this table."
    )
    header = [
        "model",
        "bits per byte",
        "nats per token",
        "perplexity",
        "right among 1 / 3 / 10 (%)",
    ]
    title = tag("h3", f"In the tokens of {name_shown(name)}")
    return join(title, tag("p", words), table(header, own_token_rows(name, models), "models"))


def _prompts(record: Record) -> Html:
    parts = []
    for place, prompt in enumerate(record["prompts"]):
        plots = draw_next_words(record, place)
        rows = [_answer(row, place) for row in record["models"]]
        parts += [
            tag("h3", prompt),
            figures(plots, "prompts"),
            table(["model", "continuation", "seconds, words and text"], rows),
        ]
    return join(*parts)


def _answer(row: Record, place: int) -> list[object]:
    if "reason" in row:
        return [name_shown(row["name"]), note(row), NONE]
    answer = row["prompts"][place]
    times = [answer.get(f"{what}_seconds") for what in ("next_words", "continuation")]
    shown = " + ".join(f"{seconds:.2f}" for seconds in times if seconds is not None)
    return [name_shown(row["name"]), continuation_shown(row, answer), shown or NONE]
