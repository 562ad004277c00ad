"""A real Slurm over hosts: its controller on the first, nodes on all of them, munge between them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.hosts.network import Hosts, why_no_hosts

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "scontrol")
# On a host's own /dev/shm: sockets whose names must be short, and state that no other host may see.
_OWN = "/dev/shm/slurm"
# A requeued job waits until its old credentials have expired; two minutes by default.
_CREDENTIAL_SECONDS = 5
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")


def why_no_slurm() -> str | None:
    """What is missing here, as a reason to skip; None where Slurm can be started."""
    missing = [name for name in _PROGRAMS if _find(name) is None]
    if missing:
        return f"a real Slurm needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return why_no_hosts()


class Slurm:
    """Slurm on all hosts for the time of a ``with`` block; its processes end with it.

    Args:
        hosts: that are up.
        folder: for configuration and logs, on the disk that the hosts share.
        cpus: that each node announces, whatever the machine has.
        gpus: 0 or 1; announced with a device that is none.
    """

    def __init__(self, hosts: Hosts, folder: Path, *, cpus: int = 2, gpus: int = 0) -> None:
        self.hosts = hosts
        self.head = hosts.names[0]
        self.logs = folder / "slurm"
        self._config = self.logs / "slurm.conf"
        self._key = self.logs / "munge.key"
        self._cpus, self._gpus = cpus, gpus
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        self.logs.mkdir()
        self._key.touch(mode=0o400)
        self._key.chmod(0o600)
        self._key.write_bytes(secrets.token_bytes(128))
        self._key.chmod(0o400)
        self._write_config()
        try:
            for name in self.hosts.names:
                self.hosts.run(name, ["mkdir", "-p", _OWN])
                self._daemon(name, "munged", "--foreground", "--force", f"--key-file={self._key}", *_munge_files())
            for name in self.hosts.names:
                self._until_there(name, f"{_OWN}/munge.socket")
            self._daemon(self.head, "slurmctld", "-D", "-f", str(self._config))
            for name in self.hosts.names:
                self._daemon(name, "slurmd", "-D", "-N", name, "-f", str(self._config))
            self._until_idle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's, on the first host. Its exit code is the caller's to check."""
        return self.hosts.run(self.head, command, env={"SLURM_CONF": str(self._config), **(env or {})}, timeout=timeout)

    def submit(self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
        """Submits ``sbatch`` with these arguments and returns the job's number.

        Raises:
            RuntimeError: it was refused; with Slurm's words.
        """
        done = self.run(["sbatch", "--parsable", *map(str, command)], env=env)
        if done.returncode != 0:
            raise RuntimeError(f"sbatch refused: {done.stdout}")
        return done.stdout.strip().splitlines()[-1]

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, ExitCode ("75:0"), NodeList, Restarts, ..."""
        done = self.run(["scontrol", "--oneliner", "show", "job", number])
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def wait(self, number: str, *, timeout: float, states: Collection[str] = _FINAL) -> dict[str, str]:
        """Waits until a job is in one of these states.

        Raises:
            TimeoutError: it was not in time; with its last state.
        """
        deadline = time.monotonic() + timeout
        while (job := self.job(number)).get("JobState") not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {number} is {job.get('JobState')} {job.get('Reason')}, not {states}")
            time.sleep(0.5)
        return job

    def cancel_all(self) -> None:
        """Cancels all jobs and waits until the nodes are free.

        Raises:
            RuntimeError: they are not in two minutes.
        """
        self.run(["scancel", "--user=root"])
        self._until_idle()

    def _write_config(self) -> None:
        gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={self.head}({self.hosts.address(self.head)})",
            "SlurmUser=root",
            f"AuthInfo=socket={_OWN}/munge.socket,cred_expire={_CREDENTIAL_SECONDS}",
            f"StateSaveLocation={_OWN}/controller",
            f"SlurmdSpoolDir={_OWN}/node",
            f"SlurmctldPidFile={_OWN}/slurmctld.pid",
            f"SlurmdPidFile={_OWN}/slurmd.pid",
            "MpiDefault=none",
            "ReturnToService=2",
            "ProctrackType=proctrack/linuxproc",  # the hosts have no cgroups of their own
            "TaskPlugin=task/none",
            "JobAcctGatherType=jobacct_gather/none",
            "SlurmdParameters=config_overrides",  # CPUs as announced
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerParameters=sched_min_interval=0,batch_sched_delay=0",
            "KillWait=10",
            "MessageTimeout=60",  # of 10 by itself: a busy machine's controller may take longer to answer
            "GresTypes=gpu" if self._gpus else "",
            *(
                f"NodeName={name} NodeAddr={self.hosts.address(name)} CPUs={self._cpus} RealMemory=4000 {gres}"
                for name in self.hosts.names
            ),
            f"PartitionName=all Nodes={','.join(self.hosts.names)} Default=YES MaxTime=60 State=UP OverSubscribe=NO",
        ]
        self._config.write_text("\n".join(filter(None, lines)) + "\n")
        if self._gpus:
            (self.logs / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\n")
        (self.logs / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _daemon(self, host: str, program: str, *arguments: str) -> None:
        path = _find(program)
        assert path is not None
        log = self.logs / f"{program}-{host}.log"
        environment = {"SLURM_CONF": str(self._config)}
        self._daemons.append(self.hosts.start(host, [path, *arguments], log=log, env=environment))

    def _until_there(self, host: str, path: str) -> None:
        deadline = time.monotonic() + 60
        while self.hosts.run(host, ["test", "-e", path]).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} did not appear on {host}:\n{self._all_logs()}")
            time.sleep(0.1)

    def _until_idle(self) -> None:
        deadline = time.monotonic() + 120
        wanted = ["idle"] * len(self.hosts.names)
        while self.run(["sinfo", "--noheader", "--Node", "--format=%t"]).stdout.split() != wanted:
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                raise RuntimeError(f"Slurm's nodes did not come up:\n{self._all_logs()}")
            time.sleep(0.2)

    def _all_logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.logs.glob("*.log")))


def _munge_files() -> list[str]:
    names = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    return [f"--{option}={_OWN}/{name}" for option, name in names.items()]


def _find(program: str) -> str | None:
    """Debian keeps daemons out of a user's path."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
