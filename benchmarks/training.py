"""Training speed beside the obvious way, measured in turns: `python -m benchmarks.training`.

Ours: two concurrent trials of one thread each. The obvious way: one process with two threads,
fp32, an untied full output layer, one seed after another. Both train the same window, width,
vocabulary and batch size on the same text. Exits with 1 when a goal is not reached.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from smallm.settings import CorpusSettings, Settings
from smallm.tape import Tape
from smallm.tape_building import build_tape
from smallm.token_tape import TokenTape, tokenize_tape
from smallm.training import Training

TRIALS = 2
WARM_SHARE = 0.25  # of a trial, not counted
WARM_STEPS = 3  # of the obvious way, not counted
GOALS = {"tokens_per_second_vs_obvious": 3.0, "tokens_per_second_per_25000": 1.0}

together: Barrier


def main() -> None:
    """Builds a text, measures both ways in turns, prints the figures."""
    options = parsed()
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(TRIALS, context, meet, (context.Barrier(TRIALS),)) as two,
        ProcessPoolExecutor(1, context) as one,
    ):
        tokens = tokenized(Path(folder))
        place = (tokens.tape.folder, tokens.folder, options.seeds, options.seconds)
        rounds = []
        print(f"{'round':>5} {'ours, tokens/s':>24} {'obvious way':>12} {'ratio':>6}")
        for number in range(1, options.rounds + 1):
            parts = list(two.map(ours, *zip(*[place] * TRIALS, strict=True)))
            other = one.submit(obvious, *place).result()
            rounds.append((sum(parts), other))
            shown = f"{sum(parts):,.0f} ({' + '.join(f'{part:,.0f}' for part in parts)})"
            print(f"{number:>5} {shown:>24} {other:>12,.0f} {sum(parts) / other:>6.2f}")
    sys.exit(report(rounds))


def report(rounds: list[tuple[float, float]]) -> int:
    """Prints medians and goals; gives the exit code.

    The obvious way counts with its best round: anything else that runs slows its two threads most.
    """
    own, other = zip(*rounds, strict=True)
    print(f"median {statistics.median(own):>23,.0f} {statistics.median(other):>12,.0f}")
    print(f"best {max(own):>25,.0f} {max(other):>12,.0f}")
    found = {
        "tokens_per_second_vs_obvious": statistics.median(own) / max(other),
        "tokens_per_second_per_25000": statistics.median(own) / 25_000,
    }
    for name, value in found.items():
        print(f"ratio {name} {value:.3f} goal {GOALS[name]:g}")
    return int(any(found[name] < goal for name, goal in GOALS.items()))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, about")
    parser.add_argument("--seeds", type=int, default=3, help="replicates of each trial")
    return parser.parse_args()


def tokenized(folder: Path) -> TokenTape:
    """Some MB of invented words, Zipf distributed: enough to fill a vocabulary of 4,096."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, 20_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(words, (4_000, 120), p=weights / weights.sum())
    lines = [json.dumps({"text": " ".join(row)}) for row in drawn]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = CorpusSettings(source="folder", path=folder / "text.jsonl")
    tokens = tokenize_tape(
        build_tape(corpus, home=folder), Settings().tokens, ratios=[Settings().training.split_ratio]
    )
    assert tokens.vocabulary == Settings().tokens.vocabulary
    return tokens


def meet(barrier: Barrier) -> None:
    """Lets the trials start their measurement at one moment."""
    global together
    together = barrier


def ours(tape: Path, folder: Path, seeds: int, seconds: float) -> float:
    """Tokens per second of one trial on one thread, all its replicates together."""
    tokens = TokenTape(Tape(tape), folder)
    selection, _ = tokens.tape.heldout([0.9])
    settings = Settings().replace(
        seeds=list(range(42, 42 + seeds)),
        training_tokens=int(seconds * 15_000 / seeds),
        evaluate_at=[WARM_SHARE, 1.0],
        evaluation_bytes=10_000,
    )
    parts = iter(Training(settings, tokens, selection=selection, threads=1))
    next(parts)
    together.wait()
    return next(parts).tokens_per_second


def obvious(tape: Path, folder: Path, seeds: int, seconds: float) -> float:
    """Tokens per second of the loop that one would write first, on two threads."""
    torch.set_num_threads(2)
    ids = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    return statistics.fmean(
        obvious_seed(ids, Settings(), seed=seed, seconds=seconds / seeds) for seed in range(seeds)
    )


def obvious_seed(
    ids: NDArray[np.uint16], settings: Settings, *, seed: int, seconds: float
) -> float:
    """Tokens per second of one seed, after a few steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape, batch = settings.model, settings.training.batch_size
    vocabulary = settings.tokens.vocabulary
    model = nn.Sequential(
        nn.Embedding(vocabulary, shape.embedding),
        nn.Flatten(),
        nn.Linear(shape.window * shape.embedding, shape.hidden),
        nn.ReLU(),
        nn.Linear(shape.hidden, vocabulary),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.training.learning_rate)

    def step() -> None:
        at = rng.integers(shape.window, len(ids), batch)
        windows = torch.from_numpy(ids[at[:, None] - np.arange(shape.window, 0, -1)].astype(int))
        loss = F.cross_entropy(model(windows), torch.from_numpy(ids[at].astype(int)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.training.clip)
        optimizer.step()

    for _ in range(WARM_STEPS):
        step()
    steps, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not steps:
        step()
        steps += 1
    return steps * batch / spent


if __name__ == "__main__":
    main()
