"""An evaluation as a person starts it, recorded and shown as a page; also pages of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallm.champion import saved_temperature
from smallm.comparison import metrics
from smallm.comparison_section import comparison_sections
from smallm.corpus_section import profile_section
from smallm.errors import SmallmError
from smallm.files import read_json, write_json, write_text
from smallm.page import page
from smallm.recorded_run import RecordedRun, new_folder
from smallm.tape import Tape
from smallm.tracking import Tracker


class EvaluationRun(RecordedRun):
    """The folder and the MLflow run of one evaluation."""

    kind = "evaluation"

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes the record and its page, and records the figures of each model."""
        keep_temperatures(record, self.home)
        track_models(self.tracker, record, parent=self.kind)
        self.write(record, _page(f"Evaluation {self.folder.name}", record))
        self.end()


def track_models(tracker: Tracker, record: Mapping[str, Any], *, parent: str) -> None:
    """A run below the parent for each model that was measured."""
    for row in record["models"]:
        if "reason" in row:
            continue
        key = f"{parent}/{row['name']}"
        about = {name: row[name] for name in ("name", "kind", "parameters")}
        tracker.start_run(
            key,
            name=row["name"],
            parent=parent,
            params={**about, "slice": record["slice"], "bytes": record["bytes"]},
            tags={"smallm.kind": "evaluation"},
        )
        tracker.log(key, metrics(row), step=0)
        tracker.end_run(key, status="FINISHED", reason="evaluated")


def keep_temperatures(record: Mapping[str, Any], home: Path) -> None:
    """Keeps the fitted temperature of each model, for generation with `fitted`."""
    for row in record["models"]:
        if "calibration" in row:
            fitted = {"temperature": row["calibration"]["temperature"], "model": row["name"]}
            write_json(_temperature_file(row["name"], home), fitted)


def kept_temperature(name: str, *, folder: Path | None, home: Path) -> float:
    """The temperature that fits a model: saved with a SmaLLM, else that of the last evaluation."""
    if folder is not None:
        return saved_temperature(folder)
    file = _temperature_file(name, home)
    if not file.exists():
        raise SmallmError(
            f"{name}: has no fitted temperature yet: run `smallm evaluate --models {name}`, or "
            "give --temperature a number"
        )
    return float(read_json(file)["temperature"])


def write_page(record: Mapping[str, Any], home: Path) -> Path:
    """Writes the page of a comparison of prompts under the home; gives its path."""
    folder = new_folder(home / "comparisons")
    write_json(folder / "comparison.json", record)
    path = folder / "comparison.html"
    write_text(path, _page(f"Comparison {folder.name}", record))
    return path


def write_corpus_page(profile: Mapping[str, Any], tape: Tape) -> Path:
    """Writes the page of a corpus beside its tape; gives its path."""
    path = tape.folder / "corpus.html"
    facts = [f"source {tape.manifest['source']}", f"digest {tape.manifest['digest'][:16]}"]
    body = {"Corpus": profile_section(profile)}
    write_text(path, page(f"Corpus {tape.folder.name}", facts, body))
    return path


def _page(title: str, record: Mapping[str, Any]) -> str:
    sections = comparison_sections(record)
    facts = [f"{len(record['models'])} models"]
    if "slice" in record:
        facts.append(f"{record['bytes']:,} bytes of the {record['slice']} slice")
    if "corpus" in record:
        facts.append(f"corpus {record['corpus']['source']} {record['corpus']['digest'][:16]}")
    return page(title, facts, sections)


def _temperature_file(name: str, home: Path) -> Path:
    return home / "temperatures" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.json"
