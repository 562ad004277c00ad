"""Equal vectors, kept once: an index over thousands of copies of one vector finds little else.

n vectors of d dimensions, m different ones among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.closeness import FloatArray, IntArray

_ROWS_AT_ONCE = 8_192
_SEED = 0


@dataclass(frozen=True, eq=False)
class Copies:
    """Which of n vectors are equal.

    Args:
        number: (n,) of each row the number of its vector, 0 to m - 1, each of which occurs.

    Raises:
        ValueError: one does not occur, or there is none.
    """

    number: IntArray

    def __post_init__(self) -> None:
        n = len(self.number)
        if not n or self.number.min() < 0 or self.number.max() >= n or not self.counts.all():
            raise ValueError("the numbers of vectors must be 0, 1, 2, ..., each for one row or more")

    @classmethod
    def among(cls, vectors: NDArray[Any]) -> Copies:
        """Finds equal vectors; they are numbered by the first row that has them.

        Takes 40 bytes a vector, beside what it returns.

        Args:
            vectors: (n, d) finite.
        """
        _, first, group = np.unique(_hashes(vectors), return_index=True, return_inverse=True)
        first_of_row = first[group]
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            is_other = (vectors[part] != vectors[first_of_row[part]]).any(axis=1)
            first_of_row[part][is_other] = start + np.flatnonzero(is_other)  # of equal hash alone: kept by itself
        is_first = first_of_row == np.arange(len(vectors))
        return cls((np.cumsum(is_first) - 1)[first_of_row])

    @classmethod
    def none(cls, num_vectors: int) -> Copies:
        """All vectors differ."""
        return cls(np.arange(num_vectors))

    @property
    def num_rows(self) -> int:
        """Number of vectors with their copies, n."""
        return len(self.number)

    @cached_property
    def counts(self) -> IntArray:
        """(m,) how many rows have each vector."""
        return np.bincount(self.number)

    @cached_property
    def rows(self) -> IntArray:
        """(n,) rows sorted by the number of their vector, then by row."""
        return np.argsort(self.number, kind="stable")

    @cached_property
    def starts(self) -> IntArray:
        """(m,) where the rows of each vector begin in `rows`."""
        return np.cumsum(self.counts) - self.counts

    @property
    def first_rows(self) -> IntArray:
        """(m,) the first row of each vector."""
        return self.rows[self.starts]

    def spread(self, values: FloatArray, numbers: IntArray, k: int) -> tuple[FloatArray, IntArray]:
        """The rows of the vectors that were found: all copies of the nearest, then those of the next.

        Args:
            values: (q, c) of the vectors that were found.
            numbers: (q, c) theirs; -1 where nothing was found, which comes last.
            k: rows wanted.

        Returns:
            (q, k) values, (q, k) rows (-1 where there are no more; their values are of no meaning).
        """
        counts = np.where(numbers < 0, 0, self.counts[numbers])
        ends = counts.cumsum(axis=1)
        passed = np.zeros((len(numbers), k + 1), np.int64)
        np.add.at(passed, (np.arange(len(numbers))[:, None], np.minimum(ends, k)), 1)
        which = passed[:, :k].cumsum(axis=1)  # (q, k) position among those that were found
        is_there = which < numbers.shape[1]
        which = np.minimum(which, numbers.shape[1] - 1)
        begins = np.take_along_axis(ends - counts, which, 1)
        number = np.take_along_axis(numbers, which, 1)
        place = self.starts[number] + np.arange(k) - begins
        rows = np.where(is_there, self.rows[np.where(is_there, place, 0)], -1)
        return np.take_along_axis(values, which, 1), rows


def _hashes(vectors: NDArray[Any]) -> NDArray[np.uint64]:
    """(n,) equal for equal vectors, and hardly ever for others."""
    factors = np.random.default_rng(_SEED).integers(0, 2**64, vectors.shape[1], np.uint64)
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = vectors[start : start + _ROWS_AT_ONCE].astype(np.float32) + np.float32(0)  # -0 becomes 0
        hashes[start : start + _ROWS_AT_ONCE] = part.view(np.uint32) @ factors
    return hashes
