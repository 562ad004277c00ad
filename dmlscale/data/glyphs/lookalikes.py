"""Characters that are the same drawing (Latin A, Greek Alpha, Cyrillic A) must not be two classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.glyphs.drawing import IMAGE_SIZE, draw_centred
from dmlscale.data.glyphs.faces import characters_of_face

MIN_CORRELATION = 0.97  # of the centred pictures: above it, one face shows both characters alike
MIN_ALIKE_FRACTION = 0.6  # of the faces that have both characters

_POOL = 4  # the coarse pictures that find candidates are this much smaller
_MIN_COARSE_CORRELATION = 0.93  # pairs below it never reach MIN_CORRELATION at full size


class FaceReport(NamedTuple):
    """What one face says about a list of characters."""

    is_drawn: NDArray[np.bool_]  # (n,) the face has the character, and it leaves ink
    alike: NDArray[np.int64]  # (pairs, 2) positions i < j of characters that look the same in this face


def inspect_face(face: str, code_points: list[int]) -> FaceReport:
    """Draw every character in one face and compare all pairs of them."""
    pictures = np.zeros((len(code_points), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    available = characters_of_face(face)
    for position, code_point in enumerate(code_points):
        if code_point in available:
            pictures[position] = np.asarray(draw_centred(face, code_point))
    drawn = np.flatnonzero(pictures.any(axis=(1, 2)))
    is_drawn = np.zeros(len(code_points), bool)
    is_drawn[drawn] = True
    return FaceReport(is_drawn, drawn[_alike_pairs(pictures[drawn])])


def _alike_pairs(pictures: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions (pairs, 2), i < j, of pictures (n, size, size) whose correlation is high."""
    # All pairs at full size would cost 16 times as much as all pairs of coarse pictures.
    size = IMAGE_SIZE // _POOL
    coarse = _standardised(pictures.reshape(-1, size, _POOL, size, _POOL).mean(axis=(2, 4)))
    pairs = np.argwhere(np.triu(coarse @ coarse.T > _MIN_COARSE_CORRELATION, k=1))
    fine = _standardised(pictures)
    correlation = np.einsum("pd,pd->p", fine[pairs[:, 0]], fine[pairs[:, 1]])
    return pairs[correlation > MIN_CORRELATION]


def _standardised(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, pixels) of mean 0 and length 1: their dot products are correlations."""
    rows = pictures.reshape(len(pictures), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def distinct_characters(code_points: list[int], reports: list[FaceReport], min_faces: int) -> NDArray[np.int64]:
    """Positions of the characters to keep, ascending.

    In the order of ``code_points``, a character is kept if enough faces draw it and it looks like none that
    was kept before. So the decision about a character does not depend on those after it.
    """
    is_drawn = np.stack([report.is_drawn for report in reports]).astype(np.int32)  # (faces, n)
    num_shared = is_drawn.T @ is_drawn
    num_alike = np.zeros_like(num_shared)
    for report in reports:
        num_alike[report.alike[:, 1], report.alike[:, 0]] += 1
    looks_like = num_alike >= np.maximum(MIN_ALIKE_FRACTION * num_shared, 1)  # (later, earlier)
    kept = np.zeros(len(code_points), bool)
    for position in range(len(code_points)):
        enough = num_shared[position, position] >= min_faces
        kept[position] = enough and not (looks_like[position] & kept).any()
    return np.flatnonzero(kept)
