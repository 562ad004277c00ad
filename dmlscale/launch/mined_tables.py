"""What mining found, in the run's folder: a run that stopped within a round goes on with the round's own table.

A table belongs to the model of the round's first step, which a checkpoint within the round no longer has. Rank 0 alone
reads and writes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.training.checkpoint.errors import CheckpointError


class TableStore:
    """Tables by round: that of the newest, and those that a checkpoint needs.

    Args:
        folder: of the tables.
        rounds_in_use: those in which checkpoints were written; asked on rank 0 alone.
    """

    def __init__(self, folder: Path, rounds_in_use: Callable[[], set[int]]) -> None:
        self._folder, self._rounds_in_use = folder, rounds_in_use

    def path(self, round_number: int) -> Path:
        """The file of a round."""
        return self._folder / f"round_{round_number:08d}.npz"

    def write(self, round_number: int, table: NeighborTable) -> None:
        """Stores a table in one move, and deletes those that nothing needs any more."""
        self._folder.mkdir(exist_ok=True)
        final = self.path(round_number)
        partial = final.with_suffix(".partial")
        with partial.open("wb") as file:
            # Half the size; a split of 2**31 samples would not fit in memory anyway.
            np.savez(
                file,
                nearest_negatives=table.nearest_negatives.astype(np.int32),
                farthest_positive=table.farthest_positive.astype(np.int32),
            )
        os.replace(partial, final)
        try:
            rounds = self._rounds_in_use()
        except (CheckpointError, OSError):
            return  # a checkpoint that cannot be read today may need any of them
        needed = {final, *map(self.path, rounds)}
        for path in set(self._folder.iterdir()) - needed:
            path.unlink(missing_ok=True)

    def read(self, round_number: int, num_samples: int, num_negatives: int) -> NeighborTable | None:
        """The table of a round; None if it is not there, damaged, or of another shape."""
        try:
            with np.load(self.path(round_number)) as stored:
                negatives = stored["nearest_negatives"].astype(np.int64)
                positives = stored["farthest_positive"].astype(np.int64)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None
        if negatives.shape != (num_samples, num_negatives) or positives.shape != (num_samples,):
            return None
        return NeighborTable(negatives, positives)
