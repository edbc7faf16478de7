"""The home folder: all state of SmaLLM in one place. Deleting it is a full reset."""

from __future__ import annotations

import os
from pathlib import Path

from smallm.errors import SmallmError
from smallm.files import disk_errors, read_json, write_json

VERSION = 1


def open_home(path: Path | None = None) -> Path:
    """The absolute home folder, by default SMALLM_HOME or ./runs; made on first use.

    Raises SmallmError when a newer SmaLLM has written it.
    """
    home = (path or Path(os.environ.get("SMALLM_HOME") or "runs")).expanduser().resolve()
    marker = home / "home.json"
    if marker.exists():
        version = read_json(marker).get("version")
        if not isinstance(version, int) or version > VERSION:
            raise SmallmError(
                f"{home}: was written by a newer SmaLLM (home version {version}, this one knows "
                f"{VERSION}): update SmaLLM or name another folder in SMALLM_HOME"
            )
        return home
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"version": VERSION})
    return home


def newest_search(home: Path) -> Path:
    """The folder of the search under a home that last wrote what it found."""
    results = sorted(home.glob("searches/*/result.json"), key=lambda path: path.stat().st_mtime)
    if not results:
        raise SmallmError(f"{home}: holds no finished search yet: run `make search`")
    return results[-1].parent


def newest_champion(home: Path) -> Path | None:
    """The model folder of the search that crowned last, if any has."""
    found = sorted(home.glob("searches/*/champion"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def recorded(home: Path, marker: str) -> list[Path]:
    """The folders of searches, evaluations and ablations that hold a file, the newest first."""
    kinds = ("searches", "evaluations", "ablations")
    found = [path for kind in kinds for path in home.glob(f"{kind}/*/{marker}")]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in found]


def searches(home: Path, marker: str) -> list[str]:
    """The names of all searches that have written a file, such as result.json."""
    return sorted(path.parent.name for path in home.glob(f"searches/*/{marker}"))
