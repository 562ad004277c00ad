"""Offline mining inside a worker: embed the training split with the model as it is, search, tell, keep the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import average_buffers
from dmlscale.evaluation.embed import Embedded, embed
from dmlscale.evaluation.evaluate import gather_embedded
from dmlscale.evaluation.hard_samples import Mined, mine_hard_samples
from dmlscale.launch.build import build_eval_batches
from dmlscale.launch.mined_tables import TableStore
from dmlscale.launch.ranks import OverRanks
from dmlscale.launch.task import Task
from dmlscale.training.loop import DivergedError


class Miner:
    """The `Mine` that a training stream with offline mining is given.

    Args:
        task: the training.
        index: the dataset.
        model: the network, not wrapped for data parallelism; its modules keep their modes.
        world: the ranks; all of them call this together.
        device: of the model.
        say: tells the user; called on every rank.
        log: (metrics, step) to the tracker.
        rounds_in_use: those whose tables checkpoints need.

    Raises:
        DivergedError: when called: the embeddings hold NaN or infinity; on all ranks alike.
    """

    def __init__(
        self,
        task: Task,
        index: Index,
        model: nn.Module,
        world: World,
        device: torch.device,
        *,
        say: Callable[[str], None],
        log: Callable[[dict[str, float], int], None],
        rounds_in_use: Callable[[], set[int]],
    ) -> None:
        self._config, self._index, self._model = task.settings, index, model
        self._world, self._device = world, device
        self._say, self._log = say, log
        self._ranks = OverRanks(world, device)
        self._store = TableStore(Path(task.folder) / "mined", rounds_in_use)

    def __call__(self, round_number: int, *, is_new: bool) -> NeighborTable:
        """The table of a round: mined, or read where a run continues within it."""
        if not is_new:
            table = self._stored(round_number)
            if table is not None:
                return table
            self._say(
                f"{self._store.path(round_number)} is gone or damaged: mining with the model as it is now, so the "
                f"rest of round {round_number} is not what it would have been"
            )
        return self._mine(round_number)

    def _mine(self, round_number: int) -> NeighborTable:
        started = time.perf_counter()
        mined = self._search()
        seconds = time.perf_counter() - started
        if self._world.rank == 0:
            self._store.write(round_number, mined.table)
        metric = self._config.evaluation.metric
        kind = "similarity" if metric == "cosine" else "distance"
        step = round_number * self._config.data.mine_every
        self._log({"data/mining_seconds": seconds, f"data/nearest_negative_{kind}": mined.nearest_negative}, step)
        num_samples = len(mined.table.farthest_positive)
        self._say(
            f"mined {num_samples:,} samples for round {round_number} in {seconds:.1f} s: "
            f"nearest negatives at {metric} {kind} {mined.nearest_negative:.3f}"
        )
        return mined.table

    def _search(self) -> Mined:
        average_buffers(self._model, self._world)
        split = self._config.data.train_split
        local = embed(self._model, build_eval_batches(self._config, self._index, split, self._world), self._device)
        everything, _ = gather_embedded(local, self._ranks.gather, rank=self._world.rank)
        self._require_finite(everything)
        missing = np.setdiff1d(self._index.split(split).row_ids, everything.ids.numpy())
        if len(missing):
            raise DataError(
                f"{len(missing)} samples of {split!r} cannot be read, e.g. {self._index.where(int(missing[0]))}: "
                f"offline mining needs all of them; repair the shards or use data.sampling=classes"
            )
        return mine_hard_samples(
            everything.embeddings.numpy(),
            everything.labels.numpy(),
            self._config.data.mine_candidates,
            metric=self._config.evaluation.metric,
            gather=self._ranks.gather,
            all_sum=self._ranks.all_sum,
            rank=self._world.rank,
            num_ranks=self._world.num_ranks,
        )

    def _require_finite(self, everything: Embedded) -> None:
        """On all ranks alike: all have everything."""
        broken = ~torch.isfinite(everything.embeddings).all(1)
        if not broken.any():
            return
        if broken.all():
            raise DivergedError("the model's embeddings are no longer finite numbers: lower the learning rates")
        raise DivergedError(
            f"the embeddings of {int(broken.sum()):,} of {len(broken):,} training samples are not finite numbers, "
            f"first that of {self._index.where(int(everything.ids[broken].min()))}, but offline mining needs all of "
            f"them: take these samples out of the data, use data.sampling=classes, or lower the learning rates"
        )

    def _stored(self, round_number: int) -> NeighborTable | None:
        """Rank 0's, on every rank: others may not see its file yet, or not the same one."""
        shape = (len(self._index.split(self._config.data.train_split)), self._config.data.mine_candidates)
        table = self._store.read(round_number, *shape) if self._world.rank == 0 else None
        found = int(self._ranks.from_rank_0(torch.tensor([int(table is not None)])))
        if not found:
            return None
        columns = torch.zeros(shape[0], shape[1] + 1, dtype=torch.int64)
        if table is not None:
            columns = torch.from_numpy(np.column_stack([table.nearest_negatives, table.farthest_positive]))
        shared: Tensor = self._ranks.from_rank_0(columns)
        return NeighborTable(shared[:, :-1].numpy(), shared[:, -1].numpy())
