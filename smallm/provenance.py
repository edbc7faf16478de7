"""Where figures come from: code digest, versions, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import smallm


@cache
def code_digest(*parts: str) -> str:
    """Identifies this SmaLLM, or some files and folders of it, by its source."""
    content = hashlib.sha256()
    package = Path(smallm.__file__).parent
    roots = [package / part for part in parts] or [package]
    files = [root for root in roots if root.is_file()]
    for path in sorted(files + [each for root in roots for each in root.rglob("*.py")]):
        content.update(path.relative_to(package).as_posix().encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


def require_same_code(digest: str) -> None:
    """Raises RuntimeError when this process runs another SmaLLM than the one of that digest."""
    if code_digest() != digest:
        raise RuntimeError(
            f"{platform.node()} runs smallm {code_digest()}, the driver {digest}: "
            "install the same version on every node"
        )


def usable_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(*, cpus: int, gpus: int, precision: str) -> dict[str, object]:
    """What the figures were measured on, for the result record."""
    import torch

    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cpus": cpus,
        "gpus": gpus,
        "torch": torch.__version__,
        "precision": precision,
    }
