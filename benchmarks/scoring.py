"""Scoring speed beside a bare forward pass, measured in turns: `python -m benchmarks.scoring`.

Ours: `score` of SmolLM2-135M from texts to bits per byte, hits and confidence included. Bare:
the same model on the same tokens in the same batches, already made, its logits thrown away.
Exits with 1 when the goal is not reached.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from smallm.documents import Dropped, packages
from smallm.errors import SmallmError
from smallm.predictors.causal import Causal, batches
from smallm.predictors.loading import load_predictor
from smallm.provenance import usable_cpus
from smallm.settings import CorpusSettings

MODEL = "smollm2-135m"
GOAL = 0.90
LENGTHS = (150, 600, 1200, 2400)  # characters of the texts, in turns


def main() -> None:
    """Loads the model, measures both ways in turns, prints the figures."""
    options = parsed()
    try:
        with tempfile.TemporaryDirectory() as home:
            loaded = load_predictor(MODEL, home=options.home or Path(home), threads=usable_cpus())
    except SmallmError as error:
        sys.exit(f"error: {error}")
    assert isinstance(loaded, Causal)
    texts = prose(options.characters)
    inputs = [ids for ids, _ in prepared(loaded, texts)]
    tokens = sum(count for _, count in prepared(loaded, texts))
    bare(loaded, inputs[:1])
    rounds = []
    print(f"{len(texts)} texts, {tokens:,} tokens, {torch.get_num_threads()} threads")
    print(f"{'round':>6} {'score, tokens/s':>16} {'bare forward':>14} {'ratio':>6}")
    for number in range(1, options.rounds + 1):
        spent = {"score": 0.0, "bare": 0.0}
        for way in ("score", "bare") if number % 2 else ("bare", "score"):
            start = time.perf_counter()
            _ = loaded.score(texts) if way == "score" else bare(loaded, inputs)
            spent[way] = time.perf_counter() - start
        own, other = tokens / spent["score"], tokens / spent["bare"]
        rounds.append(own / other)
        print(f"{number:>6} {own:>16,.0f} {other:>14,.0f} {own / other:>6.3f}", flush=True)
    ratio = statistics.median(rounds)
    print(f"ratio score_vs_bare_forward {ratio:.3f} goal {GOAL:g}")
    sys.exit(int(ratio < GOAL))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--characters", type=int, default=12_000)
    parser.add_argument("--home", type=Path, help="keeps the converted model for the next time")
    return parser.parse_args()


def prose(characters: int) -> list[str]:
    """Texts of several lengths from the documentation of installed libraries."""
    documents = packages.read(CorpusSettings(), Dropped(), workers=1)
    texts: list[str] = []
    while sum(map(len, texts)) < characters:
        text = next(documents).text
        wanted = LENGTHS[len(texts) % len(LENGTHS)]
        if len(text) >= wanted:
            texts.append(text[:wanted])
    return texts


def prepared(predictor: Causal, texts: list[str]) -> list[tuple[Tensor, int]]:
    """The padded inputs of every batch, with the number of tokens predicted in it."""
    return [(each.inputs, int(each.predicted.sum())) for each in batches(predictor.windows(texts))]


@torch.no_grad()
def bare(predictor: Causal, inputs: list[Tensor]) -> None:
    """The model alone."""
    for ids in inputs:
        predictor.model(input_ids=ids, use_cache=False)


if __name__ == "__main__":
    main()
