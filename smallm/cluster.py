"""What a search asks of the cluster it runs on: which machines should be there, why one is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from smallm.errors import SmallmError
from smallm.settings import read_yaml

LISTED = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster file on the head."""
LOGS = Path("/tmp/ray/session_latest/logs")
"""Where the head's autoscaler, which starts the others, says what it does."""
CHATTER = ("Shared connection to", "Permanently added")


def token_hint() -> str:
    """What may keep this machine out of a cluster that asks for a token, as the end of a line."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.is_file():
        return f"; a cluster with a token wants it in {path}, where there is none"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "; a cluster with a token wants RAY_AUTH_MODE=token as well"
    return ""


class Missing(NamedTuple):
    """A machine that is listed and has not joined."""

    address: str
    why: str
    """What the head's logs last said of it."""


class Seen(NamedTuple):
    """What a machine tells of itself before a search."""

    address: str
    digest: str
    """Of its SmaLLM."""
    shared: bool
    """Whether it sees the folder of the search."""
    gpu_unused: bool = False
    """Whether it has a GPU that its PyTorch cannot use."""


def require_same_code(machines: Iterable[Seen], digest: str) -> None:
    """Raises SmallmError that names the machines with another SmaLLM than the driver's."""
    others = [f"{each.address} has {each.digest}" for each in machines if each.digest != digest]
    if others:
        raise SmallmError(
            f"not all machines have the SmaLLM of this program ({digest}): {', '.join(others)}; "
            "`ray up` installs the same everywhere"
        )


def require_cuda(machines: Iterable[Seen]) -> None:
    """Raises SmallmError that names the machines whose GPU would stay idle."""
    if idle := [each.address for each in machines if each.gpu_unused]:
        raise SmallmError(
            f"a GPU, but no PyTorch for CUDA: {', '.join(idle)}; install one there (see "
            "pytorch.org), or start Ray with --num-gpus=0"
        )


def _cluster_file(path: Path) -> dict[str, Any]:
    """What a cluster file says; nothing where there is none."""
    path = path.expanduser()
    return read_yaml(path) if path.is_file() else {}


def listed_machines(path: Path = LISTED) -> list[str]:
    """Addresses of the machines that the cluster file of this head lists; none without one."""
    provider = _cluster_file(path).get("provider", {})
    return [*filter(None, [provider.get("head_ip")]), *provider.get("worker_ips", [])]


def least_machines(path: Path = LISTED) -> int:
    """How many machines the cluster file of this head starts with; 1 without one."""
    kinds = _cluster_file(path).get("available_node_types") or {}
    fewest = 1 + sum(int(kind.get("min_workers", 0)) for kind in kinds.values())
    return max(fewest, len(listed_machines(path)))


def most_machines(path: Path = LISTED) -> int:
    """How many machines the cluster of this head may come to have; 1 without a cluster file."""
    return max(1 + int(_cluster_file(path).get("max_workers", 0)), least_machines(path))


def missing_machines(
    listed: Iterable[str], joined: Iterable[str], logs: Path = LOGS
) -> list[Missing]:
    """The listed machines that are not among those that joined, each with the reason."""
    here = set(joined)
    return [
        Missing(each, _last_words(each, logs))
        for each in listed
        if each not in here and _resolved(each) not in here
    ]


def _resolved(name: str) -> str:
    with suppress(OSError):
        return socket.gethostbyname(name)
    return name


def _last_words(address: str, logs: Path) -> str:
    """The last line on a machine: of what went wrong, else of what was going on."""
    for name in ("monitor.err", "monitor.log", "monitor.out"):
        with suppress(OSError):
            lines = (logs / name).read_text(encoding="utf-8", errors="replace").splitlines()
            told = [
                line.strip()
                for line in lines
                if address in line and not any(each in line for each in CHATTER)
            ]
            if told:
                return told[-1]
    return f"{logs} says nothing of it"
