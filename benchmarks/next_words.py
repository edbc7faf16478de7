"""Time of a certified top 5 of next words: `python -m benchmarks.next_words`.

SmolLM2-135M after hand-written prompts, and a SmaLLM of the default shape, trained briefly on
invented text, after the beginnings of held-out texts. Exits with 1 when a goal is not reached.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.training import tokenized
from smallm.models.huggingface import wrap
from smallm.next_words import word_positions
from smallm.predictors import Predictor
from smallm.predictors.causal import Causal
from smallm.predictors.loading import load_predictor
from smallm.settings import Settings
from smallm.training import Training

TOP = 5
THREADS = 1  # two that share their cores with other programs wait for each other
CERTIFIED = 0.9  # share of prompts that must be
GOALS = {"smollm2-135m": 2.0, "smallm": 0.05}  # seconds, median
PROMPTS = (
    "Neural networks are",
    "The gradient of the loss with respect to",
    "In this paper, we propose a",
    "A tensor is a generalization of",
    "We train the model on",
    "The learning rate should be",
    "Overfitting happens when the model",
    "Each layer of the network",
    "The results show that",
    "Returns the mean of the",
    "This function takes a list of",
    "The capital of France is",
    "Once upon a time, there was a",
    "She opened the door and",
    "I would like to",
    "The best way to learn a language is",
    "It was a cold and",
    "Scientists have discovered that",
    "The price of bread",
    "Three plus four is",
)


def main() -> None:
    """Measures both models, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--home", type=Path, help="keeps the converted SmolLM2 for the next time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'model':<14} {'median s':>9} {'slowest s':>9} {'certified':>9}")
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder) / "home"
        baseline = load_predictor("smollm2-135m", home=home, threads=options.threads)
        found = {"smollm2-135m": measured(baseline, PROMPTS)}
        predictor, prompts = trained(Path(folder), options.threads)
        found["smallm"] = measured(predictor, prompts)
    sys.exit(report(found))


def measured(predictor: Predictor, prompts: Sequence[str]) -> tuple[float, float]:
    """Median seconds of a prompt, and the share of prompts that were certified."""
    predictor.next_words(prompts[0], k=TOP)  # warms up
    seconds, certified = [], []
    for prompt in prompts:
        start = time.perf_counter()
        certified.append(predictor.next_words(prompt, k=TOP).certified)
        seconds.append(time.perf_counter() - start)
    median, share = statistics.median(seconds), statistics.fmean(certified)
    print(f"{predictor.name:<14} {median:>9.3f} {max(seconds):>9.3f} {share:>9.0%}")
    return median, share


def report(found: dict[str, tuple[float, float]]) -> int:
    """Prints goals; gives the exit code."""
    ratios = {
        **{f"{name}_seconds": GOALS[name] / median for name, (median, _) in found.items()},
        **{f"{name}_certified": share / CERTIFIED for name, (_, share) in found.items()},
    }
    for name, value in ratios.items():
        print(f"ratio {name} {value:.3f} goal 1")
    return int(min(ratios.values()) < 1)


def trained(folder: Path, threads: int, count: int = 20) -> tuple[Causal, list[str]]:
    """A SmaLLM of the default shape, and different prompts of held-out text."""
    tokens = tokenized(folder)
    selection, _ = tokens.tape.heldout([0.9])
    settings = Settings().replace(
        seeds=[42], training_tokens=400_000, evaluate_at=[1.0], evaluation_bytes=10_000
    )
    training = Training(settings, tokens, selection=selection, threads=threads)
    list(training)
    model = wrap(training.trained(42), settings.model, tokens.tokenizer)
    texts = [tokens.tape.text(number) for number in range(selection.first, selection.last)]
    prompts = [context for context, _ in word_positions(texts, count)]
    return Causal("smallm", model, tokens.tokenizer.huggingface()), prompts


if __name__ == "__main__":
    main()
