"""The plans of the rounds of a training stream with offline mining: each is made when its round begins."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning.mined_plan import MinedOptions, NeighborTable, check_mined_plan, plan_round
from dmlscale.data.planning.plan import EpochPlan

_KEPT = 2  # the round at hand, and the one before, whose last batch the caller may still ask about


class Mine(Protocol):
    """Finds the hard samples of the split to train on; all ranks call it together and get the same table."""

    def __call__(self, round_number: int, *, is_new: bool) -> NeighborTable:
        """The table of a round; ``is_new`` is False where a run continues in the middle of the round."""
        ...


class MinedRounds:
    """Plans by round.

    Args:
        labels: (n,) class ids of the split to train on.
        row_ids: (n,) of its samples.
        options: of the batches.
        seed: of the run.
        mine: called once for each round, before its first batch is made.

    Raises:
        DataError: the data cannot be mined so.
    """

    def __init__(
        self,
        labels: NDArray[np.integer],
        row_ids: NDArray[np.int64],
        options: MinedOptions,
        *,
        seed: int,
        mine: Mine,
    ) -> None:
        check_mined_plan(labels, options)
        self._row_ids = row_ids
        self._labels, self._options, self._seed, self._mine = labels, options, seed, mine
        self._plans: dict[int, EpochPlan] = {}

    def num_steps(self, round_number: int) -> int:
        """Batches of a round; the same for all."""
        return self._options.num_steps

    @property
    def num_streams(self) -> int:
        """N."""
        return self._options.num_streams

    def prepare(self, round_number: int, *, is_new: bool) -> None:
        """Mines a round, unless that has been done. Call it on every rank, from the thread that trains."""
        if round_number in self._plans:
            return
        table = self._mine(round_number, is_new=is_new)
        plan = plan_round(
            self._labels, table, self._options, seed=self._seed, round_number=round_number, row_ids=self._row_ids
        )
        before = list(self._plans.items())[-(_KEPT - 1) :]
        self._plans = {**dict(before), round_number: plan}

    def plan(self, round_number: int) -> EpochPlan:
        """The plan of a round that was prepared; the newest two are kept.

        Raises:
            DataError: it was not, or is no longer kept.
        """
        plan = self._plans.get(round_number)
        if plan is None:
            raise DataError(f"round {round_number} of mining is not at hand (there are: {sorted(self._plans)})")
        return plan
