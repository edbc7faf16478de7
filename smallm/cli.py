"""The command-line program `smallm`: corpus, train, evaluate, generate, report, sync.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.errors import SmallmError
from smallm.home import newest_search, open_home
from smallm.options import run_program, settings_options
from smallm.settings import Settings, read_yaml

if TYPE_CHECKING:
    from smallm.tape import Slice, Tape, TokenTape

RATIOS = (0.75, 0.8, 0.9)  # of the searches that ship: their slices are those shown and scored
EXAMPLES = """\b
Examples:
  smallm corpus build --source folder --path notes
  smallm train --activation gelu --training-tokens 2000000
  smallm evaluate champion
  smallm generate champion --prompt "Neural networks are"
The search is a program of its own: python tune/search.py --help
"""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.group(context_settings={"max_content_width": 100}, epilog=EXAMPLES)
@click.version_option(package_name="smallm")
def cli() -> None:
    """Train small next-word language models on your text, and see whether they are any good."""


def main() -> None:
    """Runs the program."""
    run_program(cli)


@cli.group()
def corpus() -> None:
    """List sources, build a corpus, look at one."""


@corpus.command("list")
@as_json
def list_sources(as_json: bool) -> None:
    """Show where text can come from."""
    from smallm.documents import SOURCES, source

    found = {name: source(name).describe() for name in SOURCES}
    if as_json:
        return _print_json(found)
    for name, description in found.items():
        click.echo(f"{name:10} {description}")
    return None


@corpus.command()
@settings_options("corpus", "tokens")
@as_json
def build(given: dict[str, Any], as_json: bool) -> None:
    """Read, part and tokenize a corpus; say what was left out and why."""
    tape, tokens = _tapes(given)
    manifest = tape.manifest | {"folder": str(tape.folder), "tokens": len(tokens.tokens)}
    if as_json:
        return _print_json(manifest)
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


@corpus.command()
@settings_options("corpus", "tokens")
@click.option("--samples", type=click.IntRange(0), default=3, show_default=True)
@as_json
def inspect(given: dict[str, Any], samples: int, as_json: bool) -> None:
    """Show sizes, lengths, slices and a few documents of a corpus."""
    tape, tokens = _tapes(given)
    shown = {
        "documents": len(tape),
        "words": tape.manifest["words"],
        "bytes": tape.manifest["bytes"],
        "vocabulary": tokens.vocabulary,
        "bytes_per_token": round(float(tokens.bytes.sum() / (len(tokens.tokens) - len(tape))), 3),
        "duplicates": tape.manifest["duplicates"],
        "slices": {
            name: {"documents": len(part), "bytes": tape.bytes(part)}
            for name, part in _slices(tape).items()
        },
        "lengths": _length_histogram(tokens),
        "samples": [tape.text(number)[:300] for number in range(min(samples, len(tape)))],
    }
    if as_json:
        return _print_json(shown)
    for name in ("documents", "words", "bytes", "vocabulary", "bytes_per_token"):
        click.echo(f"{name.replace('_', ' '):16} {shown[name]:,}")
    for name, sizes in shown["slices"].items():
        click.echo(f"{name:16} {sizes['documents']:,} documents, {sizes['bytes']:,} bytes")
    most = max(shown["lengths"].values())
    for length, count in shown["lengths"].items():
        click.echo(f"{length:>16} bytes {'#' * max(1, round(40 * count / most))} {count:,}")
    for text in shown["samples"]:
        click.echo(f"\n{text}")
    return None


@cli.command()
@settings_options("corpus", "tokens", "model", "training")
@click.option("--print-config", is_flag=True, help="Print the effective settings and stop.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the trained model.")
@click.option("--threads", type=click.IntRange(1), help="Threads; by default all processors.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@as_json
def train(
    given: dict[str, Any],
    print_config: bool,
    output: Path | None,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Train one config with all its seeds; save the replicate with the median score."""
    settings = Settings.from_flat(given)
    if print_config:
        click.echo(settings.to_yaml(), nl=False)
        return
    from smallm.files import whole_folder
    from smallm.provenance import usable_cpus
    from smallm.training import Training

    home = open_home()
    name = f"{settings.model.architecture}-{settings.model.activation}-{settings.tokens.tokenizer}"
    folder = (output or _unused(home / "models" / name)).resolve()
    if folder.exists():
        raise SmallmError(f"{folder}: exists; give --output another folder")
    tape, tokens = _tapes(given)
    selection, _ = tape.heldout([*RATIOS, settings.training.split_ratio])
    training = Training(
        settings, tokens, selection=selection, threads=threads or usable_cpus(), device=device
    )
    for progress in training:
        click.echo(
            f"{progress.tokens:,}/{progress.budget:,} tokens: {progress.mean:.3f} ± "
            f"{progress.spread:.3f} bits per byte, {progress.tokens_per_second:,.0f} tokens/s",
            err=True,
        )
        for seed, why in progress.failures.items():
            click.echo(f"seed {seed} ended early: {why}", err=True)
    bits = progress.bits_per_byte
    seed = sorted(bits, key=lambda each: bits[each])[(len(bits) - 1) // 2]
    if seed in progress.failures:
        raise SmallmError(f"no model saved: seed {seed} ended early: {progress.failures[seed]}")
    card = f"# SmaLLM\n\nSeed {seed}: {bits[seed]:.4f} bits per byte on the selection slice.\n"
    with whole_folder(folder) as temporary:
        _save(training.trained(seed), settings, tokens, temporary, card)
    if as_json:
        _print_json({"folder": str(folder), "seed": seed, "bits_per_byte": bits})
    else:
        click.echo(f"saved {folder} (seed {seed}, {bits[seed]:.4f} bits per byte)")


@cli.command()
@click.argument("model")
@settings_options("corpus")
@click.option("--slice", "slice_name", type=click.Choice(["selection", "final"]), default="final")
@as_json
def evaluate(model: str, given: dict[str, Any], slice_name: str, as_json: bool) -> None:
    """Score a MODEL (a folder, or `champion`) beside the reference models on the same tokens.

    The corpus is the model's own unless another is given.
    """
    from smallm.champion import load_core
    from smallm.evaluation import reference_scores
    from smallm.scoring import score

    folder = _model_folder(model)
    core, shape, tokenizer = load_core(folder)
    trained = Settings.from_flat(read_yaml(folder / "settings.yaml"))
    own = trained.corpus.model_dump(mode="json", exclude_defaults=True)
    tape, tokens = _tapes(own | given, tokenizer=tokenizer)
    part = _slices(tape)[slice_name]
    scores = {"this model": score(core, tokens, part, window=shape.window, top=True)}
    scores |= reference_scores(tokens, tape.training(trained.training.split_ratio), part)
    table = {name: each.metrics() for name, each in scores.items()}
    if as_json:
        return _print_json({"slice": slice_name, "bytes": tape.bytes(part), "models": table})
    click.echo(f"{slice_name} slice: {len(part):,} documents, {tape.bytes(part):,} bytes")
    columns = list(table["this model"])
    click.echo(f"{'':20}" + "".join(f"{name.replace('_', ' '):>18}" for name in columns))
    for name, figures in table.items():
        cells = (f"{figures[c]:>18,.4f}" if c in figures else f"{'':>18}" for c in columns)
        click.echo(f"{name:20}" + "".join(cells))
    return None


@cli.command()
@click.argument("model")
@click.option("--prompt", required=True)
@click.option("--max-tokens", type=click.IntRange(1), default=40, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=50, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0)
@click.option("--seed", type=int, default=0, show_default=True)
@as_json
def generate(
    model: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Continue a prompt with a MODEL (a folder, or `champion`); temperature 0 is greedy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = _model_folder(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature else {}
    produce = getattr(network, "generate")  # noqa: B009 (typed for models with a cache only)
    written = produce(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=max_tokens,
        do_sample=temperature > 0,
        streamer=None if as_json else TextStreamer(tokenizer, skip_special_tokens=True),
        **sampling,
    )
    if as_json:
        text = tokenizer.decode(written[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
        _print_json({"prompt": prompt, "continuation": text})


@cli.command()
@click.argument("search", required=False)
@as_json
def report(search: str | None, as_json: bool) -> None:
    """Show the result of a SEARCH (by default the newest) and write its report anew."""
    from rich.console import Console

    from smallm import report as reports
    from smallm.results import sentences

    folder = _search_folder(search)
    result = reports.read_result(folder / "result.json")
    if as_json:
        return _print_json(result)
    reports.write_report(result, folder / "report.html")
    reports.write_leaderboard(result, folder / "leaderboard.csv")
    Console().print(reports.terminal_table(result))
    for line in sentences(result):
        click.echo(f"- {line}")
    click.echo(f"report: {folder / 'report.html'}")
    return None


@cli.command()
@click.argument("search", required=False)
@click.option("--uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; by default the home's own.")
def sync(search: str | None, uri: str | None) -> None:
    """Record in MLflow what a SEARCH could not record while it did not answer."""
    from smallm.tracking import local_uri
    from smallm.tracking import sync as send

    folder = _search_folder(search, marker="search.json")
    sent = send(folder, uri or local_uri(open_home()), lambda line: click.echo(line, err=True))
    click.echo(f"{sent.pushed} records sent, {sent.pending} still wait")
    if sent.pending:
        raise SmallmError(f"{sent.pending} records could not be sent: run `smallm sync` again")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(smallm completion bash)"."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(cli, {}, "smallm", "_SMALLM_COMPLETE").source())


def _tapes(given: dict[str, Any], *, tokenizer: Any = None) -> tuple[Tape, TokenTape]:
    """The corpus of the settings with its tokens: their own tokenizer's or a given one's."""
    from smallm.provenance import usable_cpus
    from smallm.tape import build_tape, tokenize_tape, tokenize_with

    settings = Settings.from_flat(given)
    tape = build_tape(settings.corpus, home=open_home(), workers=usable_cpus())
    if tokenizer is not None:
        return tape, tokenize_with(tape, tokenizer)
    ratios = [*RATIOS, settings.training.split_ratio]
    return tape, tokenize_tape(tape, settings.tokens, ratios=ratios)


def _slices(tape: Tape) -> dict[str, Slice]:
    selection, final = tape.heldout(RATIOS)
    training = {f"training {ratio:g}": tape.training(ratio) for ratio in RATIOS}
    return {**training, "selection": selection, "final": final}


def _length_histogram(tokens: TokenTape) -> dict[str, int]:
    counts = Counter(int(size).bit_length() - 1 for size in tokens.bytes)
    return {f"{2**power:,}-{2 ** (power + 1) - 1:,}": counts[power] for power in sorted(counts)}


def _save(core: Any, settings: Settings, tokens: TokenTape, folder: Path, card: str) -> None:
    from smallm.champion import save_model

    save_model(core, settings, tokens, folder, card=card)


def _model_folder(model: str) -> Path:
    if model != "champion":
        return Path(model)
    found = sorted(open_home().glob("searches/*/champion"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SmallmError(f"{open_home()}: has no champion yet: run `make search`")
    return found[-1]


def _search_folder(name: str | None, *, marker: str = "result.json") -> Path:
    home = open_home()
    if name is None:
        return newest_search(home)
    if not (home / "searches" / name / marker).exists():
        known = ", ".join(sorted(path.parent.name for path in home.glob(f"searches/*/{marker}")))
        raise SmallmError(f"{home}: has no search {name!r}; known: {known or 'none'}")
    return home / "searches" / name


def _unused(folder: Path) -> Path:
    number = 1
    while (numbered := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return numbered


def _print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
