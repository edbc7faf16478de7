"""Says of each machine of a cluster file what keeps `ray up` from using it; run it before.

python clusters/check.py cluster.yaml
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from smallm.cluster import listed_machines, part
from smallm.errors import SmallmError
from smallm.settings import read_yaml

PATIENCE = 10  # seconds that a machine has to answer
ABSENT = "absent: "
# In the shell in which Ray runs its commands there, so that SMALLM_PYTHON is what install.sh sees.
# Debian's Python has no ensurepip without a package of its own.
ASKED = f"""
source ~/.bashrc
for each in rsync setsid flock; do
  command -v $each > /dev/null || echo "{ABSENT}$each"
done
python=${{SMALLM_PYTHON:-python3.11}}
"$python" -c 'import ensurepip, venv' || echo "{ABSENT}$python with venv (Debian: python3.11-venv)"
"""
SHELL = f"bash --login -c -i {shlex.quote(ASKED)}"


def problem(address: str, auth: dict[str, Any]) -> str | None:
    """What is wrong with a machine, or None."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(PATIENCE),
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
    }
    flags = [each for name, value in options.items() for each in ("-o", f"{name}={value}")]
    key = str(Path(auth["ssh_private_key"]).expanduser())
    done = subprocess.run(
        ["ssh", "-i", key, *flags, f"{auth['ssh_user']}@{address}", SHELL],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        return " ".join(done.stderr.split()) or f"ssh ended with {done.returncode}"
    lines = done.stdout.splitlines()
    absent = [line.removeprefix(ABSENT) for line in lines if line.startswith(ABSENT)]
    return f"has no {', '.join(absent)}" if absent else None


def problems(path: Path) -> Iterator[str]:
    """All that is wrong, a line each."""
    if absent := [name for name in ("ssh", "rsync") if not shutil.which(name)]:
        raise SmallmError(f"this machine has no {', '.join(absent)}, which `ray up` needs here")
    auth = part(read_yaml(path), "auth", dict, f"{path}: ")
    for name in ("ssh_user", "ssh_private_key"):
        if not part(auth, name, str, f"{path}: auth."):
            raise SmallmError(f"{path}: auth.{name} is missing")
    key = Path(auth["ssh_private_key"]).expanduser()
    if not key.is_file():
        raise SmallmError(f"{path}: auth.ssh_private_key: {key} does not exist")
    addresses = listed_machines(path)
    if not addresses:
        raise SmallmError(f"{path}: provider.head_ip is missing")
    token = Path("~/.ray/auth_token").expanduser()
    if not token.is_file():
        yield f"{token}: the token of the cluster is missing: `ray get-auth-token --generate`"
    with ThreadPoolExecutor(max_workers=32) as threads:
        for address, why in zip(
            addresses, threads.map(lambda each: problem(each, auth), addresses), strict=True
        ):
            if why:
                yield f"{address}: {why}"


def main() -> int:
    """The exit code: 0 if nothing is wrong."""
    if len(sys.argv) != 2:
        print("usage: python clusters/check.py cluster.yaml", file=sys.stderr)
        return 2
    path = Path(sys.argv[1])
    try:
        if not path.is_file():
            raise SmallmError(f"{path}: does not exist")
        found = list(problems(path))
    except SmallmError as error:
        found = [str(error)]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if not found:
        print(f"all {len(listed_machines(path))} machines are ready for `ray up {path}`")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
