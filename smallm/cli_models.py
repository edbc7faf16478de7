"""The commands that use models: `smallm generate`, `smallm evaluate`, `smallm compare`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.cli_corpus import RATIOS, corpus_tape
from smallm.errors import SmallmError
from smallm.home import newest_champion, open_home
from smallm.options import (
    Temperature,
    as_json,
    examples,
    messages,
    print_json,
    settings_options,
)
from smallm.settings import CorpusSettings

if TYPE_CHECKING:
    from smallm.champion import Origin
    from smallm.predictors import Decoding
    from smallm.tape import Slice, Tape

Command = Callable[..., Any]
WHOLE = "all"


@dataclass(frozen=True)
class Chosen:
    """The models that a person named, and the folders of those that are SmaLLMs."""

    names: Sequence[str]
    smallms: Mapping[str, Path]
    home: Path
    threads: int
    device: str

    def each(self) -> Iterator[Any]:
        """Loads one after another."""
        from smallm.comparison import each_model

        return each_model(
            self.names,
            folders=self.smallms,
            home=self.home,
            threads=self.threads,
            device=self.device,
        )

    def origins(self) -> dict[str, Origin]:
        """What each SmaLLM was trained and chosen on."""
        from smallm.champion import read_origin

        return {name: read_origin(folder) for name, folder in self.smallms.items()}

    def decoding(self, name: str, sampling: Mapping[str, Any]) -> Decoding:
        """How a model decodes: a fitted temperature is its own."""
        from smallm.evaluation_run import kept_temperature
        from smallm.predictors import Decoding

        values = {**sampling, "top_k": sampling["top_k"] or None}
        if values["temperature"] == Temperature.FITTED:
            values["temperature"] = kept_temperature(
                name, folder=self.smallms.get(name), home=self.home
            )
        return Decoding(**values)


def machine_options(command: Command) -> Command:
    """Gives a command `--threads` and `--device`, checked."""

    @functools.wraps(command)
    def collect(*args: Any, threads: int | None, device: str, **kwargs: Any) -> Any:
        from smallm.provenance import usable_cpus
        from smallm.training_run import usable_device

        machine = {"threads": threads or usable_cpus(), "device": usable_device(device)}
        return command(*args, machine=machine, **kwargs)

    device = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
    threads = click.option(
        "--threads", type=click.IntRange(1), help="Threads; by default all processors."
    )
    return threads(device(collect))


def model_options(command: Command) -> Command:
    """Gives a command the options that choose models; it receives them as `chosen`."""

    @functools.wraps(command)
    def collect(
        *args: Any, models: str | None, baseline: Sequence[str], machine: Any, **kwargs: Any
    ) -> Any:
        from smallm.baselines import default_models, names_in

        home = open_home()
        names = default_models() if models is None else names_in(models)
        chosen = chosen_models([*names, *baseline], home, machine, must=models is not None)
        return command(*args, chosen=chosen, **kwargs)

    more = click.option(
        "--baseline",
        multiple=True,
        metavar="NAME_OR_PATH",
        help="One more model: a hub id, a folder or a GGUF file; may be repeated.",
    )
    models = click.option(
        "--models",
        metavar="LIST",
        help="Names or folders, separated by commas. [default: champion and all baselines]",
    )
    return models(more(machine_options(collect)))


def chosen_models(
    names: Sequence[str], home: Path, machine: Mapping[str, Any], *, must: bool
) -> Chosen:
    """The models of these names; with `must`, a champion that does not exist is a SmallmError."""
    if not names:
        raise SmallmError("--models is empty: name models, separated by commas")
    smallms = {}
    for name in names:
        folder = newest_champion(home) if name == "champion" else Path(name)
        if folder is None and must:
            raise SmallmError(f"{home}: has no champion yet: run `make search`")
        if folder and _is_smallm(folder):
            smallms[name] = folder.expanduser()
            if name == "champion":
                _tell(f"champion: that of the search {folder.parent.name}")
    return Chosen(list(dict.fromkeys(names)), smallms, home, **machine)


def only_model(chosen: Chosen) -> Any:
    """The predictor of the one model that was named; SmallmError where it cannot be loaded."""
    from smallm.comparison import Absent

    (predictor,) = chosen.each()
    if isinstance(predictor, Absent):
        reason = f"{predictor.reason}; {predictor.remedy}".rstrip("; ")
        raise SmallmError(_named(chosen.names[0], reason))
    return predictor


def _is_smallm(folder: Path) -> bool:
    try:
        return (folder.expanduser() / "settings.yaml").exists()
    except (OSError, RuntimeError):  # a name that no folder can have, or "~nobody"
        return False


def decoding_options(command: Command) -> Command:
    """Gives a command the options of Decoding; it receives them as `sampling`."""

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Any:
        sampling = {name: kwargs.pop(name) for name in DECODING}
        return command(*args, sampling=sampling, **kwargs)

    for name, options in reversed(DECODING.items()):
        collect = click.option(f"--{name.replace('_', '-')}", show_default=True, **options)(collect)
    return collect


DECODING: dict[str, dict[str, Any]] = {
    "max_tokens": {"type": click.IntRange(1), "default": 40, "help": "Most tokens of a text."},
    "temperature": {
        "type": Temperature(),
        "default": 1.0,
        "help": "A number, 0 is greedy; or `fitted`: saved with a SmaLLM, or by `smallm evaluate`.",
    },
    "top_k": {
        "type": click.IntRange(0),
        "default": 50,
        "help": "Only so many of the most probable tokens; 0 is all.",
    },
    "top_p": {
        "type": click.FloatRange(0, 1, min_open=True),
        "default": 1.0,
        "help": "Only the most probable tokens that together reach this probability.",
    },
    "seed": {"type": click.IntRange(0), "default": 0, "help": "Of the random choices."},
}


@click.command(
    epilog=examples(
        'smallm generate champion --prompt "Neural networks are"',
        'smallm generate smollm2-135m --prompt "The loss" --temperature 0 --max-tokens 20',
        'smallm generate champion --prompt "The loss" --temperature fitted',
        'smallm generate champion --prompt "The loss" -n 3 --seed 7 --json',
    )
)
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True, help="Texts.")
@decoding_options
@machine_options
@as_json
def generate(
    model: str,
    prompt: str,
    count: int,
    sampling: dict[str, Any],
    machine: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue a prompt with a MODEL: `champion`, a folder, or a baseline.

    Text is printed as it is made. Each of several texts has its own seed, from --seed upwards.
    """
    from dataclasses import replace

    from smallm.next_words import check_prompt

    check_prompt(prompt)
    chosen = chosen_models([model], open_home(), machine, must=True)
    decoding = chosen.decoding(model, sampling)
    predictor = only_model(chosen)
    texts = []
    for seed in range(decoding.seed, decoding.seed + count):
        pieces: list[str] = []
        for piece in predictor.stream(prompt, replace(decoding, seed=seed)):
            if not as_json:
                click.echo(piece if pieces else prompt + piece, nl=False)
            pieces.append(piece)
        if not as_json:
            click.echo("" if pieces else prompt)
        texts.append({"seed": seed, "continuation": "".join(pieces)})
    if as_json:
        print_json({"prompt": prompt, "texts": texts})


@click.command(
    epilog=examples(
        "smallm evaluate",
        "smallm evaluate --models champion,smollm2-135m --bytes 20000",
        "smallm evaluate --models runs/models/mlp-gelu-bpe-1 --slice selection --json",
        "smallm evaluate --models smollm2-135m --source folder --path letters.txt --slice all",
        "smallm evaluate --models only-arxiv,both --source mixture --path mixture.yaml",
    )
)
@model_options
@settings_options("corpus")
@click.option(
    "--slice",
    "slice_name",
    type=click.Choice(["selection", "final", WHOLE]),
    help="Held-out part to score; `all` is the whole corpus. [default: final for the champion and "
    "for pretrained models; selection where other SmaLLMs are, which you may still choose from]",
)
@click.option(
    "--bytes",
    "most_bytes",
    type=click.IntRange(1),
    default=65_536,
    show_default=True,
    help="Score about this much of it, the same for all models.",
)
@as_json
def evaluate(
    chosen: Chosen, given: dict[str, Any], slice_name: str | None, most_bytes: int, as_json: bool
) -> None:
    """Score models on the same text: SmaLLMs, pretrained ones, and the reference models.

    The corpus is that of the first SmaLLM; with any setting of a corpus it is the one so given.
    """
    from smallm import comparison
    from smallm.baselines import CHAMPION
    from smallm.comparison_tables import evaluation_tables
    from smallm.evaluation_run import EvaluationRun

    models = chosen.each()  # a wrong name ends here, not after a corpus was built
    origins = chosen.origins()
    first = next(iter(origins.values()), None)
    if first and not given:
        given = first.settings.corpus.model_dump(mode="json", exclude_defaults=True)
    tape = corpus_tape(given)
    if slice_name is None:
        slice_name = "final" if set(origins) <= {CHAMPION} else "selection"
    _warn(tape, origins, slice_name)
    part, fitting = _parts(tape, slice_name, origins)
    text = comparison.held_out(tape, part, most_bytes=most_bytes, fitting=fitting)
    if unseen := sorted(set(tape.by_source()) - set(text.sources)):
        _tell(
            f"note: nothing of {', '.join(unseen)} is among the {len(text.texts)} documents that "
            "are scored; a larger corpus, or --slice all, has some"
        )
    with EvaluationRun(chosen.home, tell=_tell) as run:
        record = comparison.evaluate(models, text, _tell)
        for row in record["models"]:
            if row["name"] in origins:
                row["trained_on"] = list(origins[row["name"]].sources)
        record["corpus"] = {name: tape.manifest[name] for name in ("source", "digest")}
        record["folders"] = {name: str(folder) for name, folder in chosen.smallms.items()}
        if slice_name != WHOLE:
            record["own_tokens"] = _own_tokens(chosen, record, tape, text.part)
        run.finish(record)
    if as_json:
        print_json(record)
    else:
        _print(evaluation_tables(record))
        click.echo(f"page: {run.page}")
    _require_all(record["models"])


@click.command(
    epilog=examples(
        'smallm compare --prompt "Neural networks are"',
        "smallm compare --prompts mine.txt --models champion,smollm2-135m -k 10",
        'smallm compare --prompt "The loss" --temperature fitted --json | jq .models',
    )
)
@model_options
@click.option("--prompt", multiple=True, help="Text to continue; may be repeated.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="UTF-8 file with a prompt a line. [default: sentences about machine learning]",
)
@click.option(
    "-k", "k", type=click.IntRange(1), default=5, show_default=True, help="How many next words."
)
@decoding_options
@as_json
def compare(
    chosen: Chosen,
    prompt: Sequence[str],
    prompts: Path | None,
    k: int,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    """Show next words and continuations of several models beside each other."""
    from smallm import comparison
    from smallm.comparison_tables import prompt_tables
    from smallm.evaluation_run import write_page
    from smallm.next_words import check_prompt

    given = [*prompt, *(comparison.read_prompts(prompts) if prompts else [])]
    given = given or comparison.default_prompts()
    for each in given:
        check_prompt(each)
    models = comparison.compare(
        chosen.each(), given, k=k, decodings=lambda name: chosen.decoding(name, sampling)
    )
    record = {"prompts": given, "models": models}
    if as_json:
        print_json(record)
    else:
        _print(prompt_tables(record))
        click.echo(f"page: {write_page(record, chosen.home)}")
    _require_all(models)


def _parts(tape: Tape, name: str, origins: Mapping[str, Origin]) -> tuple[Slice, Slice | None]:
    """The part of the tape to score, and that on which temperatures are fitted.

    Held out is what neither the searches of the models nor, for pretrained ones, the searches
    that ship have trained on.
    """
    from smallm.tape import Slice

    if name == WHOLE:
        return Slice(WHOLE, 0, len(tape)), None
    ratios = [each.heldout_above for each in origins.values()] or RATIOS
    selection, final = tape.heldout(ratios)
    # Every choice is made on the selection slice, so temperatures are fitted there.
    return (final, selection) if name == "final" else (selection, None)


def _warn(tape: Tape, origins: Mapping[str, Origin], slice_name: str) -> None:
    """Says which SmaLLMs may have read what they are scored on."""
    for name, origin in origins.items():
        if slice_name == WHOLE and origin.corpus == tape.manifest["digest"]:
            _tell(f"note: {name} was trained on most of what it is scored on: --slice all")
        elif origin.corpus != tape.manifest["digest"] and (
            slice_name == WHOLE or not _same_order(tape, origin)
        ):
            _tell(
                f"note: {name} was trained on another corpus or another version of this one; "
                "where they overlap it may have read the text it is scored on"
            )


def _same_order(tape: Tape, origin: Origin) -> bool:
    """Whether a text that is held out here was held out from the model's training, too.

    In hash order a document's place follows from its text alone, whatever else is in a corpus: so
    it was, where the same records became the same texts.
    """
    from smallm.documents.mixture import parts

    def forms(settings: CorpusSettings) -> dict[str, tuple[Any, ...]]:
        each = [part.settings for part in parts(settings)] if settings.source == "mixture" else []
        return {
            part.source: (part.latex, part.drop, part.minimum_score) for part in each or [settings]
        }

    here = CorpusSettings.model_validate(tape.manifest["settings"])
    there = origin.settings.corpus
    try:
        ours, theirs = forms(here), forms(there)
    except SmallmError:  # the file of the model's mixture is gone
        return False
    return (
        here.order == there.order == "hash"
        and origin.code == tape.manifest["code"]
        and all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())
    )


def _own_tokens(
    chosen: Chosen, record: Mapping[str, Any], tape: Tape, part: Slice
) -> dict[str, Any]:
    """Each SmaLLM that was scored, beside the reference models in its own tokens."""
    from smallm import comparison
    from smallm.champion import load_core, read_origin
    from smallm.references import counted_note
    from smallm.token_tape import tokenize_with

    scored = [row["name"] for row in record["models"] if "reason" not in row]
    tables = {}
    for name in filter(chosen.smallms.get, scored):
        core, _, tokenizer = load_core(chosen.smallms[name])
        tokens = tokenize_with(tape, tokenizer)
        settings = read_origin(chosen.smallms[name]).settings
        if note := counted_note(tokens, tape.training(settings.training.split_ratio)):
            _tell(f"note: the unigram and the 5-gram beside {name} are {note}")
        tables[name] = comparison.own_tokens(core, tokens, part, settings=settings)
    return tables


def _require_all(models: Sequence[Mapping[str, Any]]) -> None:
    """Ends with one line when a model failed; the others' results are shown by then."""
    failed = [_named(each["name"], each["reason"]) for each in models if each.get("failed")]
    failed += [
        _named(each["name"], answer["error"])
        for each in models
        for answer in each.get("prompts", ())
        if answer["error"]
    ]
    if failed:
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        raise SmallmError(f"{failed[0]}{more}")


def _named(name: str, reason: str) -> str:
    """What is wrong with a model, after its name, once."""
    return reason if reason.startswith(name) else f"{name}: {reason}"


def _tell(line: str) -> None:
    messages().print(line, markup=False)


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
