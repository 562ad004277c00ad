"""Real servers on loopback ports, each in a process of its own that can be killed and started again."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_START_SECONDS = 60.0


class _Server(ABC):
    """A process that listens on ``port``, the same one after a restart; ends with the ``with`` block."""

    def __init__(self) -> None:
        # Bound for all that time: nobody else gets the port, not even while the server is down. The server does, since
        # both allow it and only one listens.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """Arguments of Python that start the server on ``port``."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, or start it again on the same port; returns when it listens."""
        # Into a file: a pipe that nobody empties would stop the server after a while.
        with NamedTemporaryFile("w+", prefix="server-", suffix=".log") as log:
            self._process = subprocess.Popen([sys.executable, "-u", *self._command()], stdout=log, stderr=log)
            self._wait_until_it_listens(Path(log.name))
        self._wait_until_it_answers()
        return self

    def _wait_until_it_listens(self, log: Path) -> None:
        """It tells its address in its first lines."""
        assert self._process is not None
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            has_ended = self._process.poll() is not None
            if re.search(rf"{re.escape(self.url)}\s", log.read_text()):
                return
            if has_ended:
                break
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start:\n{log.read_text()}")

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(self.url + "/", timeout=5).close()
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.url} does not answer")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._reserved.close()


class HttpServer(_Server):
    """Serves the files of ``folder``, with ranges.

    What it was asked for is in ``requests``. ``misbehave`` makes it fail.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        super().__init__()
        self.folder = folder
        self._state = state
        state.mkdir(parents=True, exist_ok=True)

    def _command(self) -> list[str]:
        return ["-m", "tests.data.servers", str(self.folder), str(self._state), str(self.port)]

    def requests(self, name: str, method: str = "GET") -> int:
        """How often file ``name`` was asked for, over all restarts."""
        log = self._state / "requests.txt"
        return log.read_text().splitlines().count(f"{method} /{name}") if log.exists() else 0

    def misbehave(self, name: str, times: int | None = None, **how: Any) -> None:
        """Fail at the next ``times`` requests of file ``name``, or until ``behave``.

        Args:
            name: of the file.
            times: how often; None: always.
            how: ``status=503``: answer so. ``bytes=1000``: close the connection after so many.
                ``pause=0.1``: wait so many seconds before each 64 KiB. ``silent=True``: never answer.
                ``length=False``: do not say how long the file is. ``held=True``: send no more than 64 KiB until
                ``behave``.
        """
        fault = self._state / _fault_name(name)
        partial = fault.with_suffix(".partial")
        partial.write_text(json.dumps({"times": times, **how}))
        partial.replace(fault)  # the server may be reading it

    def behave(self, name: str) -> None:
        (self._state / _fault_name(name)).unlink(missing_ok=True)


class S3Server(_Server):
    """moto's S3; puts keys into the environment of this process and its children.

    Empty at each start, unless a ``folder`` is given: then its files are at ``s3://bucket/<its name>`` at each start.
    """

    _CREDENTIALS = {  # noqa: RUF012
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self._folder = folder

    def _command(self) -> list[str]:
        if self._folder is not None:
            return ["-m", "tests.data.s3_process", str(self.port), str(self._folder), "bucket", self._folder.name]
        return ["-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]

    @property
    def options(self) -> dict[str, Any]:
        """What leads fsspec here instead of to Amazon."""
        return {"endpoint_url": self.url}

    def start(self) -> Self:
        os.environ.update(self._CREDENTIALS)
        return super().start()

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Store an object; makes the bucket."""
        import s3fs  # takes a second, which the web server's process need not wait for

        file_system = s3fs.S3FileSystem(**self.options, skip_instance_cache=True)
        if not file_system.exists(bucket):
            file_system.mkdir(bucket)
        file_system.pipe_file(f"{bucket}/{key}", data)

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Store all files of ``folder``; returns the URL of the copy."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{bucket}/{prefix}"


def _fault_name(name: str) -> str:
    return f"fault-{name.replace('/', '%')}.json"


class _Files(BaseHTTPRequestHandler):
    """Serves ``folder`` and does what ``state`` says."""

    folder: Path
    state: Path
    counting = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, has_body: bool) -> None:
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        with (self.state / "requests.txt").open("a") as log:
            log.write(f"{self.command} /{name}\n")
        fault = self._fault(name)
        path = self.folder / name
        if fault.get("silent"):
            time.sleep(3600)
        if "status" in fault or not path.is_file():
            self.send_error(fault.get("status", 404))
            return
        data = path.read_bytes()
        begin, end = self._range(len(data))
        self.send_response(206 if (begin, end) != (0, len(data)) else 200)
        if fault.get("length", True):
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        if has_body:
            held_by = self.state / _fault_name(name) if fault.get("held") else None
            self._send(data[begin:end][: fault.get("bytes")], fault.get("pause", 0.0), held_by)

    def _send(self, data: bytes, pause: float, held_by: Path | None) -> None:
        for begin in range(0, len(data), 2**16):
            time.sleep(pause)
            while begin and held_by is not None and held_by.exists():
                time.sleep(0.005)
            try:
                self.wfile.write(data[begin : begin + 2**16])
            except ConnectionError:  # the client has gone
                return

    def _range(self, length: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return 0, length
        if not found[1]:
            return max(0, length - int(found[2])), length
        return int(found[1]), min(length, int(found[2]) + 1) if found[2] else length

    def _fault(self, name: str) -> dict[str, Any]:
        path = self.state / _fault_name(name)
        with self.counting:
            try:
                fault = json.loads(path.read_text())
            except FileNotFoundError:
                return {}
            if fault["times"] == 1:
                path.unlink()
            elif fault["times"] is not None:  # else left alone: ``behave`` may remove it at any moment
                path.write_text(json.dumps({**fault, "times": fault["times"] - 1}))
        return fault


def _serve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    _Files.folder, _Files.state = arguments.folder, arguments.state
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), _Files)
    print(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    _serve()
