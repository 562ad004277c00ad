"""What mining found, in the run's folder: a run that stopped within a round goes on with the round's own table.

A table belongs to the model of the round's first step, which a checkpoint within the round no longer has. Rank 0 alone
reads and writes.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.training import checkpoint


class TableStore:
    """Tables by round: that of the newest, and those that a checkpoint needs.

    Args:
        folder: of the tables.
        checkpoints: folder of the run's checkpoints.
    """

    def __init__(self, folder: Path, checkpoints: Path) -> None:
        self._folder, self._checkpoints = folder, checkpoints

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
        needed = {final, *(self.path(number) for number in self._rounds_of_checkpoints())}
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

    def _rounds_of_checkpoints(self) -> set[int]:
        paths = checkpoint.list_checkpoints(self._checkpoints)
        return {checkpoint.read_record(path).position["epoch"] for path in paths}
