"""One file of pieces: safetensors, with a digest that tells damage."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dmlscale.training.checkpoint.pieces import Piece

_CHUNK = 8 * 2**20
CODES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
"""What safetensors calls the types of values that a checkpoint may hold."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in CODES.values()}
"""The same by the names that its record has for them."""


@dataclass(frozen=True)
class StoredPiece:
    """Where a box of a tensor lies in it."""

    name: str
    dtype: str  # of `DTYPES`
    shape: tuple[int, ...]  # of the whole tensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class StoredFile:
    """A file of pieces, as the checkpoint's record names it."""

    name: str
    size: int  # bytes
    sha256: str
    pieces: tuple[StoredPiece, ...]


def write_pieces(path: Path, pieces: Sequence[Piece]) -> StoredFile:
    """Writes a file of pieces, safe from a loss of power when this returns.

    Raises:
        OSError: it cannot be written.
    """
    save_file(_apart(pieces), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stored = tuple(StoredPiece(p.name, dtype_name(p.tensor), p.shape, p.offsets, tuple(p.tensor.shape)) for p in pieces)
    return StoredFile(path.name, path.stat().st_size, digest(path), stored)


def _apart(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """The pieces' tensors, none of which shares memory with another: safetensors refuses tied weights."""
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for piece in pieces:
        tensor = piece.tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[piece.name] = tensor.clone() if place in memory else tensor
        memory.add(place)
    return found


def problem_of(path: Path, file: StoredFile) -> str | None:
    """What the file system tells of a file that is damaged, in an instant; None if that is nothing."""
    try:
        found = path.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(found.st_mode):
        return "it is a link or no file"  # a link may lead out of the checkpoint's folder
    return None if found.st_size == file.size else f"it has {found.st_size:,} bytes, should have {file.size:,}"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal: 1.9 GB/s a thread where the processor has instructions for it."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def dtype_name(tensor: Tensor) -> str:
    """Of a tensor's values: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
