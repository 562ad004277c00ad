"""One file of pieces: safetensors, with a digest that tells damage."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.pieces import Piece

_CHUNK = 8 * 2**20
_SLICE = 64 * 2**20  # bytes that are read at a time, beside the tensors that they go into
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
ITEM_SIZES = {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in _DTYPES}
"""Bytes of a value of each type that a checkpoint may hold."""


@dataclass(frozen=True)
class StoredPiece:
    """Where a box of a tensor lies in it."""

    name: str
    dtype: str  # of `ITEM_SIZES`
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


class Overlap(NamedTuple):
    """What of a stored piece goes where.

    Args:
        stored: the piece.
        there: (start, stop) within it, one pair a dimension.
        into: tensor of that shape, which is filled.
    """

    stored: StoredPiece
    there: tuple[tuple[int, int], ...]
    into: Tensor


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


def read_overlaps(path: Path, file: StoredFile, overlaps: Iterable[Overlap]) -> None:
    """Fills tensors from a file; beside them at most 64 MiB are in memory.

    Raises:
        CheckpointError: it is missing, of another size, or holds something else than the record says.
    """
    problem = problem_of(path, file)
    if problem is not None:
        raise CheckpointError(f"{path} is damaged: {problem}")
    try:
        with safe_open(path, framework="pt") as opened:
            for overlap in overlaps:
                _read_overlap(opened, overlap)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


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


def _read_overlap(opened: safe_open, overlap: Overlap) -> None:
    stored, there, into = overlap
    part = opened.get_slice(stored.name)
    if tuple(part.get_shape()) != stored.sizes:
        # Else a smaller tensor would be repeated to fill the place.
        raise ValueError(f"{stored.name!r} is {tuple(part.get_shape())} there, {stored.sizes} in the record")
    if not there:
        _copy(opened.get_tensor(stored.name), into, stored)
        return
    (start, stop), others = there[0], [slice(*ends) for ends in there[1:]]
    row_bytes = max(1, into.nbytes // max(1, len(into)))
    step = max(1, _SLICE // row_bytes)
    for first in range(start, stop, step):
        rows = slice(first, min(stop, first + step))
        _copy(part[(rows, *others)], into[rows.start - start : rows.stop - start], stored)


def _copy(read: Tensor, into: Tensor, stored: StoredPiece) -> None:
    if dtype_name(read) != stored.dtype:
        raise ValueError(f"{stored.name!r} holds {dtype_name(read)} there, {stored.dtype} in the record")
    with torch.no_grad():
        into.copy_(read)
