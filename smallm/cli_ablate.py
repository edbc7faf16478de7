"""`smallm ablate`: one setting changed at a time, with paired seeds and a control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from smallm.ablations import ABLATIONS, SCORED, SEEDS, arms_of
from smallm.cli_corpus import RATIOS, corpus_tapes
from smallm.cli_models import machine_options
from smallm.home import open_home
from smallm.options import as_json, examples, messages, print_json, settings_options
from smallm.settings import Settings

if TYPE_CHECKING:
    from smallm.token_tape import TokenTape


@click.command(
    epilog=examples(
        "smallm ablate",
        "smallm ablate activation",
        "smallm ablate curriculum-length --training-tokens 4000000",
        "smallm ablate dropout --architecture transformer --preset tiny --batch-size 2048",
    )
)
@click.argument("name", required=False)
@settings_options(
    "corpus", "tokens", "model", "training", without=SCORED, defaults={"seeds": SEEDS}
)
@machine_options
@as_json
def ablate(name: str | None, given: dict[str, Any], machine: dict[str, Any], as_json: bool) -> None:
    """Train the arms of an ablation on equal tokens and paired seeds; compare with its control.

    Without a NAME, list the ablations. All other settings are shared by the arms. Five seeds, by
    default 42 to 46, are the fewest that can prove a difference.
    """
    if name is None:
        return _list(as_json=as_json)
    arms = arms_of(name, given)
    from rich.console import Console

    from smallm.ablation_run import AblationRun, run
    from smallm.ablation_section import ablation_table

    highest = max(settings.training.split_ratio for settings in arms.values())
    tape, _ = corpus_tapes(next(iter(arms.values())).flat())
    selection, _ = tape.heldout([*RATIOS, highest])
    with AblationRun(open_home(), tell=lambda line: messages().print(line, markup=False)) as kept:
        record = run(name, arms, _tokens, kept, selection=selection, **machine)
    if as_json:
        return print_json(record)
    console = Console()
    console.print(ablation_table(record))
    for line in record["conclusion"]:
        click.echo(f"- {line}")
    click.echo(f"page: {kept.page}")
    return None


def _tokens(settings: Settings) -> TokenTape:
    return corpus_tapes(settings.flat())[1]


def _list(*, as_json: bool) -> None:
    if as_json:
        return print_json(
            {
                name: {"question": each.question, "arms": list(each.arms), "control": each.control}
                for name, each in ABLATIONS.items()
            }
        )
    for name, each in ABLATIONS.items():
        others = ", ".join(arm for arm in each.arms if arm != each.control)
        click.echo(f"{name}: {each.question}\n    {others}; against {each.control}")
    return None
