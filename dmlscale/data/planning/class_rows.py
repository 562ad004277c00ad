"""Which rows each class has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import order_by


@dataclass(frozen=True, eq=False)
class ClassRows:
    """The rows of a split by class.

    Args:
        rows: (n,) row ids, by class; perhaps memory-mapped: never copied as a whole.
        starts: (C + 1,) class c has ``rows[starts[c] : starts[c + 1]]``; some classes may have none.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def from_labels(cls, labels: NDArray[np.integer], row_ids: NDArray[np.int64] | None = None) -> ClassRows:
        """Sort rows by class, in memory.

        Args:
            labels: (n,) class ids, 0 or more.
            row_ids: (n,) ids of the rows; their positions if not given.
        """
        rows = order_by(labels.astype(np.uint64))
        starts = np.concatenate(([0], np.cumsum(np.bincount(labels)))).astype(np.int64)
        return cls(rows if row_ids is None else row_ids[rows], starts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) number of rows of each class."""
        return np.diff(self.starts)
