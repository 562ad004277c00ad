"""The order of a round of offline mining: a pure function of (labels, neighbour table, options, seed, round).

Words: a *round* is the steps between two minings; it takes the place of an epoch. A *unit* is an anchor, a sample of
its class and hard negatives of theirs; a *batch* is some units, each sample once, cut into N *streams* (plan.py). So W
decides who reads a sample and never which samples meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning.plan import ListedPlan

MinedSampling = Literal["hard_triplets", "hard_neighbors"]
IntArray = NDArray[np.int64]
_HALVES, _ANCHORS, _UNITS = 1, 2, 3  # what a generator is for; keeps them apart


@dataclass(frozen=True, eq=False)
class NeighborTable:
    """What mining found for n samples; positions refer to their order in the split."""

    nearest_negatives: IntArray  # (n, m) the m nearest samples of other classes, nearest first
    farthest_positive: IntArray  # (n,) the farthest sample of the own class; -1 where there is no other


@dataclass(frozen=True)
class MinedOptions:
    """How mined batches are made.

    Args:
        sampling: hard_triplets: an anchor, the farthest sample of its class, hard negatives of the anchor.
            hard_neighbors: an anchor, any sample of its class, hard negatives of both (Song et al. 2016, section 4.2).
        batch_size: samples of a global batch, before those that stand in it twice are dropped.
        num_streams: N.
        num_steps: of a round.
        num_candidates: m, nearest negatives of a sample that its hard negatives are drawn from.
        num_negatives: hard negatives drawn for the anchor, or for each end of the pair.
    """

    sampling: MinedSampling
    batch_size: int
    num_streams: int
    num_steps: int
    num_candidates: int
    num_negatives: int

    @property
    def unit_size(self) -> int:
        """Samples of a unit."""
        return 2 + self.num_negatives * (1 if self.sampling == "hard_triplets" else 2)

    @property
    def units_per_batch(self) -> int:
        """As many as the batch has room for."""
        return self.batch_size // self.unit_size


def check_mined_plan(labels: NDArray[np.integer], options: MinedOptions) -> None:
    """Raise one clear error if the data cannot be mined so.

    Args:
        labels: (n,) class ids.
        options: of the batches.

    Raises:
        DataError: names the option, its value, and what to do.
    """
    o = options
    mining = f"sampling={o.sampling}"
    if not 1 <= o.num_negatives <= o.num_candidates:
        raise DataError(
            f"mine_negatives={o.num_negatives} are drawn from mine_candidates={o.num_candidates}: "
            f"must be from 1 to {o.num_candidates}"
        )
    units = f"a batch of {o.batch_size} samples holds {o.units_per_batch} units of {o.unit_size}"
    if o.units_per_batch < o.num_streams:
        raise DataError(
            f"{mining}: {units}, fewer than num_streams={o.num_streams}: raise classes_per_batch or samples_per_class "
            f"(their product is the batch), or lower num_streams"
        )
    if not len(labels):
        raise DataError("the split to train on has no samples")
    counts = np.bincount(labels)
    num_anchors, num_others = int(counts[counts > 1].sum()), len(labels) - int(counts.max())
    if not num_anchors:
        raise DataError(f"{mining}: no class has two samples, so there is no positive pair; use sampling=classes")
    if not num_others:
        raise DataError(f"{mining}: there is one class only, so there are no negatives; use sampling=classes")
    if o.num_candidates > num_others:
        raise DataError(
            f"mine_candidates={o.num_candidates}, but the largest class has only {num_others} samples of other "
            f"classes beside it: at most {num_others}"
        )
    if 2 * o.units_per_batch > num_anchors:
        raise DataError(
            f"{mining}: {units}, but the data has {num_anchors} samples in classes of two or more, less than two "
            f"batches of anchors: lower classes_per_batch or samples_per_class"
        )


def plan_round(
    labels: NDArray[np.integer],
    table: NeighborTable,
    options: MinedOptions,
    *,
    seed: int,
    round_number: int,
    row_ids: IntArray | None = None,
) -> ListedPlan:
    """The batches of a round.

    Every sample that has another of its class is an anchor equally often: passes over all of them follow each other
    without regard to the rounds. No batch has an anchor twice. A sample that several units of a batch bring stands in
    it once, so batches differ in size; the streams of a batch differ by at most one sample, and none is empty.

    Args:
        labels: (n,) class ids, which `check_mined_plan` accepts.
        table: of the same samples.
        options: of the batches.
        seed: of the run.
        round_number: 0, 1, ...
        row_ids: (n,) ids of the rows that ``labels`` are of; their positions if not given.

    Returns:
        The plan, in row ids.
    """
    classes = _Classes(labels)
    rng = _generator(seed, _UNITS, round_number)
    per_batch = options.units_per_batch
    num_units = options.num_steps * per_batch
    anchors = _anchors(classes.with_positive, round_number * num_units, num_units, seed)
    batches = []
    for chosen in anchors.reshape(options.num_steps, per_batch):
        units = _units(chosen, classes, table, options, rng).ravel()
        _, first = np.unique(units, return_index=True)
        batches.append(units[np.sort(first)])
    cuts = np.arange(1, options.num_streams + 1)
    ends = np.array([len(batch) for batch in batches])
    begins = np.cumsum(ends) - ends
    bounds = np.concatenate(([0], (begins[:, None] + ends[:, None] * cuts // options.num_streams).ravel()))
    order = np.concatenate(batches)
    return ListedPlan(options.num_steps, options.num_streams, order if row_ids is None else row_ids[order], bounds)


class _Classes:
    """Samples by class, for drawing another sample of a sample's class."""

    def __init__(self, labels: NDArray[np.integer]) -> None:
        counts = np.bincount(labels)
        self._by_class = np.argsort(labels, kind="stable")
        self._size = counts[labels]  # (n,) of the sample's class
        self._first = (np.cumsum(counts) - counts)[labels]  # (n,) where its class begins in _by_class
        self._rank = np.empty_like(self._by_class)  # (n,) its place in its class
        self._rank[self._by_class] = np.arange(len(labels))
        self._rank -= self._first
        self.with_positive = np.flatnonzero(self._size > 1)

    def draw_other(self, samples: IntArray, rng: np.random.Generator) -> IntArray:
        """(q,) for each of (q,) samples another of its class, all of them equally likely."""
        size = self._size[samples]
        rank = (self._rank[samples] + rng.integers(1, size)) % size
        return self._by_class[self._first[samples] + rank]


def _anchors(pool: IntArray, first: int, count: int, seed: int) -> IntArray:
    """(count,) anchors from the ``first`` on, of an endless sequence of passes over the (a,) samples of the pool.

    Each pass shuffles two fixed halves of the pool, one after the other: so no two anchors in a row of a // 2 are
    equal, also where a pass ends and the next begins.
    """
    halves = np.array_split(_generator(seed, _HALVES).permutation(pool), 2)
    passes = range(first // len(pool), -(-(first + count) // len(pool)))
    shuffled = [rng.permutation(half) for rng in (_generator(seed, _ANCHORS, n) for n in passes) for half in halves]
    start = first - passes.start * len(pool)
    return np.concatenate(shuffled)[start : start + count]


def _units(
    anchors: IntArray, classes: _Classes, table: NeighborTable, options: MinedOptions, rng: np.random.Generator
) -> IntArray:
    """(u, unit_size): anchor, positive, hard negatives of the anchor, and for hard_neighbors those of the positive."""
    if options.sampling == "hard_triplets":
        positives, ends = table.farthest_positive[anchors], [anchors]
    else:
        positives = classes.draw_other(anchors, rng)
        ends = [anchors, positives]
    negatives = []
    for end in ends:
        candidates = table.nearest_negatives[end]
        drawn = rng.permuted(np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape), axis=1)
        negatives.append(np.take_along_axis(candidates, drawn[:, : options.num_negatives], axis=1))
    return np.concatenate([anchors[:, None], positives[:, None], *negatives], axis=1)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
