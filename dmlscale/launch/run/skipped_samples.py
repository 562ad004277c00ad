"""Training samples that could not be read: counted over all ranks, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from dmlscale.data.reader import LossKind
from dmlscale.data.skipped import KINDS, Skipped
from dmlscale.launch.ranks import OverRanks


class SkippedCount:
    """What a run has left out so far; all ranks call the same methods at the same steps.

    Args:
        ranks: the ranks.
        message: takes one line, whenever there are more of them.
    """

    def __init__(self, ranks: OverRanks, *, message: Callable[[str], None]) -> None:
        self._ranks, self._message = ranks, message
        self._kinds: dict[int, LossKind] = {}  # by row: in another epoch another rank may meet the same sample

    def add(self, skipped: Skipped) -> int:
        """Counts what this rank has met since the last call; returns how many there are in all."""
        new = torch.tensor(skipped.take_new(), dtype=torch.int64).reshape(-1, 2)
        new = self._ranks.gather(new)
        self._kinds |= {row: KINDS[kind] for row, kind in new.tolist()}
        if len(new):
            counts = self.by_kind()
            why = ", ".join(f"{count:,} x {kind}" for kind, count in counts.items())
            self._message(f"{sum(counts.values()):,} training samples skipped so far: {why}")
        return len(self._kinds)

    def by_kind(self) -> dict[str, int]:
        """Why they could not be read -> how many."""
        return dict(Counter(self._kinds.values()))
