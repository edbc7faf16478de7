"""The command `smallm baselines`: the pretrained models to compare with, and how to get them."""

from __future__ import annotations

import textwrap
from dataclasses import asdict

import click

from smallm.options import as_json, examples, print_json

LINE = "{:16}{:8}{:>12}  {:12}{}"


@click.command(
    epilog=examples("smallm baselines", "smallm baselines --json | jq 'map_values(.available)'")
)
@as_json
def baselines(as_json: bool) -> None:
    """List pretrained models to compare with: what they are, and whether they are here."""
    from smallm.baselines import BASELINES, Available, states

    found = states()
    if as_json:
        return print_json(
            {
                name: {
                    **asdict(each),
                    "available": isinstance(found[name], Available),
                    **{key: str(value) for key, value in asdict(found[name]).items()},
                }
                for name, each in BASELINES.items()
            }
        )
    click.echo(LINE.format("name", "kind", "parameters", "licence", "available"))
    for name, each in BASELINES.items():
        state = found[name]
        here = "yes" if isinstance(state, Available) else "no"
        click.echo(LINE.format(name, each.kind, f"{each.parameters:,}", each.licence, here))
        click.echo(_below("what", each.note))
        click.echo(_below("has read", each.has_read))
        if isinstance(state, Available):
            click.echo(_below("place", str(state.place)))
        else:
            click.echo(_below("why not", state.reason))
            click.echo(_below("remedy", state.remedy))
    click.echo("\nAny other model: a folder, a GGUF file, or a hub id such as owner/name.")
    return None


def _below(title: str, text: str) -> str:
    return textwrap.fill(
        f"{title}: {text}",
        width=98,
        initial_indent="    ",
        subsequent_indent="        ",
        break_on_hyphens=False,
        break_long_words=False,  # names and paths can be copied
    )
