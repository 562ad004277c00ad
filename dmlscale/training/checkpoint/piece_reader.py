"""Filling tensors from files of pieces, with reads that can fail.

Not through mapped memory: where the disk gives an error, or another process truncates the file, touching that ends the
process by a signal. Here it is an error like any other, after which the checkpoint before can be taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.piece_file import CODES, DTYPES, StoredFile, StoredPiece, problem_of

# Bytes that are read at a time where they cannot go straight into the tensor; so few stay in the processor's cache.
_SLICE = 4 * 2**20


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


class _Place(NamedTuple):
    """A tensor of a file: its type and shape, and the byte of the file at which it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int


def read_overlaps(path: Path, file: StoredFile, overlaps: Iterable[Overlap]) -> None:
    """Fills tensors from a file; beside them at most 4 MiB are in memory, or one row of a piece that is cut elsewhere.

    Raises:
        CheckpointError: "file: what is wrong": it is missing, cannot be read, is of another size, or holds something
            else than the record says.
    """
    problem = problem_of(path, file)
    if problem is not None:
        raise CheckpointError(f"{file.name}: {problem}")
    try:
        with path.open("rb", buffering=0) as opened:
            places = _places(path, opened.fileno())
            for overlap in overlaps:
                _fill(opened.fileno(), _checked(places, overlap.stored), overlap)
    except OSError as error:
        raise CheckpointError(f"{file.name}: {error.strerror or error}") from error
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file.name}: {error}") from error


def _places(path: Path, descriptor: int) -> dict[str, _Place]:
    """Where each tensor lies. safetensors has made sure that they lie end to end and fill the file."""
    length = torch.empty(8, dtype=torch.uint8)
    _read(descriptor, length, 0)
    begin = 8 + int(length.view(torch.int64))
    found = {}
    # Its own slices read a whole tensor for each slice of it, when they do not map the file.
    with safe_open(path, framework="pt", backend="pread") as header:
        for name in header.offset_keys():
            tensor = header.get_slice(name)
            shape, code = tuple(tensor.get_shape()), tensor.get_dtype()
            if code not in CODES:
                raise ValueError(f"{name!r:.200} has values of type {code}, which no checkpoint holds")
            found[name] = _Place(CODES[code], shape, begin)
            begin += math.prod(shape) * CODES[code].itemsize
    return found


def _checked(places: dict[str, _Place], stored: StoredPiece) -> _Place:
    if stored.name not in places:
        raise ValueError(f"it holds no {stored.name!r}")
    place = places[stored.name]
    if place.shape != stored.sizes:
        # Else a smaller tensor would be repeated to fill the place.
        raise ValueError(f"{stored.name!r} is {place.shape} there, {stored.sizes} in the record")
    if place.dtype != DTYPES[stored.dtype]:
        raise ValueError(f"{stored.name!r} holds {place.dtype} there, {stored.dtype} in the record")
    return place


def _fill(descriptor: int, place: _Place, overlap: Overlap) -> None:
    _, there, into = overlap
    if not there:  # a single number
        there, into, place = ((0, 1),), into.view(1), place._replace(shape=(1,))
    (start, stop), others = there[0], there[1:]
    row_shape = place.shape[1:]
    row_bytes = math.prod(row_shape) * place.dtype.itemsize
    if into.is_cpu and into.is_contiguous() and all(ends == (0, n) for ends, n in zip(others, row_shape, strict=True)):
        # Not `reshape`: a single value may have any stride, and counts as contiguous all the same.
        values = into.as_strided((into.numel(),), (1,))
        _read(descriptor, values.view(torch.uint8), place.begin + start * row_bytes)
        return
    step = max(1, _SLICE // max(1, row_bytes))
    buffer = torch.empty(min(step, stop - start) * row_bytes, dtype=torch.uint8)
    for first in range(start, stop, step):
        last = min(stop, first + step)
        part = buffer[: (last - first) * row_bytes]
        _read(descriptor, part, place.begin + first * row_bytes)
        rows = part.view(place.dtype).view(last - first, *row_shape)
        into[first - start : last - start].copy_(rows[(slice(None), *(slice(*ends) for ends in others))])


def _read(descriptor: int, into: Tensor, begin: int) -> None:
    """Fills a tensor of bytes from those of a file from ``begin`` on."""
    left = into.numpy().data
    while left:
        count = os.preadv(descriptor, [left], begin)
        if not count:
            raise ValueError("it ends too early")
        left, begin = left[count:], begin + count
