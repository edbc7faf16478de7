"""The comparison of models as tables for a terminal. Every table keeps a row for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallm.leaderboard import NONE, name_shown, span
from smallm.terminal import plain_table, texts

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Record = Mapping[str, Any]
TOKEN_FIGURES = ("cross_entropy", "token_perplexity", "top_1", "top_3", "top_10")


def evaluation_tables(record: Record) -> RenderableType:
    """What `smallm evaluate` measured: the comparable figures first, then a table a subject."""
    from rich.console import Group

    causal = [row for row in record["models"] if row["kind"] != "masked"]
    masked = [row for row in record["models"] if row["kind"] == "masked"]
    tables = [_comparable(record, causal)]
    if masked:
        tables.append(_masked(masked))
    if any("calibration" in row for row in causal):
        tables.append(_calibration(causal))
    if record.get("ceiling"):
        tables.append(_generation(causal, record["ceiling"]))
    tables += [_own(name, table) for name, table in (record.get("own_tokens") or {}).items()]
    return Group(*tables)


def prompt_tables(record: Record) -> RenderableType:
    """What `smallm compare` found: a table for each prompt, a row for each model."""
    from rich.console import Group

    return Group(
        *(_prompt(prompt, place, record) for place, prompt in enumerate(record["prompts"]))
    )


def parameters_shown(row: Record) -> str:
    """A model's size as people write it."""
    count = row.get("parameters")
    return NONE if count is None else f"{count / 1e6:.3g} M"


def note(row: Record) -> str:
    """Why a model is missing, or what it may have read."""
    if "reason" in row:
        return f"{'failed' if row['failed'] else 'not available'}: {row['reason']}"
    return f"has read {row['has_read']}" if row.get("has_read") else ""


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.1f}"


def next_word_shown(row: Record) -> str:
    """The shares of words among the most probable one, three and ten, in percent."""
    found = row["next_word"]
    return " / ".join(f"{100 * found[f'top_{k}']['value']:.0f}" for k in (1, 3, 10))


def _rows(
    table: Table, rows: Sequence[Record], cells: Callable[[Record], Sequence[object]], *, needs: str
) -> Table:
    """Adds a row for each model; one without the figures shows dashes and the reason."""
    width = len(table.columns) - 2
    for row in rows:
        figures = cells(row) if row.get(needs) else [NONE] * width
        table.add_row(*texts([name_shown(row["name"]), *figures, note(row)]))
    return table


def _with_notes(title: str, figures: Sequence[str]) -> Table:
    table = plain_table(title, ["model"], figures)
    table.add_column("note", min_width=24)
    return table


def _comparable(record: Record, rows: Sequence[Record]) -> Table:
    table = _with_notes(
        f"On the same {record['bytes']:,} bytes in {record['documents']:,} documents "
        f"({record['slice']} slice)",
        ["parameters", "bits per byte", "95 % interval", "per word", "next word %", "ms/token"],
    )

    def cells(row: Record) -> Sequence[object]:
        bits = row["bits_per_byte"]
        return (
            *(parameters_shown(row), f"{bits['value']:.3f}", span(bits)),
            *(f"{row['word_perplexity']['value']:,.0f}", next_word_shown(row)),
            f"{row['milliseconds_per_token']:.2f}",
        )

    table.caption = (
        "per word: perplexity; next word: how often it is among the 1 / 3 / 10 most probable words"
    )
    table.caption_justify = "left"
    return _rows(table, rows, cells, needs="bits_per_byte")


def _masked(rows: Sequence[Record]) -> Table:
    table = _with_notes(
        "Masked models: pseudo-log-likelihood, which compares with nothing above",
        ["parameters", "nats per word", "95 % interval", "bytes", "ms/token"],
    )

    def cells(row: Record) -> Sequence[object]:
        found = row["pseudo_log_likelihood_per_word"]
        rest = f"{row['bytes']:,}", f"{row['milliseconds_per_token']:.2f}"
        return parameters_shown(row), f"{found['value']:.3f}", span(found), *rest

    return _rows(table, rows, cells, needs="pseudo_log_likelihood_per_word")


def _calibration(rows: Sequence[Record]) -> Table:
    table = _with_notes(
        "Calibration: what the temperature fitted on the selection slice changes",
        ["temperature", "nats per token", "95 % interval", "calibration error %", "95 % interval"],
    )

    def cells(row: Record) -> Sequence[object]:
        found = row["calibration"]
        before, after = found["before"], found["after"]
        errors = [when["ece_mass"]["value"] for when in (before, after)]
        return (
            f"{found['temperature']:.3f}",
            f"{before['nll']['value']:.3f} → {after['nll']['value']:.3f}",
            _ends(after["nll"]),
            " → ".join(map(percent, errors)),
            _ends({k: 100 * (v or 0) for k, v in after["ece_mass"].items()}, decimals=1),
        )

    return _rows(table, rows, cells, needs="calibration")


def _ends(interval: Record, decimals: int = 3) -> str:
    return NONE if interval["low"] is None else span(interval, decimals)


def _generation(rows: Sequence[Record], ceiling: Record) -> Table:
    table = _with_notes(
        f"Continuations of {ceiling['prompts']} held-out passages, against the true ones",
        ["BLEU", "95 % interval", "ROUGE-L %", "distinct-2 %", "repetition %"],
    )

    def cells(row: Record) -> Sequence[object]:
        return _quality_cells(row["quality"])

    _rows(table, rows, cells, needs="quality")
    said = "what follows in the same documents; variety of the true continuations"
    table.add_row(*texts(["ceiling", *_quality_cells(ceiling), said]))
    table.caption = f"{ceiling['bleu_signature']}; alone these figures say little"
    table.caption_justify = "left"
    return table


def _quality_cells(found: Record) -> Sequence[object]:
    variety = found["diversity"]
    return (
        *(f"{found['bleu']['value']:.1f}", span(found["bleu"], 1)),
        percent(found["rouge_l"]["value"]),
        *(percent(variety["distinct_2"]), percent(variety["repetition"])),
    )


def _own(name: str, models: Mapping[str, Mapping[str, float]]) -> Table:
    table = plain_table(
        f"In the tokens of {name_shown(name)}, which compare only with each other",
        ["model"],
        ["bits per byte", *(figure.replace("_", " ") for figure in TOKEN_FIGURES)],
    )
    for model, figures in models.items():
        cells = (f"{figures[f]:,.3f}" if f in figures else NONE for f in TOKEN_FIGURES)
        shown = name_shown(name) if model == "this model" else model
        table.add_row(*texts([shown, f"{figures['bits_per_byte']:.3f}", *cells]))
    return table


def _prompt(prompt: str, place: int, record: Record) -> Table:
    table = plain_table(prompt, ["model"], [])
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
    yield answer["error"] or answer.get("continuation") or "a masked model: single words only"


def words_shown(found: Record) -> Iterator[str]:
    """Each next word with its probability in percent, then whether the order is certain."""
    for each in found["words"]:
        yield f"{percent(each['probability']):>5}  {each['word']}"
    if not found["certified"]:
        yield f"uncertified, {percent(found['residual'])} open"
