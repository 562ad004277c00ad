"""A small disk of its own, which all hosts that start later see, and which can be filled and damaged."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType

_BALLAST = ".ballast"


class SharedDisk:
    """A disk in memory, mounted for the time of a ``with`` block.

    Args:
        path: where; it must not exist.
        megabytes: its size.
    """

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path, self._megabytes = path, megabytes

    def __enter__(self) -> SharedDisk:
        self.path.mkdir(parents=True)
        self._run("mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m", "tmpfs", str(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("umount", "--lazy", str(self.path))

    def fill(self) -> None:
        """Leaves no byte free; takes also what has become free since the last time."""
        deadline = time.monotonic() + 60
        with (self.path / _BALLAST).open("ab") as file:
            while free := os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
                except OSError:  # somebody else has taken some of it meanwhile
                    if time.monotonic() > deadline:
                        raise

    def empty(self) -> None:
        """Gives the room back."""
        (self.path / _BALLAST).unlink()

    def damage_newest_checkpoint(self) -> Path:
        """Turns the bits of one byte in a piece of the newest whole checkpoint, and returns its folder."""
        newest = max(self.path.rglob("step_*/record.json")).parent
        piece = max(newest.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        with piece.open("r+b") as file:
            file.seek(piece.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))
        return newest

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
