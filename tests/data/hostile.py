"""What somebody may plant in a dataset: payloads that leave a trace when they are run, and members of odd kinds."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


class Payload:
    """Unpickling it makes a folder, its trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


def pickled(trace: Path) -> bytes:
    return pickle.dumps(Payload(trace))


def npy_of_objects(trace: Path) -> bytes:
    """A NumPy file that holds Python objects, which NumPy itself would unpickle."""
    file = io.BytesIO()
    np.save(file, np.array([Payload(trace)], object), allow_pickle=True)
    return file.getvalue()


def npz_of_objects(trace: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, data=np.array([Payload(trace)], object))
    return file.getvalue()


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def add_special(archive: tarfile.TarFile, name: str, kind: bytes, link: str = "") -> None:
    """A link, a device, a pipe or a folder."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, 0o6777
    archive.addfile(member)


def everything_below(folder: Path, but: Iterable[Path] = ()) -> set[str]:
    """Paths of all files and folders, those within ``but`` left out."""
    kept = (path for path in folder.rglob("*") if not any(path.is_relative_to(each) for each in but))
    return {str(path.relative_to(folder)) for path in kept}
