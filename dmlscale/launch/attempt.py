"""Each start of a run's workers has a number, so that workers of an earlier one that were cut off do no harm.

Such workers may live on for minutes on a node that nobody can reach, while the run goes on elsewhere. They name their
files by their number, and look whether there is a higher one before they write what others also write.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dmlscale.distributed.world import World
from dmlscale.launch.ranks import OverRanks


@dataclass(frozen=True)
class Attempt:
    """One start of the workers.

    Args:
        folder: of the run's attempts, on storage that all workers see.
        number: from 1 on.
    """

    folder: Path
    number: int

    def is_current(self) -> bool:
        """Whether no later one has begun."""
        return _last(self.folder) <= self.number


def begin_attempt(folder: Path, world: World, device: torch.device) -> Attempt:
    """The next attempt; all ranks call this, and have the same."""
    number = 0
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        number = _last(folder) + 1
        (folder / f"{number:06d}").touch()
    return Attempt(folder, int(OverRanks(world, device).from_rank_0(torch.tensor([number]))))


def _last(folder: Path) -> int:
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
