"""The comparison of models as tables for a terminal. Every table keeps a row for every model."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallm.leaderboard import NONE, name_shown
from smallm.plots import tokens_shown
from smallm.source_matrix import has_matrix, matrix_lines, sentences
from smallm.terminal import plain_table, texts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Record = Mapping[str, Any]
TITLE = 300  # characters of a prompt
NO_TEMPERATURE = "No temperature is fitted: that takes the final slice."


def evaluation_tables(record: Record) -> RenderableType:
    """What `smallm evaluate` measured: the comparable figures first, then a table a subject."""
    from rich.console import Group

    causal = [row for row in record["models"] if row["kind"] != "masked"]
    masked = [row for row in record["models"] if row["kind"] == "masked"]
    parts = [*_comparable(record, causal)]
    if has_matrix(record):
        parts += _matrix(record)
    if masked:
        parts += _masked(masked)
    if any("calibration" in row for row in causal):
        parts += _calibration(causal)
    elif record["slice"] != "final":
        parts.append(f" {NO_TEMPERATURE}\n")
    if record.get("ceiling"):
        parts += _generation(causal, record["ceiling"])
    parts += [_own(name, table) for name, table in (record.get("own_tokens") or {}).items()]
    return Group(*parts)


def prompt_tables(record: Record) -> RenderableType:
    """What `smallm compare` found: a table for each prompt, a row for each model."""
    from rich.console import Group

    return Group(
        *(_prompt(prompt, place, record) for place, prompt in enumerate(record["prompts"])),
        " Below a model: seconds for its next words, then for its text. Next words are at\n"
        " temperature 1; a range where the search left some of the probability open.\n",
    )


def parameters_shown(row: Record) -> str:
    """A model's size as people write it."""
    count = row.get("parameters")
    return NONE if count is None else tokens_shown(count)


def note(row: Record) -> str:
    """Why a model is missing, or what it may have read."""
    if "reason" in row:
        return f"{'failed' if row['failed'] else 'not available'}: {row['reason']}"
    return f"has read {row['has_read']}" if row.get("has_read") else ""


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.1f}"


def perplexity_shown(value: float) -> str:
    """A perplexity in few characters."""
    if value < 10:
        return f"{value:.3f}"
    return f"{value:,.1f}" if value < 1e5 else f"{value:.1e}"


def with_ends(found: Record, *, factor: float = 1, decimals: int = 3) -> str:
    """A figure with its interval, where it has one."""
    if found["low"] is None:
        return f"{factor * found['value']:.{decimals}f}"
    value, low, high = (factor * found[end] for end in ("value", "low", "high"))
    to = "-" if low >= 0 else " to "  # a dash beside a minus would be misread
    return f"{value:.{decimals}f} ({low:.{decimals}f}{to}{high:.{decimals}f})"


def next_word_shown(row: Record) -> str:
    """The shares of words among the most probable one, three and ten, in percent: at least."""
    found = row.get("next_word")
    if not found:
        return NONE
    shares = "/".join(f"{100 * found[f'top_{k}']['value']:.0f}" for k in (1, 3, 10))
    return f"≥ {shares}" if found["undecided"] else shares


def _with_rows(
    title: str,
    figures: Sequence[str],
    rows: Sequence[Record],
    cells: Callable[[Record], Sequence[object]],
    *,
    needs: str,
) -> Table:
    """A table with a row for each model; one without the figures says why in short."""
    table = plain_table(title, ["model"], figures)
    for row in rows:
        missing = ["failed" if row.get("failed") else "absent" if "reason" in row else NONE]
        missing += [""] * (len(figures) - 1)
        table.add_row(
            *texts([name_shown(row["name"]), *(cells(row) if row.get(needs) else missing)])
        )
    return table


def _notes(rows: Sequence[Record]) -> RenderableType:
    """For each model that is missing the reason, and of the others what must be said."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for row in rows:
        if said := note(row):
            table.add_row(*texts([f" {name_shown(row['name'])}", said]))
    if any("reason" in row and not row["failed"] for row in rows):
        table.add_row("", "`smallm baselines` says what to do about absent models.")
    table.add_row("")
    return table


def _comparable(record: Record, rows: Sequence[Record]) -> Iterator[RenderableType]:
    def cells(row: Record) -> Sequence[object]:
        return (
            *(parameters_shown(row), row["context"], with_ends(row["bits_per_byte"])),
            *(perplexity_shown(row["word_perplexity"]["value"]), next_word_shown(row)),
            f"{row['milliseconds_per_kilobyte']:.0f}",
        )

    yield _with_rows(
        f"On the same {record['bytes']:,} bytes of {record['documents']:,} documents "
        f"({record['slice']} slice)",
        ["size", "sees", "bits per byte (95 %)", "per word", "top 1/3/10", "ms/kB"],
        rows,
        cells,
        needs="bits_per_byte",
    )
    yield _notes(rows)
    if record["documents"] == 1:
        yield " A single document has no interval.\n"
    yield (
        " size: parameters; sees: tokens of context; per word: perplexity;\n"
        " top 1/3/10: percent of words among the most probable (≥: some left open)\n"
    )


def _matrix(record: Record) -> Iterator[RenderableType]:
    table = plain_table(
        "Bits per byte on each source (documents scored)",
        ["model", "trained on"],
        [f"on {name} ({n['documents']:,})" for name, n in record["sources"].items()],
    )
    for cells in matrix_lines(record):
        table.add_row(*texts(cells))
    yield table
    for line in sentences(record):
        yield f" - {line}"
    yield ""


def _masked(rows: Sequence[Record]) -> Iterator[RenderableType]:
    def cells(row: Record) -> Sequence[object]:
        found = with_ends(row["pseudo_log_likelihood_per_word"])
        speed = f"{row['milliseconds_per_token']:.2f}"
        return parameters_shown(row), found, f"{row['bytes']:,}", speed

    yield _with_rows(
        "Masked models: pseudo-log-likelihood, which compares with nothing above",
        ["size", "nats per word (95 %)", "bytes", "ms/token"],
        rows,
        cells,
        needs="pseudo_log_likelihood_per_word",
    )
    yield _notes(rows)


def _calibration(rows: Sequence[Record]) -> Iterator[RenderableType]:
    def cells(row: Record) -> Sequence[object]:
        found = row["calibration"]
        before, after = found["before"], found["after"]
        return (
            f"{found['temperature']:.3f}",
            f"{before['nll']['value']:.3f} → {with_ends(after['nll'])}",
            f"{percent(before['ece_mass']['value'])} → "
            + with_ends(after["ece_mass"], factor=100, decimals=1),
        )

    yield _with_rows(
        "Calibration: what the temperature fitted on the selection slice changes",
        ["temperature", "nats per token (95 %)", "calibration error %"],
        rows,
        cells,
        needs="calibration",
    )
    yield ""


def _generation(rows: Sequence[Record], ceiling: Record) -> Iterator[RenderableType]:
    table = _with_rows(
        f"Continuations of {ceiling['prompts']} held-out passages, against the true ones",
        ["BLEU (95 %)", "ROUGE-L %", "distinct-2 %", "repetition %"],
        rows,
        lambda row: _quality_cells(row["quality"]),
        needs="quality",
    )
    table.add_row(*texts(["ceiling", *_quality_cells(ceiling)]))
    yield table
    yield (
        " ceiling: what follows in the same documents; variety of the true continuations.\n"
        f" Alone these figures say little. {ceiling['bleu_signature']}\n"
    )


def _quality_cells(found: Record) -> Sequence[object]:
    variety = found["diversity"]
    return (
        *(with_ends(found["bleu"], decimals=1), percent(found["rouge_l"]["value"])),
        *(percent(variety["distinct_2"]), percent(variety["repetition"])),
    )


def _own(name: str, models: Mapping[str, Mapping[str, float]]) -> Table:
    table = plain_table(
        f"In the tokens of {name_shown(name)}, which compare only with each other",
        ["model"],
        ["bits per byte", "nats per token", "perplexity", "top 1/3/10"],
    )
    for cells in own_token_rows(name, models):
        table.add_row(*texts(cells))
    return table


def own_token_rows(name: str, models: Mapping[str, Mapping[str, float]]) -> Iterator[list[str]]:
    """A row for a SmaLLM and for each reference model: figures in its own tokens."""
    for model, figures in models.items():
        hits = [figures.get(f"top_{k}") for k in (1, 3, 10)]
        yield [
            name_shown(name) if model == "this model" else model,
            *(f"{figures['bits_per_byte']:.3f}", f"{figures['cross_entropy']:.3f}"),
            perplexity_shown(figures["token_perplexity"]),
            "/".join(f"{100 * hit:.0f}" for hit in hits if hit is not None) or NONE,
        ]


def _prompt(prompt: str, place: int, record: Record) -> Table:
    table = plain_table(textwrap.shorten(prompt, TITLE, placeholder=" …"), ["model"], [])
    table.add_column("next words, %", no_wrap=True)
    table.add_column("continuation", ratio=1)
    table.expand = True
    for row in record["models"]:
        table.add_row(*texts(_prompt_cells(row, place)))
        table.add_section()
    return table


def _prompt_cells(row: Record, place: int) -> Iterator[str]:
    if "reason" in row:
        yield from (name_shown(row["name"]), "", note(row))
        return
    answer = row["prompts"][place]
    times = [answer.get(f"{what}_seconds") for what in ("next_words", "continuation")]
    yield "\n".join(
        [name_shown(row["name"]), *(f"{seconds:.2f} s" for seconds in times if seconds is not None)]
    )
    found = answer.get("next_words")
    yield "" if found is None else "\n".join(words_shown(found))
    yield continuation_shown(row, answer)


def continuation_shown(row: Record, answer: Record) -> str:
    """A continuation, or why there is none."""
    if row["kind"] == "masked":
        return answer["error"] or "a masked model: only words of a single piece"
    written = answer.get("continuation")
    if written is None or answer["error"] is None:
        return answer["error"] or written or "(the text ends here)"
    return f"{written or '(the text ends here)'}\n[next words: {answer['error']}]"


def words_shown(found: Record) -> Iterator[str]:
    """Each next word with its probability in percent, then whether the order is certain."""
    for each in found["words"]:
        low, high = percent(each["probability"]), percent(each["upper"])
        yield f"{low if low == high else f'{low}-{high}':>5}  {each['word']}"
    if not found["certified"]:
        yield f"uncertified, {percent(found['residual'])} open"
