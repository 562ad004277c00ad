"""Samples that cannot be had: counted and left out, up to a limit."""

from __future__ import annotations

import logging
from threading import Lock
from typing import get_args

from dmlscale.data.errors import DataError
from dmlscale.data.reader import LossKind, LostSampleError

logger = logging.getLogger("dmlscale.data")

KINDS: tuple[LossKind, ...] = get_args(LossKind)
_WARNINGS = 5  # that are written in full


class Skipped:
    """Counts distinct samples that a rank has left out; threads share it.

    Args:
        limit: more than so many samples are an error.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: set[int] = set()
        self._new: list[tuple[int, int]] = []
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def take_new(self) -> list[tuple[int, int]]:
        """(row id, position of the kind in `KINDS`) of the samples left out since this was asked before."""
        with self._lock:
            new, self._new = self._new, []
            return new

    def add(self, row_id: int, error: LostSampleError) -> None:
        """Count a sample, and say so the first times.

        Raises:
            DataError: there are more than the limit.
        """
        with self._lock:
            is_new = row_id not in self._rows
            if is_new:
                self._rows.add(row_id)
                self._new.append((row_id, KINDS.index(error.kind)))
            count = len(self._rows)
        if count > self._limit:  # also when the batch that raised is asked for again
            raise DataError(
                f"{count} samples cannot be read, more than data.max_skipped allows ({self._limit} on this worker); "
                f"the last one: {error}"
            )
        if is_new and (count <= _WARNINGS or count & (count - 1) == 0):  # then at every power of two
            logger.warning("skipped %d sample(s) so far (%d are allowed): %s", count, self._limit, error)
