"""A real disk of a few kilobytes, that can be filled up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest


class SmallDisk:
    """Owns a mounted file system in memory; leave the block to unmount it.

    Args:
        folder: that it is mounted on.
        kilobytes: its size.
    """

    def __init__(self, folder: Path, *, kilobytes: int = 256) -> None:
        self.folder = folder
        self._kilobytes = kilobytes

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={self._kilobytes}k"]
        done = subprocess.run(["mount", *options, "none", str(self.folder)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within this nothing more fits."""
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(os.sysconf("SC_PAGE_SIZE")))
            except OSError:
                pass
        try:
            yield
        finally:
            filler.unlink()
