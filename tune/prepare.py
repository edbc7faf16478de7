"""The tape of a corpus, built by a Ray cluster: dump files in a folder or bucket in, shards out.

    python tune/prepare.py --source reddit --path s3://bucket/dumps

It is the tape that `smallm corpus build` would build, with the same digest and name, in the home
(SMALLM_HOME) that all machines share, or in the storage that is given by --storage: a search with
the same settings finds it there. Each file is read by one task; all machines clean what is read. Of
the documents only hashes, sizes, names of sources and pairs that may be near meet in the driver.
"""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import ray
import ray.data

from smallm import duplicates
from smallm.cli_corpus import build_lines
from smallm.documents import Dropped, mixture
from smallm.documents.tasks import Task, tasks
from smallm.errors import SmallmError, in_one_line
from smallm.files import whole_folder
from smallm.hashes import HASH, distinct, hexadecimal, places_of, rows_of, tape_digest
from smallm.home import open_home
from smallm.options import messages, run_program, settings_options, storage_option
from smallm.provenance import code_digest, require_same_code, usable_cpus
from smallm.settings import CorpusSettings, Settings
from smallm.spool import batches, prepared
from smallm.storage import LAST, Storage, kept_in
from smallm.tape import Tape
from smallm.tape_building import no_text, tape_folder, weighted, write_manifest, write_shard

PARTITIONS = 64  # of the bands' hashes: documents that may be near meet in one of them
NUMBER = 2**32  # documents that a task may have

Block = dict[str, Any]


class Stored(NamedTuple):
    """Where in a storage the tape is kept."""

    uri: str
    name: str


def read_task(block: Block, *, digest: str) -> Iterator[Block]:
    """The raw documents of a task in runs, and last what could not be read."""
    require_same_code(digest)
    task: Task = pickle.loads(block["task"][0])
    first = int(block["number"][0]) * NUMBER
    dropped = Dropped()
    for items in batches(task.read(dropped)):
        yield {"arrival": [first], "items": [pickle.dumps(items)], "dropped": [b""]}
        first += len(items)
    named = pickle.dumps(task.named(dropped))
    yield {"arrival": [first], "items": [pickle.dumps([])], "dropped": [named]}


def make_documents(block: Block, *, threshold: float) -> Iterator[Block]:
    """The documents of each run, cleaned, hashed and signed, and a row with what was dropped."""
    for first, items, lost in zip(block["arrival"], block["items"], block["dropped"], strict=True):
        made = prepared(pickle.loads(items), threshold)
        if lost:
            made.dropped.merge(pickle.loads(lost))
        ends = np.cumsum(made.sizes)
        blank = 1 if made.dropped.counts or made.dropped.choices else 0
        yield {
            "hash": [row.tobytes() for row in made.hashes] + [b""] * blank,
            "arrival": first + np.arange(len(ends) + blank),
            "id": [*made.ids, *[""] * blank],
            "source": [*made.sources, *[""] * blank],
            "text": [
                *(made.text[e - s : e] for e, s in zip(ends, made.sizes, strict=True)),
                *[b""] * blank,
            ],
            "words": np.append(made.words, [0] * blank),
            "signature": _padded(made.signatures, blank),
            "bands": _padded(made.bands, blank),
            "dropped": [b""] * len(ends) + [pickle.dumps(made.dropped)] * blank,
        }


def _padded(rows: Any, blank: int) -> Any:
    return np.concatenate([rows, np.zeros((blank, rows.shape[1]), rows.dtype)])


def small_columns(block: Block) -> Block:
    """What the driver must know of each document."""
    kept = {name: block[name] for name in ("hash", "arrival", "source", "dropped")}
    return {**kept, "bytes": np.array([len(text) for text in block["text"]])}


def band_rows(block: Block) -> Block:
    """A row for each band of each document."""
    bands = block["bands"].shape[1]
    keys = block["bands"] + np.arange(bands, dtype=np.uint64) * duplicates.MULTIPLIER
    return {
        "partition": (keys % PARTITIONS).ravel().astype(np.int64),
        "key": keys.ravel().view(np.int64),
        "hash": np.repeat(block["hash"], bands),
    }


def near_pairs(group: Block) -> Block:
    """The pairs of documents to compare, as the local build finds them, by their hashes."""
    hashes, keys = group["hash"], group["key"]
    order = np.lexsort((hashes, keys))
    hashes, keys = hashes[order], keys[order]
    same = (hashes[1:] == hashes[:-1]) & (keys[1:] == keys[:-1])
    once = np.concatenate([[True], ~same])
    pairs = list(duplicates.candidates(keys[once]))
    if not pairs:
        return {"one": hashes[:0], "two": hashes[:0]}
    one, two = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return {"one": hashes[once][one], "two": hashes[once][two]}


def write_block(block: Block, *, folder: str, stored: Stored | None) -> Block:
    """Writes a block of sorted documents as a shard of the tape, in the storage if there is one."""
    if not len(block["hash"]):
        return {"shard": [], "hashes": []}
    hashes = _numbers(block["hash"])
    columns = {
        "id": block["id"],
        "source": block["source"],
        "hash": [hexadecimal(row) for row in hashes],
        "place": places_of(hashes),
        "bytes": [len(text) for text in block["text"]],
        "words": block["words"],
        "text": block["text"],
    }
    with _place(folder, stored) as place:
        shard = write_shard([columns], place, name=hexadecimal(hashes[0]))
    return {"shard": [pickle.dumps(shard)], "hashes": [hashes.tobytes()]}


@contextmanager
def _place(folder: str, stored: Stored | None) -> Iterator[Path]:
    """Where this machine writes: a folder that all share, or one of its own that is then stored."""
    if stored is None:
        yield Path(folder)
        return
    storage = Storage(stored.uri)
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        for path in Path(temporary).iterdir():
            storage.keep_file(path, f"{stored.name}/{path.name}")


def build(
    settings: CorpusSettings, home: Path, storage: Storage | None = None
) -> tuple[Tape, bool]:
    """The tape of a corpus, and whether it had to be built, by the cluster."""
    if settings.order != "hash" or settings.max_documents is not None:
        raise SmallmError(
            "a cluster builds tapes in hash order and of all documents: use `smallm corpus build` "
            "with --order stratified or --max-documents"
        )
    folder, identity = tape_folder(settings, home)
    with kept_in(storage, folder, home):
        missing = not (folder / LAST).exists()
        if missing and storage:
            _build_in(storage, settings, identity, folder, folder.relative_to(home).as_posix())
        elif missing:
            with whole_folder(folder) as temporary:
                _build(settings, identity, temporary, None)
    return Tape(folder), missing


def _build_in(
    storage: Storage, settings: CorpusSettings, identity: dict[str, Any], folder: Path, name: str
) -> None:
    """Builds a tape in the storage, where all machines write, and brings it."""
    with tempfile.TemporaryDirectory() as temporary:
        _build(settings, identity, Path(temporary), Stored(storage.uri, name))
        storage.keep_file(Path(temporary) / LAST, f"{name}/{LAST}")
    storage.fetch(name, folder)


def _build(
    settings: CorpusSettings, identity: dict[str, Any], folder: Path, stored: Stored | None
) -> None:
    start, threshold = time.perf_counter(), settings.near_duplicate_threshold
    dropped = Dropped()
    given = [
        {"number": number, "task": pickle.dumps(task)}
        for number, task in enumerate(tasks(settings, dropped))
    ]
    if not given:
        raise no_text(settings, dropped)
    documents = (
        ray.data.from_items(given, override_num_blocks=len(given))
        # With another share of a processor the two steps stay apart, so that all machines clean
        # what one of them reads: a dump is often a single file.
        .map_batches(read_task, batch_size=1, num_cpus=0.5, fn_kwargs={"digest": code_digest()})
        .map_batches(make_documents, batch_size=1, fn_kwargs={"threshold": threshold})
        .materialize()
    )
    hashes, arrivals, sizes, sources = _known(documents, dropped)
    dropped.check()
    if not len(hashes):
        raise no_text(settings, dropped)
    order = distinct(hashes)
    near = _near(documents, hashes[order], threshold)
    rows = np.delete(order, near)
    removed = {"exact": len(hashes) - len(order), "near": len(near)}
    if weights := mixture.weights(settings):
        members = {name: sources[rows] == name for name in weights}
        rows = rows[weighted(hashes[rows], sizes[rows], members, weights, dropped)]
    kept = ray.put(np.sort(arrivals[rows]))
    written = (
        documents.map_batches(_kept, fn_kwargs={"kept": kept})
        .sort("hash")
        .map_batches(
            write_block, batch_size=None, fn_kwargs={"folder": str(folder), "stored": stored}
        )
        .take_all()
    )
    shards = [pickle.loads(row["shard"]) for row in written]
    parts = dict(zip((shard["name"] for shard in shards), written, strict=True))
    write_manifest(
        folder,
        identity,
        sorted(shards, key=lambda shard: str(shard["name"])),
        digest=tape_digest(np.frombuffer(parts[name]["hashes"], HASH) for name in sorted(parts)),
        removed=removed,
        dropped=dropped,
        seconds=time.perf_counter() - start,
    )


def _known(documents: ray.data.Dataset, dropped: Dropped) -> tuple[Any, Any, Any, Any]:
    """Hashes, arrivals, bytes and sources of all documents in the order of the local build."""
    hashes, arrivals, sizes, sources = [], [], [], []
    for block in documents.map_batches(small_columns).iter_batches(batch_size=None):
        for lost in filter(None, block["dropped"]):
            dropped.merge(pickle.loads(lost))
        real = block["hash"] != b""
        hashes.append(_numbers(block["hash"][real]))
        arrivals.append(block["arrival"][real])
        sizes.append(block["bytes"][real])
        sources.append(block["source"][real])
    order = np.argsort(np.concatenate(arrivals))
    columns = (np.concatenate(each)[order] for each in (hashes, arrivals, sizes, sources))
    return tuple(columns)  # type: ignore[return-value]


def _near(documents: ray.data.Dataset, ranked: Any, threshold: float) -> Any:
    """Of the distinct documents, in hash order, those that are near an earlier one."""
    found = (
        documents.map_batches(_real)
        .map_batches(band_rows)
        .groupby("partition")
        .map_groups(near_pairs, batch_format="numpy")
        .to_pandas()
    )
    if not len(found):
        return np.empty(0, np.int64)
    one, two = (rows_of(_numbers(found[name].to_numpy()), ranked) for name in ("one", "two"))
    needed = np.unique(np.concatenate([one, two]))
    wanted = ray.put(ranked[needed])
    signatures = np.zeros((len(needed), duplicates.PERMUTATIONS), np.uint32)
    signed = documents.map_batches(_signed, fn_kwargs={"wanted": wanted})
    for block in signed.iter_batches(batch_size=None):
        if len(block["hash"]):
            signatures[rows_of(_numbers(block["hash"]), ranked[needed])] = block["signature"]
    return duplicates.followers(
        [(np.minimum(one, two), np.maximum(one, two))],
        lambda rows: signatures[np.searchsorted(needed, rows)],
        threshold=threshold,
    )


def _real(block: Block) -> Block:
    return _selected(block, block["hash"] != b"")


def _kept(block: Block, *, kept: ray.ObjectRef) -> Block:
    arrivals = ray.get(kept)
    places = np.searchsorted(arrivals, block["arrival"])
    places[places == len(arrivals)] = 0
    chosen = (arrivals[places] == block["arrival"]) & (block["hash"] != b"")
    names = ("hash", "id", "source", "text", "words")
    return _selected({name: block[name] for name in names}, chosen)


def _signed(block: Block, *, wanted: ray.ObjectRef) -> Block:
    real = _selected({name: block[name] for name in ("hash", "signature")}, block["hash"] != b"")
    places = rows_of(_numbers(real["hash"]), ray.get(wanted))
    return _selected(real, places >= 0)


def _selected(block: Mapping[str, Any], chosen: Any) -> Block:
    return {name: np.asarray(column)[chosen] for name, column in block.items()}


def _numbers(hashes: Any) -> Any:
    return np.frombuffer(b"".join(hashes), HASH).reshape(-1, 2)


def _cause(error: BaseException) -> BaseException:
    """What went wrong in a task, below what Ray wrapped around it."""
    while inner := getattr(error, "cause", None) or error.__cause__:
        error = inner
    return error


def start_ray() -> None:
    """Joins the cluster that started this program, or starts Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": usable_cpus(), "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise SmallmError(f"Ray cannot start: {in_one_line(error)}") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the error is told in a line below


@click.command(context_settings={"max_content_width": 100})
@settings_options("corpus")
@storage_option("the tape is")
def main(given: dict[str, Any], storage: str | None) -> None:
    """Build the tape of a corpus on a Ray cluster, each dump file in a task of its own."""
    settings = Settings.from_flat(given).corpus
    home = open_home()
    shared = Storage(storage) if storage else None
    if shared:
        shared.check()
    start_ray()
    try:
        with messages().status(f"reading source {settings.source}"):
            tape, built = build(settings, home, shared)
    except ray.exceptions.RayError as error:
        raise SmallmError(f"the build failed: {in_one_line(_cause(error))}") from error
    finally:
        ray.shutdown()
    for line in build_lines(tape):
        print(line)
    shards = "shard" if len(tape.manifest["shards"]) == 1 else "shards"
    done = "built" if built else "found"
    print(f"{done} {tape.folder}, {len(tape.manifest['shards'])} {shards}")
    print(f"digest {tape.manifest['digest']}")


if __name__ == "__main__":
    run_program(main)
