"""Each start of a run's workers has a number, so that workers of an earlier one that were cut off do no harm.

Such workers may live on for minutes on a node that nobody can reach, while the run goes on elsewhere. They name their
files by their number, and look whether there is a higher one before they write what others also write.
"""

from __future__ import annotations

import json
import socket
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
        hosts: of its ranks.
    """

    folder: Path
    number: int
    hosts: tuple[str, ...] = ()

    def is_current(self) -> bool:
        """Whether no later one has begun."""
        return _last(self.folder) <= self.number


def begin_attempt(folder: Path, world: World, device: torch.device) -> Attempt:
    """The next attempt; all ranks call this, and have the same."""
    ranks = OverRanks(world, device)
    hosts = ranks.texts(socket.gethostname())
    number = 0
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        number = _last(folder) + 1
        unseen = folder / f".{number:06d}"
        unseen.write_text(json.dumps({"hosts": hosts}) + "\n")
        unseen.replace(folder / f"{number:06d}")
    return Attempt(folder, int(ranks.from_rank_0(torch.tensor([number]))), tuple(hosts))


def last_attempt(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Number of the newest attempt, 0 if there is none, and the host of each of its ranks."""
    number = _last(folder) if folder.is_dir() else 0
    if number == 0:
        return 0, ()
    text = (folder / f"{number:06d}").read_text()
    return number, tuple(json.loads(text)["hosts"]) if text else ()


def _last(folder: Path) -> int:
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
