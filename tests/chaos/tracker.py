"""An MLflow server on one of the hosts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.processes import on_host
from tests.hosts.network import Hosts

PORT = 5000
_IS_WELL = "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=2)"


class TrackerOnHost:
    """The server, which can be killed and started again, frozen and thawed.

    Args:
        hosts: that are up.
        name: of the one to run on.
        folder: for its database, files and log.
    """

    def __init__(self, hosts: Hosts, name: str, folder: Path) -> None:
        self._hosts, self._name, self._folder = hosts, name, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.database = folder / "mlflow.db"
        self.uri = f"http://{hosts.address(name)}:{PORT}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(PORT), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--allowed-hosts", "*"]
        command += ["--artifacts-destination", str(self._folder / "files")]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "1"}
        self._process = self._hosts.start(self._name, command, log=self._folder / "server.log", env=environment)
        deadline = time.monotonic() + 180
        while self._hosts.run(self._name, [sys.executable, "-c", _IS_WELL]).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError((self._folder / "server.log").read_text())
            time.sleep(0.3)

    def kill(self) -> None:
        """Ends it without notice."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """It takes connections, and answers none. The command that waits for it has stopped too when this returns."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        deadline = time.monotonic() + 60
        while psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:
            if time.monotonic() > deadline:
                raise TimeoutError("the command that waits for the server has not stopped with it")
            time.sleep(0.01)

    def thaw(self) -> None:
        """It goes on, and so does the command that waits for it, which stopped with it."""
        self._signal(signal.SIGCONT)
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in on_host(self._hosts, self._name, "mlflow"):
            with suppress(psutil.NoSuchProcess):  # it ended with the one before
                if "dmlscale" not in " ".join(process.cmdline()):
                    process.send_signal(number)
