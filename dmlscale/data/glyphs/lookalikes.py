"""Characters that are the same drawing (Latin A, Greek Alpha, Cyrillic A) must not be two classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.glyphs.drawing import IMAGE_SIZE, draw_centred, draw_placeholders
from dmlscale.data.glyphs.face import Face

MIN_CORRELATION = 0.97  # of the centred pictures: above it, one face shows both characters alike
MIN_ALIKE_FRACTION = 0.6  # of the faces that have both characters

_POOL = 4  # the coarse pictures that find candidates are this much smaller
_MIN_COARSE_CORRELATION = 0.93  # pairs below it never reach MIN_CORRELATION at full size

_BLOCK = 512  # rows compared with all others at a time: bounds the memory


class FaceReport(NamedTuple):
    """What one face says about a list of characters."""

    is_drawn: NDArray[np.bool_]  # (n,) the face has the character, and really draws it
    alike: NDArray[np.int64]  # (pairs, 2) positions i < j of characters that look the same in this face


def inspect_face(face: Face, code_points: Sequence[int]) -> FaceReport:
    """Draw every character in one face and compare all pairs of them."""
    pictures = np.zeros((len(code_points), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    available = face.characters()
    for position, code_point in enumerate(code_points):
        if code_point in available:
            pictures[position] = np.asarray(draw_centred(face, code_point))
    for placeholder in draw_placeholders(face):
        pictures[(pictures == np.asarray(placeholder)).all(axis=(1, 2))] = 0
    is_drawn = np.any(pictures, axis=(1, 2))
    drawn = np.flatnonzero(is_drawn)
    return FaceReport(is_drawn, drawn[_alike_pairs(pictures[drawn])])


def _alike_pairs(pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Positions (pairs, 2), i < j, of pictures (n, size, size) whose correlation is high."""
    # All pairs at full size would cost 16 times as much as all pairs of coarse pictures.
    size = IMAGE_SIZE // _POOL
    coarse = _standardised(pictures.reshape(-1, size, _POOL, size, _POOL).mean(axis=(2, 4), dtype=np.float32))
    alike = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pictures), _BLOCK):
        rows = coarse[start : start + _BLOCK]
        pairs = start + np.argwhere(np.triu(rows @ coarse[start:].T > _MIN_COARSE_CORRELATION, k=1))
        for part in np.split(pairs, range(_BLOCK, len(pairs), _BLOCK)):
            first, second = (_standardised(pictures[part[:, side]]) for side in (0, 1))
            alike.append(part[np.einsum("pd,pd->p", first, second) > MIN_CORRELATION])
    return np.concatenate(alike)


def _standardised(pictures: NDArray[np.generic]) -> NDArray[np.float32]:
    """Rows (n, pixels) of mean 0 and length 1: their dot products are correlations."""
    rows = pictures.reshape(len(pictures), math.prod(pictures.shape[1:])).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def distinct_characters(reports: Sequence[FaceReport], min_faces: int) -> NDArray[np.int64]:
    """Positions of the characters to keep, ascending.

    In the order in which they were inspected, a character is kept if at least ``min_faces`` faces draw it and it looks
    like none that was kept before. So the decision about a character does not depend on those after it.
    """
    is_drawn = np.stack([report.is_drawn for report in reports])  # (faces, n)
    pairs, num_alike = np.unique(np.concatenate([report.alike for report in reports]), axis=0, return_counts=True)
    num_shared = np.zeros(len(pairs), np.int64)
    for drawn in is_drawn:
        num_shared += drawn[pairs[:, 0]] & drawn[pairs[:, 1]]
    pairs = pairs[num_alike >= MIN_ALIKE_FRACTION * num_shared]
    kept = is_drawn.sum(axis=0) >= min_faces
    for earlier, later in pairs[np.argsort(pairs[:, 1], kind="stable")].tolist():
        if kept[earlier]:  # settled: all pairs in which it is the later one were before
            kept[later] = False
    return np.flatnonzero(kept)
