"""Whether boxes fill a tensor: no hole, no overlap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

from dmlscale.training.checkpoint.piece_file import StoredPiece

_MOST_CUTS = 8


def why_not_whole(pieces: Sequence[StoredPiece]) -> str | None:
    """What is wrong with the pieces of one tensor; None if they fill it, each place once.

    A sum of boxes is the whole box everywhere if and only if their corners, counted with alternating signs, are those
    of the whole: a function that is zero far away is known from its mixed differences. So the time is linear in
    the number of pieces; comparing each with each would let a crafted record take hours.

    Args:
        pieces: at least one, all of one tensor.
    """
    first = pieces[0]
    shape = first.shape
    for piece in pieces:
        if (piece.shape, piece.dtype) != (shape, first.dtype):
            return f"has pieces of {shape} {first.dtype} and of {piece.shape} {piece.dtype}"
        if not len(shape) == len(piece.offsets) == len(piece.sizes):
            return f"is {shape}, a piece has offsets {piece.offsets} and sizes {piece.sizes}"
        if any(offset < 0 or size < 0 for offset, size in zip(piece.offsets, piece.sizes, strict=True)) or any(
            offset + size > length for offset, size, length in zip(piece.offsets, piece.sizes, shape, strict=True)
        ):
            return f"is {shape}, a piece at {piece.offsets} of {piece.sizes} lies outside of it"
    # One piece that is empty or the whole needs no corners, and a tensor without cuts has none.
    cut = [n for n, length in enumerate(shape) if any(piece.sizes[n] != length for piece in pieces)]
    if len(cut) > _MOST_CUTS:
        return f"is cut along {len(cut)} dimensions, more than {_MOST_CUTS}"
    corners: Counter[tuple[int, ...]] = Counter()
    for piece in pieces:
        if math.prod(piece.sizes):
            _add_corners(corners, [(piece.offsets[n], piece.offsets[n] + piece.sizes[n]) for n in cut], 1)
    if math.prod(shape):
        _add_corners(corners, [(0, shape[n]) for n in cut], -1)
    return "has a hole or an overlap between its pieces" if any(corners.values()) else None


def _add_corners(corners: Counter[tuple[int, ...]], box: Sequence[tuple[int, int]], count: int) -> None:
    for ends in product((0, 1), repeat=len(box)):
        corners[tuple(box[n][end] for n, end in enumerate(ends))] += count * (-1) ** sum(ends)
