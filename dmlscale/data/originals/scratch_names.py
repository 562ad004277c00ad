"""Names in the folder for what sources unpack."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path


def scratch_name(path: Path) -> str:
    """A name for what is made of a file; another one where the file has changed, or lies elsewhere.

    A file of the same name and size may be another: then samples would get each other's labels.
    """
    return f"{path.name}-{file_stamp(path)}"


def file_stamp(path: Path) -> str:
    """16 letters that depend on a file's place, size and time of writing.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    facts = repr((str(path.resolve()), status.st_size, status.st_mtime_ns))
    return blake2b(facts.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
