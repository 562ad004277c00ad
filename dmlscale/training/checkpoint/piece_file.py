"""One file of pieces: safetensors, with a digest that tells damage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from dmlscale.training.checkpoint.pieces import Piece

_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class StoredPiece:
    """Where a box of a tensor lies in it."""

    name: str
    dtype: str
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
    save_file({piece.name: piece.tensor.contiguous() for piece in pieces}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stored = tuple(
        StoredPiece(p.name, str(p.tensor.dtype).removeprefix("torch."), p.shape, p.offsets, tuple(p.tensor.shape))
        for p in pieces
    )
    return StoredFile(path.name, path.stat().st_size, digest(path), stored)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()
