"""Arrays by name, in an .npz file or a folder of .npy files, mapped into memory so that rows are read one by one."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.originals.scratch_names import scratch_name


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file, or of the .npy files in a folder.

    Raises:
        DataError: the file is damaged.
    """
    if path.is_dir():
        return sorted(file.stem for file in path.glob("*.npy"))
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"arrays: {path} cannot be read as .npz ({error}): save it again with numpy.savez") from None


def map_array(path: Path, name: str, scratch: Path) -> NDArray:
    """One of the arrays, mapped.

    Args:
        path: an .npz file or a folder.
        name: of the array.
        scratch: an array of an .npz file is unpacked here, unless it was before.

    Raises:
        DataError: it is damaged, or holds Python objects.
    """
    file = path / f"{name}.npy" if path.is_dir() else _unpacked(path, name, scratch)
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"arrays: {name!r} of {path} cannot be read: {error}") from None


def _unpacked(path: Path, name: str, scratch: Path) -> Path:
    file = scratch / f"{scratch_name(path)}-{name}.npy"
    if file.is_file():
        return file
    scratch.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as packed, partial.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"arrays: {name!r} of {path} cannot be unpacked into {scratch}: {error}") from None
    partial.replace(file)
    return file
