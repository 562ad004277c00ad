"""Samples that cannot be had: counted and left out, up to a limit."""

from __future__ import annotations

import logging
from threading import Lock

from dmlscale.data.errors import DataError
from dmlscale.data.reader import LostSampleError

logger = logging.getLogger("dmlscale.data")

_WARNINGS = 5  # that are written in full


class Skipped:
    """Counts distinct samples that a rank has left out; threads share it.

    Args:
        limit: more than so many samples are an error.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: set[int] = set()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row_id: int, error: LostSampleError) -> None:
        """Count a sample, and say so the first times.

        Raises:
            DataError: there are more than the limit.
        """
        with self._lock:
            if row_id in self._rows:
                return
            self._rows.add(row_id)
            count = len(self._rows)
        if count > self._limit:
            raise DataError(
                f"{count} samples cannot be read, more than data.max_skipped allows ({self._limit} on this worker); the "
                f"last one: {error}"
            )
        if count <= _WARNINGS or count & (count - 1) == 0:  # then at every power of two
            logger.warning("skipped %d sample(s) so far (%d are allowed): %s", count, self._limit, error)
