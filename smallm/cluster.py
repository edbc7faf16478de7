"""What a search asks of the cluster it runs on: which machines should be there, why one is not."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Collection, Iterable
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
PROGRESS = ("monitor.log", "monitor.out")
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
    errors: int
    """How many lines of the logs say that it cannot be reached, or that its installation failed."""


class Patience:
    """How long to wait for machines that are missing: until time is over, or all seem to fail.

    A machine that starts cannot be reached at first, and then is installed for minutes without an
    error; one that will not come has the same error again and again. Times are in seconds.
    """

    FAILING = 60.0  # for which the errors of a machine that will not come are repeated
    QUIET = 30.0  # after which a machine with errors may be coming all the same

    def __init__(self, most: float) -> None:
        self.most = most
        self.errors: dict[str, int] = {}
        self.first: dict[str, float] = {}
        self.newest: dict[str, float] = {}

    def failing(self, missing: Iterable[Missing], now: float) -> list[Missing]:
        """Those that do not seem to come, at a time since the beginning."""
        return [each for each in missing if self._fails(each, now)]

    def ends(self, missing: Collection[Missing], now: float) -> bool:
        """Whether nothing more is to be expected."""
        return now > self.most or (
            bool(missing) and len(self.failing(missing, now)) == len(missing)
        )

    def _fails(self, machine: Missing, now: float) -> bool:
        address = machine.address
        if machine.errors > self.errors.get(address, 0):
            self.errors[address] = machine.errors
            if now - self.newest.get(address, -math.inf) > self.QUIET:
                self.first[address] = now
            self.newest[address] = now
        if NOT_INSTALLED in machine.why:
            return True
        first, newest = self.first.get(address, now), self.newest.get(address, now)
        return newest - first >= self.FAILING and now - newest <= self.QUIET


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


def _last_words(address: str, logs: Path) -> tuple[str, int]:
    """The last line on a machine: of what went wrong, else of what was going on; and how many
    lines say what went wrong."""
    failed = [line for name, mark in FAILURES for line in _lines_on(address, logs / name, mark)]
    for told in (failed, *(_lines_on(address, logs / name) for name in PROGRESS)):
        if told:
            return told[-1], len(failed)
    return f"{logs} says nothing of it", 0


def _lines_on(address: str, log: Path, mark: str = "") -> list[str]:
    """The lines of a log that name a machine and have a mark."""
    named = re.compile(rf"(?<![\w.]){re.escape(address)}(?![\w.])")
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = (line.strip() for line in lines if mark in line and named.search(line))
        return [line for line in told if not any(each in line for each in CHATTER)]
    return []
