"""The ledger of a search: corpus, result record, MLflow, champion, report; all but the running.

What trains where is the business of the program that owns the ledger (`tune/search.py`).
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import smallm
from smallm import comparison, confirmation, kept_replicates, leaderboard, report, results
from smallm.baselines import places_of
from smallm.calibration import fitted_temperature
from smallm.champion import save_model
from smallm.comparison_tables import evaluation_tables, prompt_tables
from smallm.confirmation import Confirmed, Finalist, Replicate
from smallm.embeddings import WORD_MAP, word_map
from smallm.errors import SmallmError, in_one_line
from smallm.evaluation_run import keep_temperatures, track_models
from smallm.files import keep_first_json, read_json, whole_folder, write_json
from smallm.learning_curves import LEARNING_CURVES, learning_curves
from smallm.pictures import model_record
from smallm.predictors import Predictor
from smallm.predictors.loading import load_predictor
from smallm.progress import SearchDisplay
from smallm.provenance import code_digest, hardware, usable_cpus
from smallm.references import counted_note, reference_scores
from smallm.settings import (
    SCORED_BYTES,
    SHAPE,
    CorpusSettings,
    Settings,
    overlaid,
    shape_of,
    validated,
)
from smallm.space import Space
from smallm.storage import Mirror, Storage, kept_in
from smallm.tape import Tape
from smallm.tape_building import build_tape, tape_folder
from smallm.token_tape import TokenTape, tokenize_tape, tokens_folder
from smallm.tracking import CHAMPION_URI, Tracker
from smallm.training_run import unused_window

TEXT = "text.json"  # the digest of the text that a search began with
NAME = re.compile(r"\w[\w.-]*")
WRITTEN = ("result.json", "leaderboard.csv", "report.html", "plots")
PROMPTS = 4  # of the default ones, that every model continues at the end of a search

Folders = Mapping[tuple[str, int], str]
"""Folder of the tokens of each tokenizer, by kind and vocabulary."""


def opened(settings: Settings, folders: Folders) -> TokenTape:
    """The tokens that a config trains on."""
    folder = Path(folders[settings.tokens.tokenizer, settings.tokens.vocabulary])
    return TokenTape(Tape(folder.parents[1]), folder)


def built_corpus(
    corpus: CorpusSettings, space: Space, *, home: Path, storage: Storage | None = None
) -> tuple[Tape, Folders]:
    """The tape, and the tokens of every tokenizer that a trial may use, built or opened.

    A storage gives what it has and the home has not, and keeps what was built.
    """
    ratios, workers = space.heldout_ratios(), usable_cpus()
    place, _ = tape_folder(corpus, home)
    with kept_in(storage, place, home):
        tape = build_tape(corpus, home=home, workers=workers)
    tape.heldout(ratios)  # a corpus too small to split ends here, not in every trial
    folders: dict[tuple[str, int], str] = {}
    for each in space.tokenizers():
        folder = tokens_folder(tape.folder, each, shortest=min(ratios))
        with kept_in(storage, folder, home):
            tokenize_tape(tape, each, ratios=ratios, workers=workers)
        folders[each.tokenizer, each.vocabulary] = str(folder)
    return tape, folders


class Ledger:
    """One search from corpus to champion; its state lives in its folder under the home.

    With a storage, that has a copy of the folder, from which another machine can go on.
    """

    def __init__(self, folder: Path, *, uri: str, storage: Storage | None = None) -> None:
        kept = read_json(folder / "search.json")
        self.folder = folder
        self.home = folder.parents[1]
        self.baselines: dict[str, str | None] = kept["baselines"]
        self.space: Space = validated(Space, kept["space"])
        self.corpus: CorpusSettings = validated(CorpusSettings, kept["corpus"])
        self.default = self.space.config(self.space.default_point())
        self.display = SearchDisplay(
            trials=self.space.trials, rungs=len(self.default.training.evaluate_at)
        )
        self.say = self.display.say
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self.tracker = Tracker.open(
            folder, uri=uri, experiment="smallm", search=folder.name, notify=self.say
        )
        self.storage = storage
        self.mirror = Mirror(storage, folder, self.say) if storage else None
        if self.mirror:
            self.mirror.start()

    def build_corpus(self) -> None:
        """Builds or opens the tape and the tokens of every tokenizer that a trial may use."""
        start = time.perf_counter()
        self.tape, self.folders = built_corpus(
            self.corpus, self.space, home=self.home, storage=self.storage
        )
        self.seconds["corpus"] = time.perf_counter() - start
        self._check_text()
        self._tell_corpus()
        tokens = opened(self.default, self.folders)
        if unused := unused_window(tokens, self.space.largest_window()):
            self.say(unused)

    def _check_text(self) -> None:
        """Raises SmallmError where the text is another one than when the search began."""
        keep_first_json(self.folder / TEXT, {"digest": self.tape.manifest["digest"]})
        began = read_json(self.folder / TEXT)["digest"]
        if began != (now := self.tape.manifest["digest"]):
            raise SmallmError(
                f"the text of {self.corpus.source} has changed since {self.folder.name} began "
                f"(its digest was {began}, now it is {now}): scores would not compare; bring the "
                "text back, or begin a new search"
            )

    def _tell_corpus(self) -> None:
        manifest = self.tape.manifest
        removed = manifest["duplicates"]
        self.say(
            f"corpus {manifest['source']}: {manifest['documents']:,} documents, "
            f"{manifest['bytes'] / 1e6:.1f} MB, {removed['exact']:,} exact and "
            f"{removed['near']:,} near duplicates removed, in {self.seconds['corpus']:.0f} s"
        )
        self.tracker.start_run(
            "search",
            name=self.folder.name,
            params={**self.space.settings, "space": self.space.name, "trials": self.space.trials},
            tags={"smallm.kind": "search", "smallm.code": code_digest()},
        )
        self.tracker.log_corpus(
            "search",
            name=manifest["source"],
            digest=manifest["digest"],
            source={name: str(value) for name, value in manifest["fingerprint"].items()},
            profile={name: manifest[name] for name in ("documents", "bytes", "words")},
        )

    def searched(self, trials: Sequence[dict[str, Any]], *, cpus: int, gpus: int) -> dict[str, Any]:
        """The result record of a search without confirmation."""
        names = list(self.space.search)
        precisions = {each["precision"] for each in trials if each["precision"]}
        return {
            "schema": report.SCHEMA,
            "name": self.folder.name,
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "smallm": {"version": smallm.__version__, "digest": code_digest()},
            "space": self.space.name,
            "corpus": results.corpus_record(self.tape, self.space.heldout_ratios()),
            "hardware": hardware(cpus=cpus, gpus=gpus, precision=", ".join(sorted(precisions))),
            "settings": {k: v for k, v in self.default.flat().items() if k not in names},
            "searched": names,
            "seeds": list(self.space.seeds),
            "full_budget": max((trial["tokens"] for trial in trials), default=0),
            "trials": list(trials),
            **results.seed_noise(trials, seeds=len(self.space.seeds)),
            "importance": results.importance(self.space, trials),
            "finalists": [],
            "comparisons": [],
            "references": [],
            "conclusion": [],
            "champion": None,
            "pictures": None,
            "comparison": None,
        }

    def finalists(self, record: Mapping[str, Any]) -> list[Finalist]:
        """Which configs are worth fresh seeds."""
        return confirmation.choose_finalists(
            record["trials"],
            count=self.space.confirmed,
            configs={each["id"]: self.space.config(each["settings"]) for each in record["trials"]},
            default=self.default,
        )

    def kept(self, finalist: Finalist, seed: int) -> Replicate | None:
        """A confirmed replicate of an earlier run of this search, whose work is not this run's."""
        try:
            found = kept_replicates.kept(self.folder, finalist, self._origin(), seed)
        except SmallmError as error:
            self.say(f"{error}; it is trained again")
            return None
        self.display.spent_before += found.seconds if found else 0.0
        return found

    def keep(self, finalist: Finalist, replicate: Replicate) -> None:
        """Keeps a confirmed replicate, in case that this run ends early."""
        try:
            kept_replicates.keep(self.folder, finalist, self._origin(), replicate)
        except SmallmError as error:
            self.say(f"were the search to end now, it would train this again: {error}")

    def _origin(self) -> dict[str, Any]:
        """What decides a replicate besides its config and seed."""
        return {
            "text": self.tape.manifest["digest"],
            "ratios": self.space.heldout_ratios(),
            "code": code_digest(),
        }

    def keep_record(self, record: dict[str, Any]) -> None:
        """Writes what the trials gave, in case that this run ends before it has a champion."""
        path = self.folder / "result.json"
        if path.exists() and read_json(path)["champion"]:
            return
        unconfirmed = f"The confirmation has not ended: --resume {self.folder.name} goes on with it"
        early = {"conclusion": [unconfirmed], "overhead": {}, "seconds": self.seconds}
        write_json(path, {**record, **early})

    def crown(self, confirmed: Sequence[Confirmed], record: dict[str, Any]) -> None:
        """Adds the confirmation to the record, saves the champion and registers it."""
        record["conclusion"] += confirmation.failure_sentences(confirmed)
        ordered = confirmation.ranked(confirmed)
        if not ordered:
            return
        champion, settings = ordered[0], ordered[0].finalist.settings
        tokens = opened(settings, self.folders)
        ratios = self.space.heldout_ratios()
        selection, final = self.tape.heldout(ratios)
        training = self.tape.training(settings.training.split_ratio)
        references = reference_scores(tokens, training, final)
        core = champion.core(tokens.vocabulary)
        sources = self.tape.column("source")[final.first : final.last].tolist()
        counted = counted_note(tokens, training)
        found = confirmation.confirmation_record(
            ordered, references, record["searched"], sources, counted=counted
        )
        found["conclusion"] += [*record["conclusion"], record["replication_advice"]]
        record |= found
        folder = self.folder / "champion"
        with whole_folder(folder, replace=True) as temporary:  # resumed, it may be another one
            fitted = fitted_temperature(core, tokens, selection, window=settings.model.window)
            card = confirmation.card(champion, record)
            about = {"heldout_above": max(ratios), "temperature": fitted}
            save_model(core, settings, tokens, temporary, card=card, **about)
            self._map_words(temporary)
            learned = learning_curves(
                record["trials"], record["settings"], champion=champion.finalist.trial
            )
            write_json(temporary / LEARNING_CURVES, learned)
        record["champion"] = {
            "trial": champion.finalist.trial,
            "folder": str(folder),
            "model_uri": CHAMPION_URI,
        }
        for each, row in zip(ordered, record["finalists"], strict=True):
            self._track_confirmation(each, row)
        record["pictures"] = self._pictures(folder)

    def _map_words(self, champion: Path) -> None:
        """Puts the words of the champion in the plane, for the report and for who serves it."""
        try:
            write_json(champion / WORD_MAP, word_map(self._loaded(champion)))
        except Exception as error:  # whatever it is, the champion must not be lost for a picture
            self.say(f"no picture of the champion's words: {in_one_line(error)}")

    def _pictures(self, champion: Path) -> Mapping[str, Any] | None:
        """What the pictures of the champion are drawn from."""
        file = champion / WORD_MAP
        words = read_json(file) if file.exists() else None
        try:
            return model_record(self._loaded(champion), comparison.default_prompts(), words)
        except Exception as error:
            self.say(f"no pictures of the champion: {in_one_line(error)}")
            return None

    def _loaded(self, champion: Path) -> Predictor:
        predictor = load_predictor(str(champion), home=self.home, threads=usable_cpus())
        predictor.name = f"the champion of {self.folder.name}"
        return predictor

    def compare(self, confirmed: Sequence[Confirmed], record: dict[str, Any]) -> None:
        """Adds the champion beside the pretrained models to the record, and prints it.

        What goes wrong here is told and leaves the result of the search as it is.
        """
        start = time.perf_counter()
        try:
            found = self._compared(confirmation.ranked(confirmed)[0])
            beside = found.pop("sentences")
            keep_temperatures(found, self.home)
        except KeyboardInterrupt:
            self.say("the comparison was interrupted: `smallm evaluate` makes it again")
            return
        except Exception as error:
            self.say(f"no comparison: {in_one_line(error)}")
            return
        record["comparison"] = found
        record["conclusion"] += beside
        self.seconds["comparison"] = time.perf_counter() - start
        record["seconds"] = {**self.seconds, "total": time.perf_counter() - self.started}
        track_models(self.tracker, found, parent="search")
        self._write(record)
        self.display.console.print(prompt_tables(found))
        self.display.console.print(evaluation_tables(found))
        for line in beside:
            self.display.console.print(f"- {line}", markup=False)

    def _compared(self, champion: Confirmed) -> dict[str, Any]:
        selection, final = self.tape.heldout(self.space.heldout_ratios())
        text = comparison.held_out(self.tape, final, most_bytes=SCORED_BYTES, fitting=selection)
        self.say(f"comparing on the same {text.bytes:,} bytes of the final slice")
        places = {name: Path(place) for name, place in self.baselines.items() if place}
        models = comparison.each_model(
            ["champion", *self.baselines],
            folders={**places, "champion": self.folder / "champion"},
            home=self.home,
            threads=usable_cpus(),
            device="cuda" if torch.cuda.is_available() else "cpu",  # of the driver, not a worker
        )
        prompts = comparison.default_prompts()[:PROMPTS]
        found = comparison.evaluate(models, text, self.say, prompts=prompts)
        settings = champion.finalist.settings
        tokens = opened(settings, self.folders)
        for row in found["models"]:
            if row["name"] == "champion":
                row["trained_on"] = sorted(set(self.tape.column("source")))
        found["own_tokens"] = {
            "champion": comparison.own_tokens(
                champion.core(tokens.vocabulary), tokens, text.part, settings=settings
            )
        }
        sizes = champion.replicates[0].final.bytes
        found["sentences"] = list(comparison.sentences(found, champion.nll, sizes))
        return found

    def _track_confirmation(self, confirmed: Confirmed, row: Mapping[str, Any]) -> None:
        key = f"confirmation/{row['name']}"
        self.tracker.start_run(
            key,
            name=f"confirmation of {row['name']}",
            parent="search",
            params=confirmed.finalist.settings.replace(seeds=row["seeds"]).flat(),
            tags={"smallm.kind": "confirmation", "smallm.role": row["role"]},
        )
        self.tracker.log(key, confirmation.final_metrics(row), step=0)
        if row["role"] == "champion":
            corpus = self.tape.manifest["digest"]
            tags = {"smallm.corpus": corpus, "smallm.search": self.folder.name}
            self.tracker.register_champion(key, self.folder / "champion", tags=tags)
        self.tracker.end_run(key, status="FINISHED", reason="confirmed")

    def publish(
        self,
        record: dict[str, Any],
        confirmed: Sequence[Confirmed],
        *,
        wall: float,
        interrupted: bool,
    ) -> None:
        """Writes the result and prints it."""
        work = math.fsum(
            [
                *(trial["seconds"] for trial in record["trials"]),
                *(one.seconds for each in confirmed for one in each.replicates),
                -self.display.spent_before,
            ]
        )
        record["overhead"] = results.overhead(
            wall=wall, trials=work, concurrent=self.display.concurrent
        )
        record["seconds"] = {**self.seconds, "total": time.perf_counter() - self.started}
        if interrupted:
            record["conclusion"].insert(
                0, f"The search was interrupted: go on with --resume {self.folder.name}."
            )
        elif record["champion"] is None:
            record["conclusion"].insert(0, _no_champion(record["trials"], confirmed))
        self._write(record)
        self._print(record)

    def finish(self, record: Mapping[str, Any], *, interrupted: bool) -> None:
        """Records the result in MLflow and says where it is."""
        for name in WRITTEN:
            self.tracker.log_artifacts("search", self.folder / name)
        self.tracker.end_run(
            "search",
            status="KILLED" if interrupted else "FINISHED",
            reason=record["conclusion"][0],
        )
        if record["champion"]:
            self._forget_replicates()
        self.say(f"report: {self.folder / 'report.html'}")

    def _forget_replicates(self) -> None:
        try:
            kept_replicates.forget(self.folder, self.storage)
        except SmallmError as error:
            self.say(f"the confirmation's models stay in the storage: {error}")

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self.folder / "result.json", record)
        leaderboard.write_leaderboard(record, self.folder / "leaderboard.csv")
        report.write_report(record, self.folder / "report.html")
        report.write_plots(record, self.folder / "plots")

    def _print(self, record: Mapping[str, Any]) -> None:
        self.display.console.print(leaderboard.terminal_table(record))
        for line in results.sentences(record):
            self.display.console.print(f"- {line}", markup=False)
        spent = record["overhead"]
        self.say(
            f"search and confirmation took {spent['wall']:.1f} s for {spent['trials']:.1f} s of "
            f"training and scoring on {spent['concurrent']} slots: overhead "
            + ("unknown" if spent["ratio"] is None else f"{spent['ratio']:.2f}")
        )

    def close(self, *, timeout: float) -> None:
        """Waits at most that many seconds for MLflow, and says what it could not record."""
        pending = self.tracker.close(timeout=timeout)
        if self.mirror:
            self.mirror.close()
        if pending:
            self.say(
                f"{pending} records wait for MLflow: `smallm sync {self.folder.name}` sends them"
            )


def _no_champion(trials: Sequence[Mapping[str, Any]], confirmed: Sequence[Confirmed]) -> str:
    """Why there is no champion: no trial came through, or no finalist did."""
    if confirmed:
        return "Every finalist failed with a fresh seed: there is no champion"
    failures = [trial["reason"] for trial in trials if trial["status"] == "failed"]
    first = f"; {len(failures)} failed, the first with: {failures[0]}" if failures else ""
    return f"No config reached the full budget: there is no champion{first}"


def asked_for(
    space: Space,
    given: Mapping[str, Any],
    *,
    trials: int | None = None,
    confirmed: int | None = None,
) -> tuple[Space, CorpusSettings]:
    """The space that is searched and the corpus, after what a person fixed.

    `given` settings are fixed for all trials, whatever the space says of them. The settings of the
    corpus are in the space as well, so that each trial, and the champion, has them.
    """
    of_corpus, _ = _apart({**space.settings, **given})
    _, fixed = _apart(given)
    corpus = Settings.from_flat(of_corpus).corpus
    changed = space.model_dump(mode="json")
    settled = set(fixed) | (SHAPE if shape_of(fixed) else set())
    changed["search"] = {k: v for k, v in changed["search"].items() if k not in settled}
    if "seeds" in fixed:
        changed["seeds"] = fixed.pop("seeds")
    changed["settings"] = {
        **overlaid(_apart(changed["settings"])[1], fixed),
        **corpus.model_dump(mode="json", exclude_defaults=True),
    }
    changed |= {"trials": trials or space.trials, "confirmed": confirmed or space.confirmed}
    return validated(Space, changed), corpus


def _apart(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flat settings of the corpus, and all others."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, value in flat.items():
        parts[name not in CorpusSettings.model_fields][name] = value
    return parts


def new_search(
    home: Path,
    space: Space,
    corpus: CorpusSettings,
    *,
    name: str | None = None,
    baselines: Sequence[str] = (),
) -> Path:
    """A folder for a new search, with all that is needed to resume it.

    The champion is compared with the `baselines`; a name that is no model raises SmallmError here,
    at the start.
    """
    if name is not None and not NAME.fullmatch(name):
        raise SmallmError(f"--name {name}: may have letters, digits and _ . - only")
    places = places_of(baselines)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = home / "searches" / (name or f"{corpus.source}-{space.name}-{stamp}")
    if folder.exists():
        raise SmallmError(f"{folder}: exists; choose another --name or --resume {folder.name}")
    with whole_folder(folder) as temporary:
        write_json(
            temporary / "search.json",
            {
                "id": uuid.uuid4().hex,  # by which a machine knows that it sees this very folder
                "space": space.model_dump(mode="json"),
                "corpus": corpus.model_dump(mode="json"),
                "baselines": places,
            },
        )
    return folder


def search_to_resume(home: Path, name: str) -> Path:
    """The folder of the search of that name, or of the newest one."""
    started = sorted(home.glob("searches/*/search.json"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in started]
    if name == "newest" and names:
        return started[-1].parent
    if name not in names:
        known = ", ".join(names) or "none"
        raise SmallmError(f"{home}: has no search {name!r} to resume; known: {known}")
    return home / "searches" / name
