"""A file system that notes the bytes that are copied from it, whichever process copies them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dmlscale.training.checkpoint.remote_store import RemoteStore
from dmlscale.training.checkpoint.scratch import Scratch


class Counted(LocalFileSystem):
    """``counted:///a/folder``.

    Args:
        log: a file to which each copy adds a line: the number of bytes.
        stops: whether copying ends in the middle of a file, and never goes on.
    """

    protocol = "counted"

    def __init__(self, log: str, stops: bool = False, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)
        self._log, self._stops = Path(log), stops

    @classmethod
    def _strip_protocol(cls, path: str | Path) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("counted://")))

    def get_file(self, source: str, target: str, *args: Any, **options: Any) -> None:
        if self._stops:
            Path(target).write_bytes(b"half")
            print("in the middle", flush=True)
            time.sleep(600)
        with self._log.open("a") as log:
            log.write(f"{os.stat(source).st_size}\n")
        super().get_file(source, target, *args, **options)


fsspec.register_implementation("counted", Counted, clobber=True)


def stop_in_the_middle(url: str, log: str, name: str, token: str) -> None:
    """Has something to upload, and copies a checkpoint, until it is killed."""
    store = RemoteStore(url, {"log": log, "stops": True})
    (store.stage(name) / "a.safetensors").write_bytes(b"to be uploaded")
    with Scratch(token) as scratch:
        store.fetch(name, scratch.path)


if __name__ == "__main__":
    stop_in_the_middle(*sys.argv[1:])
