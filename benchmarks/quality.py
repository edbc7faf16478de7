"""Bits per byte of SmaLLM v2 after half an hour of training: `python -m benchmarks.quality`.

The text is that of the installed libraries, which set-up brings. By the commands that a person
would use, a transformer trains for so many minutes and a perceptron for one, each with the tokens
that its measured speed allows, and both are scored beside SmolLM2-135M on the same bytes of the
final slice, on which nothing was chosen. The transformer's config is the best known one in the
space `full`, with larger batches; what a search crowned is given by `--config` (searches are short
and choose what learns fast), and brings the text of that search, for both. Exits with 1 when the
goal is not reached, which is one for the text of the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smallm.files import write_json
from smallm.settings import Settings, read_yaml

GOAL_BITS = 1.35
FIRST = 40  # steps, which tell the speed roughly
TRIED = 0.1  # of the time, at that speed: a machine that has warmed up is slower
SPEED = ["--evaluate-at", "0.2,1.0"]  # of the last four fifths of these runs
SCORED = 65_536  # bytes
BATCH_SIZE = 1024  # unless a config says otherwise
EVALUATED: dict[str, Any] = {"evaluate-at": "0.25,0.5,0.75,1.0"}
TRANSFORMER: dict[str, Any] = {
    "architecture": "transformer",
    "preset": "small",
    "bigrams": 16384,
    "optimizer": "muon",
    "batch-size": 4096,
    "warmup": 0.0,
    "dropout": 0.1,
    **EVALUATED,
}
PERCEPTRON: dict[str, Any] = {"architecture": "mlp", "evaluate-at": 1.0}
SHARED: dict[str, Any] = {"seeds": 42, "split-ratio": 0.9, "evaluation-bytes": 131_072}


def main() -> None:
    """Trains both, scores all, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for the transformer")
    parser.add_argument("--config", type=Path, help="settings.yaml in the folder of a champion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--home", type=Path, help="keeps corpus and models")
    options = parser.parse_args()
    chosen = read_yaml(options.config) if options.config else {}
    if options.config and chosen.get("architecture") != "transformer":
        parser.error(f"--config {options.config}: is of no transformer")
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        command = flags({**SHARED, **TRANSFORMER})
        size = TRANSFORMER["batch-size"]
        if options.config:
            command = ["--config", str(options.config), *flags({**SHARED, **EVALUATED})]
            size = chosen.get("batch_size", BATCH_SIZE)
        trained(home, command, "transformer", options.minutes, options.threads, size)
        command = [*on_text_of(chosen, Path(folder)), *flags({**SHARED, **PERCEPTRON})]
        trained(home, command, "perceptron", 1.0, options.threads, BATCH_SIZE)
        models = f"{home / 'transformer'},{home / 'perceptron'},smollm2-135m"
        scored = ["--models", models, "--slice", "final", "--bytes", str(SCORED)]
        record = smallm(home, "evaluate", *scored, "--json")
    sys.exit(report(json.loads(record)))


def trained(
    home: Path, command: list[str], name: str, minutes: float, threads: int, batch_size: int
) -> None:
    """Trains with the tokens that the speed of a tenth of the time allows in all of it."""
    command = [*command, "--threads", str(threads), "--json"]
    speed = speed_of(home, command, FIRST * batch_size)
    speed = speed_of(home, command, round(speed * 60 * minutes * TRIED))
    budget = round(speed * 60 * minutes)
    print(f"{name}: {speed:,.0f} tokens/s, {budget:,} tokens in {minutes:g} min", flush=True)
    tokens = ["--training-tokens", str(budget)]
    ended = smallm(home, "train", *command, *tokens, "--output", str(home / name))
    minutes = json.loads(ended)["seconds"] / 60
    print(f"{name}: trained for {minutes:.1f} min", flush=True)


def speed_of(home: Path, command: list[str], tokens: int) -> float:
    """Tokens per second of a run of so many tokens, whose model is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--training-tokens", str(tokens), *SPEED, "--output", f"{folder}/it"]
        return json.loads(smallm(home, "train", *command, *options))["tokens_per_second"]


def on_text_of(settings: dict[str, Any], folder: Path) -> list[str]:
    """The options for a corpus as these settings have it; their file is written into a folder."""
    corpus = Settings.from_flat(settings).corpus.model_dump(mode="json", exclude_defaults=True)
    file = folder / "corpus.yaml"
    write_json(file, corpus)  # JSON is YAML
    return ["--config", str(file)]


def flags(settings: dict[str, Any]) -> list[str]:
    """As the command line has them."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def smallm(home: Path, *arguments: str) -> str:
    """What a command prints on standard output; what it tells on the way is seen."""
    environment = {**os.environ, "SMALLM_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "smallm.cli", *arguments]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def report(record: dict[str, Any]) -> int:
    """Prints bits per byte of all, and the goal; gives the exit code."""
    print(f"\n{record['bytes']:,} bytes of the final slice\n{'model':<16} bits per byte")
    bits = {}
    for row in record["models"]:
        name = Path(row["name"]).name
        if "reason" in row:
            print(f"{name:<16} is not here: {row['reason']}")
            continue
        found = bits[name] = row["bits_per_byte"]
        print(f"{name:<16} {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
    ratio = GOAL_BITS / bits["transformer"]["value"]
    print(f"ratio goal_bits_per_byte_vs_transformer {ratio:.3f} goal 1")
    return int(ratio < 1)


if __name__ == "__main__":
    main()
