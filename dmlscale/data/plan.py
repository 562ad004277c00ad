"""The order of an epoch: pure functions of (labels, options, seed, epoch), the same for any number of ranks.

Words: a *group* is up to K samples of one class; a *batch* is the groups of one step over all ranks, up to P
of them, of different classes; a *stream* is one of N equal lanes that every batch is dealt to. Rank r of W
serves streams r, r + W, ...; so W decides who reads a sample and never which samples meet.

Random numbers come from ``numpy.random.Generator``, which may change with a major version of numpy: a run is
continued with the numpy it was started with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.rows import fill_rows


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch: every sample exactly once, by step and stream."""

    num_steps: int
    num_streams: int
    order: NDArray[np.int64]  # (n,) positions of samples, by step, then stream, then group
    bounds: NDArray[np.int64]  # (num_steps * num_streams + 1,) where each sub-batch begins in ``order``

    def sub_batch(self, stream: int, step: int) -> NDArray[np.int64]:
        """(b,) positions of the samples that ``stream`` gives to batch ``step``."""
        cell = step * self.num_streams + stream
        return self.order[self.bounds[cell] : self.bounds[cell + 1]]

    def batch(self, step: int) -> NDArray[np.int64]:
        """(B,) positions of the samples of the whole batch ``step``."""
        first = step * self.num_streams
        return self.order[self.bounds[first] : self.bounds[first + self.num_streams]]


def check_plan(labels: NDArray[np.int64], *, classes_per_batch: int, samples_per_class: int, num_streams: int) -> None:
    """Raise one clear error if the data cannot be batched so.

    Args:
        labels: (n,) class ids.
        classes_per_batch: P.
        samples_per_class: K.
        num_streams: N.

    Raises:
        DataError: names the option, its value, and what the data offers.
    """
    for name, value in (
        ("classes_per_batch", classes_per_batch),
        ("samples_per_class", samples_per_class),
        ("num_streams", num_streams),
    ):
        if value < 1:
            raise DataError(f"{name}={value}, must be at least 1")
    if classes_per_batch % num_streams:
        divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0]
        raise DataError(
            f"num_streams={num_streams} does not divide classes_per_batch={classes_per_batch}: "
            f"choose one of {', '.join(map(str, divisors))}"
        )
    if not len(labels):
        raise DataError("the split to train on has no samples")
    counts = np.bincount(labels)
    num_classes, largest = int(np.count_nonzero(counts)), int(counts.max())
    wanted = f"batches of {classes_per_batch} classes x {samples_per_class} samples"
    asked = f"{wanted} are larger than the data offers"
    if classes_per_batch > num_classes:
        raise DataError(f"{asked}: classes_per_batch={classes_per_batch}, but there are {num_classes} classes")
    if samples_per_class > largest:
        raise DataError(f"{asked}: samples_per_class={samples_per_class}, but the largest class has {largest} samples")


def num_steps(labels: NDArray[np.int64], *, classes_per_batch: int, samples_per_class: int, num_streams: int) -> int:
    """Batches per epoch; the same for every epoch, seed and number of ranks.

    As many as hold P groups each, the last ones' shortfall spread over all. With as many streams as classes
    per batch that would leave streams without a group: then there are fewer batches, each up to a factor 1 +
    1/num_steps above P groups.
    """
    counts = np.bincount(labels)
    num_groups = int((-(-counts // samples_per_class)).sum())
    return max(1, min(-(-num_groups // classes_per_batch), num_groups // num_streams))


def plan_epoch(
    labels: NDArray[np.int64],
    *,
    classes_per_batch: int,
    samples_per_class: int,
    num_streams: int,
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Deal every sample once into the batches and streams of an epoch.

    Each class is shuffled and cut into groups of equal size (up to one sample), which are spread over the
    epoch. No batch has two groups of a class, unless the class has more groups than there are batches.
    Batches differ by at most one group, and so do the streams of a batch; none is empty.

    Args:
        labels: (n,) class ids.
        classes_per_batch: P.
        samples_per_class: K.
        num_streams: N, a divisor of P.
        seed: of the run.
        epoch: 0, 1, ...

    Returns:
        The plan; positions refer to ``labels``.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
    steps = num_steps(
        labels,
        classes_per_batch=classes_per_batch,
        samples_per_class=samples_per_class,
        num_streams=num_streams,
    )
    by_class, group_sizes, groups_of_class = _cut_groups(labels, samples_per_class, rng)
    group_starts = np.cumsum(group_sizes) - group_sizes

    step_of_group, row_of_group = fill_rows(groups_of_class, steps, rng)
    # The stream with one group more moves on from step to step.
    stream_of_group = (row_of_group + step_of_group) % num_streams
    cell_of_group = step_of_group * num_streams + stream_of_group
    group_order = np.lexsort((row_of_group, cell_of_group))

    sizes = group_sizes[group_order]
    begins = np.cumsum(sizes) - sizes
    order = by_class[np.repeat(group_starts[group_order] - begins, sizes) + np.arange(len(labels))]
    sizes_of_cell = np.bincount(cell_of_group, weights=group_sizes, minlength=steps * num_streams)
    bounds = np.concatenate(([0], np.cumsum(sizes_of_cell))).astype(np.int64)
    return EpochPlan(steps, num_streams, order, bounds)


def _cut_groups(
    labels: NDArray[np.int64], samples_per_class: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shuffle each class and cut it into groups of at most K samples.

    Returns:
        (n,) positions by class; (groups,) sizes, in the same order; (classes,) number of groups.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    groups_of_class = -(-counts // samples_per_class)
    smaller, num_larger = np.divmod(counts, groups_of_class)
    first_group = np.cumsum(groups_of_class) - groups_of_class
    rank_in_class = np.arange(groups_of_class.sum()) - np.repeat(first_group, groups_of_class)
    sizes = np.repeat(smaller, groups_of_class) + (rank_in_class < np.repeat(num_larger, groups_of_class))
    return by_class, sizes, groups_of_class


def streams_of_rank(rank: int, num_ranks: int, num_streams: int) -> range:
    """The streams that ``rank`` serves: rank, rank + num_ranks, ...

    Raises:
        DataError: there are more ranks than streams, so that some rank would have none.
    """
    if num_ranks > num_streams:
        raise DataError(
            f"{num_ranks} workers share num_streams={num_streams}: at most one worker per stream; "
            f"raise num_streams (a divisor of classes_per_batch) or use fewer workers"
        )
    if not 0 <= rank < num_ranks:
        raise DataError(f"rank {rank} is not one of 0..{num_ranks - 1}")
    return range(rank, num_streams, num_ranks)
