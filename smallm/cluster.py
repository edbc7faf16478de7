"""What a search asks of the cluster it runs on: which machines should be there, why one is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from smallm.errors import SmallmError
from smallm.settings import read_yaml

LISTED = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster file on the head."""
LOGS = Path("/tmp/ray/session_latest/logs")
"""Where the head's autoscaler, which starts the others, says what it does."""
NOT_INSTALLED = "SmaLLM is not installed"
"""In the last line of clusters/install.sh where it fails: all of its words are in monitor.out."""
FAILURES = (("monitor.err", ""), ("monitor.out", NOT_INSTALLED))
KINDS = {dict: "`name: value` lines", list: "a list", str: "text", int: "a whole number"}
"""What a part of a cluster file may be."""
Kind = TypeVar("Kind", dict[str, Any], list[Any], str, int)
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
    failed: bool
    """Whether that is an error: it cannot be reached, or its installation failed."""


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


def part(content: dict[str, Any], name: str, kind: type[Kind], where: str) -> Kind:
    """What a cluster file says under a name, empty where it says nothing.

    Raises SmallmError where it is of another kind; `where` is the line's beginning.
    """
    value = content.get(name, kind())
    if not isinstance(value, kind):
        found = "nothing" if value is None else repr(value)
        raise SmallmError(f"{where}{name}: must be {KINDS[kind]}, found {found}")
    return value


def listed_machines(path: Path = LISTED) -> list[str]:
    """Addresses of the machines that the cluster file of this head lists; none without one."""
    provider = part(_cluster_file(path), "provider", dict, f"{path}: ")
    where = f"{path}: provider."
    head = part(provider, "head_ip", str, where)
    workers = part(provider, "worker_ips", list, where)
    for each in workers:
        if not isinstance(each, str):
            raise SmallmError(f"{where}worker_ips: must hold addresses, found {each!r}")
    return [*filter(None, [head]), *workers]


def least_machines(path: Path = LISTED) -> int:
    """How many machines the cluster file of this head starts with; 1 without one."""
    kinds = part(_cluster_file(path), "available_node_types", dict, f"{path}: ")
    where = f"{path}: available_node_types."
    fewest = 1
    for name in kinds:
        fewest += part(part(kinds, name, dict, where), "min_workers", int, f"{where}{name}.")
    return max(fewest, len(listed_machines(path)))


def most_machines(path: Path = LISTED) -> int:
    """How many machines the cluster of this head may come to have; 1 without a cluster file."""
    workers = part(_cluster_file(path), "max_workers", int, f"{path}: ")
    return max(1 + workers, least_machines(path))


def missing_machines(
    listed: Iterable[str], joined: Iterable[str], logs: Path = LOGS
) -> list[Missing]:
    """The listed machines that are not among those that joined, each with the reason."""
    here = set(joined)
    return [
        Missing(each, *_last_words(each, logs))
        for each in listed
        if each not in here and _resolved(each) not in here
    ]


def _resolved(name: str) -> str:
    with suppress(OSError):
        return socket.gethostbyname(name)
    return name


def _last_words(address: str, logs: Path) -> tuple[str, bool]:
    """The last line on a machine: of what went wrong, else of what was going on; and which."""
    for name, mark in (*FAILURES, ("monitor.log", ""), ("monitor.out", "")):
        with suppress(OSError):
            lines = (logs / name).read_text(encoding="utf-8", errors="replace").splitlines()
            told = [
                line.strip()
                for line in lines
                if address in line and mark in line and not any(each in line for each in CHATTER)
            ]
            if told:
                return told[-1], (name, mark) in FAILURES
    return f"{logs} says nothing of it", False
