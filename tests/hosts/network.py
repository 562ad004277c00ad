"""Real hosts on one machine: each has its own network, processes, host name, home, /tmp/ray and /dev/shm.

A bridge in a network namespace of its own joins them, so addresses never meet those of the machine or of another set
of hosts. Everything else of the disk is shared, like storage that all nodes mount. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_NETWORK = "10.77.0"
_counter = itertools.count()
# Reaps the children that a dead shell leaves: without it `ray stop` would count zombies.
_FIRST_PROCESS = "trap : CHLD TERM; while :; do sleep 3600 & wait; done"


def why_no_hosts() -> str | None:
    """What is missing here, as a reason to skip; None where hosts can be made."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root"
    missing = [name for name in ("ip", "tc", "unshare", "nsenter", "setpriv", "mount") if shutil.which(name) is None]
    if missing:
        return f"hosts in network namespaces need {', '.join(missing)}"
    name = f"dmlprobe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
        return "this machine does not let us make network namespaces"
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


def hosts_supported() -> bool:
    """Whether hosts can be made here."""
    return why_no_hosts() is None


class Hosts:
    """Hosts ``n0``, ``n1``, ... for the time of a ``with`` block.

    Args:
        count: how many.
        folder: where their homes and state lie; removed by whoever made it.
        shm: size of each /dev/shm.
    """

    def __init__(self, count: int, folder: Path, *, shm: str = "4g") -> None:
        self.names = [f"n{number}" for number in range(count)]
        self._folder = folder / "hosts"
        self._shm = shm
        self._prefix = f"dml{os.getpid()}x{next(_counter)}"
        self._first: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        self._folder.mkdir(parents=True)
        try:
            _ip("netns", "add", self._switch)
            for command in ("link set lo up", "link add br0 type bridge", "link set br0 up"):
                _ip("-n", self._switch, *command.split())
            for name in self.names:
                self._write_names(name)
                self.power_on(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in [*self._first]:
            self.power_off(name)
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self._switch)

    def address(self, name: str) -> str:
        """IP address of a host."""
        return f"{_NETWORK}.{10 + self.names.index(name)}"

    def home(self, name: str) -> Path:
        """$HOME of a host, which others do not have."""
        return self._folder / name / "home"

    def names_file(self, name: str) -> Path:
        """A host's /etc/hosts; may be written at any time."""
        return self._folder / name / "etc-hosts"

    def run(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host and waits for it; stderr comes with stdout. Its exit code is the caller's to check.

        Raises:
            subprocess.TimeoutExpired: it was not done in time, and was ended.
        """
        return subprocess.run(
            self._on(name, command, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def start(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a host; its output goes to ``log``. Whoever ends what is returned kills the command."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self._on(name, command, env), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def first_process(self, name: str) -> int:
        """The number that this machine has for a host's PID 1."""
        return _only_child(self._first[name].pid)

    def cut(self, name: str) -> None:
        """Pulls the network cable of a host."""
        _ip("-n", self._switch, "link", "set", name, "down")

    def heal(self, name: str) -> None:
        """Plugs it in again."""
        _ip("-n", self._switch, "link", "set", name, "up")

    def slow(self, name: str, *, mbit: float) -> None:
        """Limits the rate at which a host sends and receives, in Mbit/s each way.

        By a token bucket, since the delays of netem are in few kernels that we meet.
        """
        shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms"]
        for space, device in self._ends(name):
            _ip("netns", "exec", space, "tc", "qdisc", "replace", "dev", device, *shape)

    def full_speed(self, name: str) -> None:
        """Takes the limit of `slow` away."""
        for space, device in self._ends(name):
            _ip("netns", "exec", space, "tc", "qdisc", "del", "dev", device, "root")

    def power_off(self, name: str) -> None:
        """Ends a host and everything on it at once."""
        process = self._first.pop(name)
        # The network's end of the cable too, which would else stay until the kernel has cleared the host away.
        with suppress(subprocess.CalledProcessError):
            _ip("-n", self._switch, "link", "del", name)
        first = _only_child(process.pid) if process.poll() is None else None
        process.send_signal(signal.SIGKILL)  # unshare takes its child, and that all processes of the host, along
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        if first is not None:
            _wait_for_end(first)
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self._space(name))

    def power_on(self, name: str) -> None:
        """Starts a host again, with the disk that it had."""
        space = self._space(name)
        _ip("netns", "add", space)
        _ip("link", "add", "veth0", "netns", space, "type", "veth", "peer", "name", name, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", name, "master", "br0", "up")
        _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "veth0")
        for device in ("lo", "veth0"):
            _ip("-n", space, "link", "set", device, "up")
        for part in ("home", "ray"):
            (self._folder / name / part).mkdir(parents=True, exist_ok=True)
        ready = self._folder / name / "ready"
        ready.unlink(missing_ok=True)
        setup = (
            f"set -e; hostname {name}; mount --bind {self.names_file(name)} /etc/hosts; mkdir -p /tmp/ray; "
            f"mount --bind {self._folder / name / 'ray'} /tmp/ray; mount -t tmpfs -o size={self._shm} tmpfs /dev/shm; "
            f"touch {ready}; exec bash -c '{_FIRST_PROCESS}'"
        )
        own = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        self._first[name] = subprocess.Popen(
            ["ip", "netns", "exec", space, *own, "bash", "-c", setup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not ready.exists():
            if self._first[name].poll() is not None or time.monotonic() > deadline:
                self._first[name].kill()  # or what it says would have no end
                stderr = self._first[name].stderr
                raise RuntimeError(f"host {name} did not start: {stderr.read().decode() if stderr else ''}")
            time.sleep(0.02)

    def _ends(self, name: str) -> list[tuple[str, str]]:
        """Both ends of a host's cable: namespace and device."""
        return [(self._switch, name), (self._space(name), "veth0")]

    @property
    def _switch(self) -> str:
        return f"{self._prefix}sw"

    def _space(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _write_names(self, name: str) -> None:
        lines = ["127.0.0.1 localhost", *(f"{self.address(other)} {other}" for other in self.names)]
        self.names_file(name).parent.mkdir(parents=True, exist_ok=True)
        self.names_file(name).write_text("\n".join(lines) + "\n")

    def _on(self, name: str, command: Sequence[str], env: Mapping[str, str] | None) -> list[str]:
        target = str(self.first_process(name))
        variables = [f"{key}={value}" for key, value in {"HOME": str(self.home(name)), **(env or {})}.items()]
        enter = ["nsenter", "-t", target, "-m", "-u", "-i", "-p", "-n", f"--wd={os.getcwd()}"]
        # The command is a child of nsenter, and would else live on when that is ended.
        return [*enter, "setpriv", "--pdeathsig", "KILL", "env", *variables, *map(str, command)]


def _only_child(pid: int) -> int:
    """The first process of a host, which ``unshare`` waits for."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _wait_for_end(first: int) -> None:
    """Waits, for a while, until the first process of a host is gone: it is the last one there to go."""
    deadline = time.monotonic() + 20
    with suppress(OSError):  # it is gone
        while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
