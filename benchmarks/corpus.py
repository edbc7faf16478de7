"""Building a tape: its speed and its memory, on a dump made for it: `python -m benchmarks.corpus`.

Speed: everything from a dump file to tokens (reading, duplicates and near duplicates, order,
tokens), beside `tokenizers.encode_batch` alone on the same texts, already in memory, in turns.
Memory: resident memory of all processes together while a large dump is built, against 1 GB for
10 GB of dump: the growth between two sizes is carried on to 10 GB.
Exits with 1 when a goal is not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from smallm import duplicates
from smallm.documents import Dropped, packages
from smallm.provenance import usable_cpus
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.tape import Slice, Tape
from smallm.tape_building import build_tape
from smallm.token_tape import tokenize_with
from smallm.tokens import BytePairTokenizer, train_tokenizer

SPEED_GOAL, MEMORY_GOAL = 0.90, 1.0
VOCABULARY = 4096
SENTENCES = (4, 12)  # of a document, about as long as abstracts are
LARGE, ALLOWED = 10 * 10**9, 10**9  # bytes of the dump, bytes resident
BUILD = """
import sys
from smallm.cli import main
sys.argv[0] = "smallm"
if __name__ == "__main__":
    main()
"""


def main() -> None:
    """Makes the dumps, measures, prints the figures."""
    options = parsed()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sentences = prose_sentences()
        reached = [speed(folder, sentences, options.megabytes * 10**6, options.rounds)]
        reached.append(memory(folder, sentences, options.gigabytes * 10**9))
    sys.exit(int(not all(reached)))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=60, help="of the dump for speed")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the dump for memory")
    parser.add_argument("--folder", type=Path, help="where dumps and tapes are kept meanwhile")
    return parser.parse_args()


def prose_sentences() -> list[str]:
    """Sentences from the documentation of installed libraries."""
    documents = packages.read(CorpusSettings(), Dropped(), workers=usable_cpus())
    text = " ".join(document.text for document in documents)
    return sorted({each.strip() for each in text.split(". ") if 20 < len(each) < 400})


def write_dump(path: Path, sentences: list[str], size: int, seed: int) -> None:
    """A snapshot of papers whose abstracts are random sentences, so many bytes long."""
    rng = random.Random(seed)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            chosen = rng.choices(sentences, k=rng.randint(*SENTENCES))
            record = {"title": chosen[0][:60], "categories": "cs.LG", "abstract": ". ".join(chosen)}
            written += file.write(json.dumps(record, ensure_ascii=False) + "\n")


def speed(folder: Path, sentences: list[str], size: int, rounds: int) -> bool:
    """Both ways in turns; whether the goal is reached."""
    write_dump(folder / "arxiv.json", sentences, size, seed=0)
    settings = CorpusSettings(source="arxiv", path=folder / "arxiv.json")
    first = build_tape(settings, home=folder / "first", workers=usable_cpus())
    texts = list(first.texts(Slice("all", 0, len(first))))
    tokenizer = train_tokenizer(texts[: len(texts) // 4], TokenizerSettings(vocabulary=VOCABULARY))
    assert isinstance(tokenizer, BytePairTokenizer)
    megabytes = first.manifest["bytes"] / 1e6
    print(f"{len(texts):,} documents, {megabytes:.1f} MB of text, {usable_cpus()} processors")
    near_duplicate_cost(texts, megabytes)
    print(f"{'round':>6} {'build, MB/s':>12} {'encode_batch, MB/s':>19} {'ratio':>6}")
    ratios = []
    for number in range(1, rounds + 1):
        spent = {}
        for way in ("build", "encode") if number % 2 else ("encode", "build"):
            start = time.perf_counter()
            if way == "build":
                home = folder / f"home{number}"
                tape = build_tape(settings, home=home, workers=usable_cpus())
                tokenize_with(tape, tokenizer, workers=usable_cpus())
            else:
                tokenizer.backend.encode_batch(texts, add_special_tokens=False)
            spent[way] = time.perf_counter() - start
        built, encoded = megabytes / spent["build"], megabytes / spent["encode"]
        ratios.append(built / encoded)
        print(f"{number:>6} {built:>12.2f} {encoded:>19.2f} {ratios[-1]:>6.2f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"ratio build_vs_encode_batch {ratio:.2f} goal {SPEED_GOAL:g}")
    return ratio >= SPEED_GOAL


def near_duplicate_cost(texts: list[str], megabytes: float) -> None:
    """Says what finding near duplicates costs, in seconds of one processor."""
    start = time.perf_counter()
    rows = duplicates.signatures(texts)
    bands = duplicates.band_hashes(rows, threshold=0.75)
    signed = time.perf_counter()
    pairs = (pair for band in bands.T for pair in duplicates.candidates(band))
    duplicates.followers(pairs, lambda places: rows[places], threshold=0.75)
    compared = time.perf_counter()
    print(
        f"near duplicates: {1000 * (signed - start) / megabytes:.0f} ms of one processor a MB for "
        f"signatures, {1000 * (compared - signed) / megabytes:.0f} ms for comparing"
    )


def memory(folder: Path, sentences: list[str], size: float) -> bool:
    """The largest resident memory at a quarter of the size and at all of it, carried on."""
    print(f"{'dump, GB':>9} {'documents':>11} {'seconds':>8} {'resident, MB':>13}")
    peaks, sizes = [], []
    for number, part in enumerate((size / 4, size)):
        path = folder / f"large{number}.json"
        write_dump(path, sentences, int(part), seed=1 + number)
        start = time.perf_counter()
        peak = peak_of_build(path, folder / f"large-home{number}")
        spent = time.perf_counter() - start
        (built,) = (folder / f"large-home{number}" / "tapes").iterdir()
        sizes.append(path.stat().st_size)
        peaks.append(peak)
        shown = f"{sizes[-1] / 1e9:>9.2f} {len(Tape(built)):>11,}"
        print(f"{shown} {spent:>8.0f} {peak / 1e6:>13.0f}", flush=True)
    slope = max(0.0, (peaks[1] - peaks[0]) / (sizes[1] - sizes[0]))
    expected = peaks[1] + slope * (LARGE - sizes[1])
    print(f"at {LARGE / 1e9:g} GB, by this growth: {expected / 1e6:.0f} MB resident")
    print(f"ratio allowed_vs_resident_memory {ALLOWED / expected:.2f} goal {MEMORY_GOAL:g}")
    return ALLOWED / expected >= MEMORY_GOAL


def peak_of_build(path: Path, home: Path) -> int:
    """Resident bytes of the program and its workers, at most, while it builds a corpus."""
    script = path.with_suffix(".py")
    script.write_text(BUILD, encoding="utf-8")
    options = ["corpus", "build", "--source", "arxiv", "--path", str(path)]
    with subprocess.Popen(
        [sys.executable, str(script), *options],
        env={**os.environ, "SMALLM_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    ) as run:
        program = psutil.Process(run.pid)
        peak = 0
        while run.poll() is None:
            peak = max(peak, resident(program))
            time.sleep(0.1)
    if run.returncode:
        sys.exit(f"error: the build ended with {run.returncode}")
    return peak


def resident(program: psutil.Process) -> int:
    """Resident bytes of a process and its children; pages that they share count once."""
    total = 0
    for process in [program, *program.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total


if __name__ == "__main__":
    main()
