"""The commands `smallm corpus …`: where text comes from, and what a corpus holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from smallm.home import open_home
from smallm.options import as_json, examples, messages, print_json, settings_options
from smallm.settings import Settings

if TYPE_CHECKING:
    from smallm.tape import Slice, Tape, TokenTape

RATIOS = (0.75, 0.8, 0.9)  # of the searches that ship: their slices are those shown and scored


@click.group()
def corpus() -> None:
    """List sources, build a corpus, look at one."""


@corpus.command("list")
@as_json
def list_sources(as_json: bool) -> None:
    """Show where text can come from."""
    from smallm.documents import SOURCES, source

    found = {name: source(name).describe() for name in SOURCES}
    if as_json:
        return print_json(found)
    for name, description in found.items():
        click.echo(f"{name:10} {description}")
    return None


@corpus.command(
    epilog=examples(
        "smallm corpus build",
        "smallm corpus build --source folder --path notes --order stratified",
        "smallm corpus build --source folder --path posts.csv --text-field body",
        "smallm corpus build --source hub --dataset roneneldan/TinyStories --max-documents 20000",
    )
)
@settings_options("corpus", "tokens")
@as_json
def build(given: dict[str, Any], as_json: bool) -> None:
    """Read, part and tokenize a corpus; say what was left out and why."""
    tape, tokens = corpus_tapes(given)
    manifest = tape.manifest | {"folder": str(tape.folder), "tokens": len(tokens.tokens)}
    if as_json:
        return print_json(manifest)
    removed = manifest["duplicates"]
    click.echo(
        f"{len(tape):,} documents, {manifest['words']:,} words, {manifest['bytes']:,} bytes, "
        f"{manifest['tokens']:,} tokens in {tape.folder}"
    )
    click.echo(f"duplicates removed: {removed['exact']:,} exact, {removed['near']:,} near")
    for reason, left_out in manifest["dropped"].items():
        places = ", ".join(left_out["places"][:3])
        click.echo(f"left out: {left_out['count']:,} times {reason} (such as {places})")
    return None


@corpus.command(
    epilog=examples(
        "smallm corpus inspect --samples 5", "smallm corpus inspect --json | jq .slices"
    )
)
@settings_options("corpus", "tokens")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="How many documents to show.",
)
@as_json
def inspect(given: dict[str, Any], samples: int, as_json: bool) -> None:
    """Show sizes, lengths, slices and a few documents of a corpus."""
    tape, tokens = corpus_tapes(given)
    shown = {
        "documents": len(tape),
        "words": tape.manifest["words"],
        "bytes": tape.manifest["bytes"],
        "vocabulary": tokens.vocabulary,
        "bytes_per_token": round(float(tokens.bytes.sum() / (len(tokens.tokens) - len(tape))), 3),
        "duplicates": tape.manifest["duplicates"],
        "slices": {
            name: {"documents": len(part), "bytes": tape.bytes(part)}
            for name, part in slices_of(tape).items()
        },
        "lengths": _length_histogram(tokens),
        "samples": [tape.text(number)[:300] for number in range(min(samples, len(tape)))],
    }
    if as_json:
        return print_json(shown)
    for name in ("documents", "words", "bytes", "vocabulary", "bytes_per_token"):
        click.echo(f"{name.replace('_', ' '):16} {shown[name]:,}")
    for name, sizes in shown["slices"].items():
        click.echo(f"{name:16} {sizes['documents']:,} documents, {sizes['bytes']:,} bytes")
    most = max(shown["lengths"].values())
    for length, count in shown["lengths"].items():
        click.echo(f"{length:>16} bytes {'#' * max(1, round(40 * count / most))} {count:,}")
    removed = shown["duplicates"]
    click.echo(f"{'duplicates':16} {removed['exact']:,} exact, {removed['near']:,} near, removed")
    for text in shown["samples"]:
        click.echo(f"\n{text}")
    return None


def corpus_tape(given: dict[str, Any]) -> Tape:
    """The tape of the settings, built or opened."""
    from smallm.provenance import usable_cpus
    from smallm.tape import build_tape

    settings = Settings.from_flat(given)
    with messages().status(f"reading source {settings.corpus.source}"):
        return build_tape(settings.corpus, home=open_home(), workers=usable_cpus())


def corpus_tapes(given: dict[str, Any]) -> tuple[Tape, TokenTape]:
    """The tape of the settings with its tokens."""
    from smallm.tape import tokenize_tape

    settings = Settings.from_flat(given)
    tape = corpus_tape(given)
    ratios = [*RATIOS, settings.training.split_ratio]
    with messages().status(f"tokenizing {tape.manifest['bytes']:,} bytes"):
        return tape, tokenize_tape(tape, settings.tokens, ratios=ratios)


def slices_of(tape: Tape) -> dict[str, Slice]:
    """The parts of a tape: training at the ratios of the searches that ship, and held out."""
    selection, final = tape.heldout(RATIOS)
    training = {f"training {ratio:g}": tape.training(ratio) for ratio in RATIOS}
    return {**training, "selection": selection, "final": final}


def _length_histogram(tokens: TokenTape) -> dict[str, int]:
    counts = Counter(int(size).bit_length() - 1 for size in tokens.bytes)
    return {f"{2**power:,}-{2 ** (power + 1) - 1:,}": counts[power] for power in sorted(counts)}
