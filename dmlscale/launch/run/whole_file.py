"""A small file of a run that is there as a whole or as it was before, whatever is killed or full meanwhile."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once or not at all; processes of several machines may do so at the same time.

    Raises:
        OSError: it cannot be written, and is as it was before.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{socket.gethostname()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
