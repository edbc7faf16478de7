"""Hosts on this one machine, for tests of a cluster; needs root on Linux.

Each has a network namespace with its own address on a bridge, its own processes, name, home, /tmp
and /dev/shm, and an SSH server. They reach each other and nothing else. A `laptop` holds the bridge
and runs the commands of a person. All of it is inside the laptop's namespaces: when that one ends,
nothing is left.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("unshare", "nsenter", "ip", "mount", "rsync", "ssh", "ssh-keygen", "sshd")
NETWORK = "10.79.0"
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
SBIN = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

# Everything under these is seen as it is on this machine, and written for this host alone.
ROOM = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p {room} && mount -t tmpfs tmpfs {room}
for place in {places}; do
  mkdir -p {room}/upper$place {room}/work$place
done
{overlays}
mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs -o size=1g tmpfs /dev/shm
rm -rf {home}/.smallm {home}/.ray {home}/.bashrc {home}/.ssh {home}/ray_bootstrap_*
ip link set lo up
touch {room}/ready
sleep infinity &
wait  # and bury what nobody waits for, as the first process must
"""


def missing():
    """Why such hosts cannot be made here, or None."""
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        return "needs root on Linux"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SBIN["PATH"])]
    if absent:
        return f"needs {', '.join(absent)} (Debian: apt-get install iproute2 openssh-server rsync)"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"], capture_output=True
    )
    return None if trial.returncode == 0 else f"needs namespaces: {trial.stderr.decode().strip()}"


def _numbers(pid):
    """The numbers of a process in the namespaces from ours inwards."""
    status = Path(f"/proc/{pid}/status").read_text()
    return status.partition("NSpid:")[2].partition("\n")[0].split()


class Host:
    """One host; `inside` names the host whose namespaces hold it."""

    def __init__(self, name, folder, *, inside=None, number=254):
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.folder = folder / name
        self.folder.mkdir()
        enter = inside.enter if inside else []
        apart = "unshare --net --mount --pid --uts --fork --kill-child bash -c".split()
        self.process = subprocess.Popen(
            [*enter, *apart, f"hostname {name}\n{self._room()}"],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "errors").open("w"),
            start_new_session=True,
            env={**os.environ, **SBIN},
        )
        self.pid = self._first_process()
        self.enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts"]
        self._wait_until_ready()

    def _room(self):
        environment = Path(sys.prefix).resolve()
        places = [Path("/tmp"), HOME, environment]
        places = [each for each in places if not set(places) & set(each.parents)]
        room = f"/run/test-host-{os.getpid()}-{self.name}"
        overlays = "\n".join(
            f"mount -t overlay overlay -o lowerdir={place},upperdir={room}/upper{place},"
            f"workdir={room}/work{place} {place}"
            for place in places
        )
        names = " ".join(map(str, places))
        self.ready = f"{room}/ready"
        return ROOM.format(room=room, places=names, overlays=overlays, home=HOME)

    def _first_process(self):
        """The process that is number 1 in there, below nsenter and unshare."""
        pid = self.process.pid
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if _numbers(pid)[-1] == "1":
                    return pid
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                pid = int(children[0]) if children else pid
            except FileNotFoundError:  # a helper of the start, which has ended: from the top again
                pid = self.process.pid
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} did not start: {(self.folder / 'errors').read_text()}")

    def _wait_until_ready(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.run("test", "-e", self.ready, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start: {(self.folder / 'errors').read_text()}")

    def run(self, *command, check=True, timeout=60, cwd=HOME, **environment):
        """Runs a command on this host to its end; gives its code and all it printed."""
        started = self.start(*command, cwd=cwd, **environment)
        try:
            said, _ = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            said, _ = started.communicate()
            raise AssertionError(f"{self.name}: {command} did not end\n{said}") from None
        assert not check or started.returncode == 0, f"{self.name}: {command}\n{said}"
        return subprocess.CompletedProcess(command, started.returncode, said)

    def start(self, *command, cwd=HOME, **environment):
        """Starts a command on this host, as its user."""
        settings = {
            "HOME": str(HOME),
            "USER": "root",
            "PATH": f"{Path(sys.prefix) / 'bin'}:{SBIN['PATH']}",
            "LANG": "C.UTF-8",
            **environment,
        }
        pairs = [f"{name}={value}" for name, value in settings.items()]
        return subprocess.Popen(
            [*self.enter, f"--wd={cwd}", "env", "-i", *pairs, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def processes(self):
        """Command lines of all that runs on this host, but for what makes it a host."""
        shown = self.run("ps", "-e", "-o", "args=").stdout.splitlines()
        ours = ("bash -c hostname", "sleep infinity", "ps -e", "sshd:")
        return [line for line in map(str.strip, shown) if not line.startswith(ours)]

    @property
    def alive(self):
        """Whether the host has not been killed."""
        return self.process.poll() is None

    def kill(self):
        """Ends all of the host at once, as when its power fails."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(timeout=20)


class Hosts:
    """A laptop, and hosts that it reaches by SSH with one key; all end with the context."""

    def __init__(self, folder, names):
        self.folder = folder
        self.key = folder / "key"
        self.names = names

    def __enter__(self):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.laptop = Host("laptop", self.folder)
        try:
            self.laptop.run("ip", "link", "add", "bridge", "type", "bridge")
            self.laptop.run("ip", "address", "add", f"{NETWORK}.254/24", "dev", "bridge")
            self.laptop.run("ip", "link", "set", "bridge", "up")
            self.hosts = [self._host(name, 11 + at) for at, name in enumerate(self.names)]
        except BaseException:
            self.laptop.kill()
            raise
        return self

    def __exit__(self, *_):
        self.laptop.kill()

    def connect(self, host, state):
        """Cuts a host off the network, by `down`, or connects it again, by `up`."""
        self.laptop.run("ip", "link", "set", f"to-{host.name}", state)

    def _host(self, name, number):
        host = Host(name, self.folder, inside=self.laptop, number=number)
        link = f"to-{name}"
        inner = _numbers(host.pid)[1]  # as the laptop numbers it
        self.laptop.run("ip", "link", "add", link, "type", "veth", "peer", "eth0", "netns", inner)
        self.laptop.run("ip", "link", "set", link, "master", "bridge", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", f"{NETWORK}.254")
        self._start_sshd(host)
        return host

    def _start_sshd(self, host):
        place = host.folder
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "host_key"], check=True
        )
        shutil.copy(f"{self.key}.pub", place / "authorized_keys")
        settings = {
            "ListenAddress": host.address,
            "HostKey": place / "host_key",
            "AuthorizedKeysFile": place / "authorized_keys",
            "PermitRootLogin": "prohibit-password",
            "AuthenticationMethods": "publickey",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "StrictModes": "no",
            "UsePAM": "no",
            "MaxStartups": "100",
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        lines = (f"{name} {value}\n" for name, value in settings.items())
        (place / "sshd_config").write_text("".join(lines))
        host.run("mkdir", "-p", "/run/sshd")
        sshd = shutil.which("sshd", path=SBIN["PATH"])
        host.run(sshd, "-f", place / "sshd_config", "-E", place / "sshd.log")
