"""One driver at a time on a run's folder.

The driver says every few seconds that it is there. Whoever comes later looks whether it still is: on the same machine
by its process, from elsewhere by waiting for its next word. Ages are measured between two files of the same file
system, so clocks of machines need not agree.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run.whole_file import write_whole

LEASE_FILE = "driver.json"
BEAT_S = 5.0
SILENT_S = 60.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Holder:
    """A process that drives a run.

    Args:
        host: name.
        boot: id of the machine's start, the same for all containers on it.
        processes: id of the process namespace, within which a pid means something.
        pid: of the process.
        started: in clock ticks after the boot; another process may have the pid later.
    """

    host: str
    boot: str
    processes: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """What this process has while it drives a run; see `held`."""

    def __init__(self, file: Path, own: Holder) -> None:
        self._file, self._own, self._over = file, own, Event()
        self._thread = Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Whether it is still ours.

        Raises:
            LaunchError: another driver has taken the run, because this one was silent for too long.
        """
        holder = read_holder(self._file.parent)
        if holder is not None and holder != self._own:
            raise LaunchError(
                f"the run {self._file.parent.name} has been taken over by {holder}, because nothing was heard from "
                f"here for {SILENT_S:g} s; nothing is to do here"
            )

    def end(self) -> None:
        """Gives it back."""
        self._over.set()
        self._thread.join()
        if read_holder(self._file.parent) == self._own:
            self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):
                if read_holder(self._file.parent) == self._own:
                    os.utime(self._file)


@contextmanager
def held(folder: Path, say: Callable[[str], None] = lambda line: print(line, flush=True)) -> Iterator[Lease]:
    """The lease of a run's folder for the block's time; waits until it is known that no other process has it.

    Args:
        folder: of the run; it is there.
        say: prints a line, if there is something to wait for.

    Raises:
        LaunchError: another process drives this run.
    """
    _wait_until_free(folder, say)
    own, file = this_process(), folder / LEASE_FILE
    try:
        write_whole(file, json.dumps(asdict(own)))
    except OSError as error:
        raise LaunchError(f"cannot write {file}: {error}") from error
    time.sleep(_LOOK_EVERY_S)  # of two that came at the same time, the later one to write has it
    other = read_holder(folder)
    if other != own:
        raise _refusal(folder, other, "just now")
    lease = Lease(file, own)
    try:
        yield lease
    finally:
        lease.end()


def is_driven(folder: Path) -> bool:
    """Whether some process seems to drive this run now: it is there, or spoke not long ago."""
    holder = read_holder(folder)
    if holder is None:
        return False
    alive = _is_alive(holder)
    return alive if alive is not None else _silence(folder) < SILENT_S


def read_holder(folder: Path) -> Holder | None:
    """Who drives the run of this folder, dead or alive; None if nobody does."""
    try:
        return Holder(**json.loads((folder / LEASE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def this_process() -> Holder:
    """As others see it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    started = _started(os.getpid())
    assert started is not None
    return Holder(socket.gethostname(), boot, os.readlink("/proc/self/ns/pid"), os.getpid(), started)


def _wait_until_free(folder: Path, say: Callable[[str], None]) -> None:
    holder = read_holder(folder)
    if holder is None or _is_alive(holder) is False:
        return
    silence = _silence(folder)
    if _is_alive(holder):
        raise _refusal(folder, holder, f"{silence:.0f} s ago")
    if silence < SILENT_S:
        say(f"{holder} was training {folder.name} {silence:.0f} s ago: waiting up to {SILENT_S - silence:.0f} s for it")
    while (now := _silence(folder)) < SILENT_S:
        if now < silence:
            raise _refusal(folder, holder, "just now")
        silence = now
        time.sleep(_LOOK_EVERY_S)
        if read_holder(folder) is None:
            return


def _refusal(folder: Path, holder: Holder | None, when: str) -> LaunchError:
    whom = "another process" if holder is None else str(holder)
    return LaunchError(
        f"the run {folder.name} is being trained by {whom} (last heard of {when}): wait for its end, stop it with "
        "SIGTERM, or choose another run.name"
    )


def _is_alive(holder: Holder) -> bool | None:
    """Whether the process is there; None if it cannot be seen from here."""
    here = this_process()
    if (holder.host, holder.boot, holder.processes) != (here.host, here.boot, here.processes):
        return None
    return _started(holder.pid) == holder.started


def _started(pid: int) -> int | None:
    """When a process began; None if it is not there, or dead and not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _silence(folder: Path) -> float:
    """Seconds since the driver's last word, by the clock of the file system."""
    probe = folder / f".{LEASE_FILE}.probe.{os.getpid()}.{socket.gethostname()}"
    try:
        probe.touch()
        age = probe.stat().st_mtime - (folder / LEASE_FILE).stat().st_mtime
    except FileNotFoundError:
        return SILENT_S
    finally:
        probe.unlink(missing_ok=True)
    return max(0.0, age)
