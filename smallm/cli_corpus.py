"""The commands `smallm corpus …`: where text comes from, and what a corpus holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from smallm.errors import SmallmError
from smallm.home import open_home
from smallm.options import Several, as_json, examples, messages, print_json, settings_options
from smallm.settings import Settings

if TYPE_CHECKING:
    from smallm.tape import Tape
    from smallm.token_tape import TokenTape

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
        click.echo(f"{name:13} {description}")
    return None


@corpus.command(
    epilog=examples(
        "smallm corpus build",
        "smallm corpus build --source folder --path notes --order stratified",
        "smallm corpus build --source folder --path posts.csv --text-field body",
        "smallm corpus build --source hub --dataset roneneldan/TinyStories --max-documents 20000",
        "smallm corpus build --source ml-text --path enwiki-latest-pages-articles.xml.bz2",
        "smallm corpus build --source stackoverflow --path Posts.xml --tags python",
        'smallm corpus build --source arxiv --path arxiv.json --categories "cs.LG,stat.*"',
        "smallm corpus build --source reddit --path RC_2015-01.zst --minimum-score 2",
        "smallm corpus build --source news --path feeds --categories World",
        "smallm corpus build --source mixture --path mixture.yaml",
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
    click.echo(f"{manifest['tokens']:,} tokens in {tape.folder}")
    for line in build_lines(tape):
        click.echo(line)
    try:
        tape.heldout(RATIOS)
    except SmallmError as error:
        messages().print(f"note: {error}", markup=False)
    return None


@corpus.command(
    epilog=examples(
        "smallm corpus inspect --samples 5", "smallm corpus inspect --json | jq .slices"
    )
)
@settings_options("corpus", "tokens")
@click.option(
    "--ratios",
    type=Several(float),
    default=",".join(map(str, RATIOS)),
    show_default=True,
    help="Split ratios whose slices are shown.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="How many documents to show.",
)
@as_json
def inspect(given: dict[str, Any], ratios: tuple[float, ...], samples: int, as_json: bool) -> None:
    """Show sizes, lengths, slices, vocabulary, overlap and a few documents of a corpus."""
    from smallm.corpus_profile import corpus_profile, lines
    from smallm.evaluation_run import write_corpus_page

    for ratio in ratios:
        if not 0 < ratio < 1:
            raise click.BadParameter(f"{ratio} does not lie between 0 and 1", param_hint="--ratios")
    tape, tokens = corpus_tapes(given)
    with messages().status("reading the corpus"):
        profile = corpus_profile(tape, ratios, samples=samples)
    predicted = len(tokens.tokens) - len(tape)
    profile |= {
        "vocabulary": tokens.vocabulary,
        "bytes_per_token": round(float(tokens.bytes.sum() / predicted), 3),
    }
    if as_json:
        return print_json(profile)
    for line in lines(profile):
        click.echo(line)
    for text in profile["samples"]:
        click.echo(f"\n{text}")
    click.echo(f"\npage: {write_corpus_page(profile, tape)}")
    return None


def build_lines(tape: Tape) -> Iterator[str]:
    """What a tape holds, and what was left out and why."""
    manifest = tape.manifest
    yield f"{len(tape):,} documents, {manifest['words']:,} words, {manifest['bytes']:,} bytes"
    sources = tape.by_source()
    for name, sizes in sources.items() if len(sources) > 1 else ():
        share = sizes["bytes"] / manifest["bytes"]
        yield f"{name}: {sizes['documents']:,} documents, {sizes['bytes']:,} bytes, {share:.1%}"
    removed = manifest["duplicates"]
    yield f"duplicates removed: {removed['exact']:,} exact, {removed['near']:,} near"
    for reason, left_out in manifest["dropped"].items():
        places = ", ".join(left_out["places"][:3])
        yield f"left out, {reason}: {left_out['count']:,} (such as {places})"


def corpus_tape(given: dict[str, Any]) -> Tape:
    """The tape of the settings, built or opened."""
    from smallm.provenance import usable_cpus
    from smallm.tape_building import build_tape

    settings = Settings.from_flat(given)
    with messages().status(f"reading source {settings.corpus.source}"):
        return build_tape(settings.corpus, home=open_home(), workers=usable_cpus())


def corpus_tapes(given: dict[str, Any]) -> tuple[Tape, TokenTape]:
    """The tape of the settings with its tokens."""
    from smallm.provenance import usable_cpus
    from smallm.token_tape import tokenize_tape

    settings = Settings.from_flat(given)
    tape = corpus_tape(given)
    ratios = [*RATIOS, settings.training.split_ratio]
    with messages().status(f"tokenizing {tape.manifest['bytes']:,} bytes"):
        tokens = tokenize_tape(tape, settings.tokens, ratios=ratios, workers=usable_cpus())
    return tape, tokens
