"""Where figures come from: code digest, versions, hardware."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from functools import cache
from pathlib import Path

import smallm

CGROUPS = Path("/sys/fs/cgroup")  # where Linux shows a container its limits


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


def usable_cpus(cgroups: Path = CGROUPS) -> int:
    """Processors this process may run on, or its container's quota of them where that is less."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(cgroups)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _cpu_quota(cgroups: Path) -> float | None:
    """How many processors' time a container may use (`docker --cpus 1.5`); None without a limit.

    Version 2 of cgroups has quota and period in one file, version 1 has a file for each.
    """
    newer = cgroups / "cpu.max"
    older = [cgroups / "cpu" / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    files = [newer] if newer.is_file() else older
    if not all(each.is_file() for each in files):
        return None
    quota, period = " ".join(each.read_text(encoding="ascii") for each in files).split()
    return int(quota) / int(period) if quota.isdigit() else None  # else `max`, or -1


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
