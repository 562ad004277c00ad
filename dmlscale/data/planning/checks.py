"""Whether the data can be batched as asked: one clear error before any work is spent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning import hierarchy, positives
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.quotas import quotas_of
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.planning.windows import ShardRows, window_sizes

_MOST_GROUPS = 2**31 - 1  # the layout numbers them with 32 bits


def check_plan(
    class_rows: ClassRows,
    sampling: Sampling,
    *,
    super_classes: NDArray[np.int64] | None = None,
    shards: ShardRows | None = None,
) -> None:
    """Raise one clear error if the data cannot be batched so.

    Args:
        class_rows: of the split.
        sampling: options.
        super_classes: (C,) the super-class of each class, for ``hierarchical``.
        shards: where the rows lie, for ``window_shards``.

    Raises:
        DataError: names the option, its value, and what the data offers.
    """
    _check_values(sampling)
    if not len(class_rows):
        raise DataError("the split to train on has no samples")
    counts = class_rows.counts
    _check_sizes(counts, sampling)
    if sampling.window_shards:
        _check_windows(sampling, shards)
    quotas = quotas_of(counts, sampling)
    if int(quotas.sum()) > _MOST_GROUPS:
        raise DataError(
            f"samples_per_class={sampling.samples_per_class} makes {quotas.sum()} groups an epoch, at most "
            f"{_MOST_GROUPS} can be planned: raise samples_per_class or set max_samples_per_class"
        )
    if sampling.name == "hierarchical":
        _check_hierarchy(quotas, sampling, super_classes)
    if sampling.name == "all_positives":
        _check_smallest(sampling, positives.smallest_batch(quotas, counts, sampling), "samples", "")


def _check_values(sampling: Sampling) -> None:
    """The options by themselves."""
    s = sampling
    at_least_one = {
        "classes_per_batch": s.classes_per_batch,
        "samples_per_class": s.samples_per_class,
        "num_streams": s.num_streams,
        "super_classes_per_batch": s.super_classes_per_batch,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise DataError(f"{name}={value}, must be at least 1")
    dividing = {"num_streams": s.num_streams, "super_classes_per_batch": s.super_classes_per_batch}
    for name, value in dividing.items():
        if s.classes_per_batch % value:
            divisors = [n for n in range(1, s.classes_per_batch + 1) if s.classes_per_batch % n == 0]
            raise DataError(
                f"{name}={value} does not divide classes_per_batch={s.classes_per_batch}: "
                f"choose one of {', '.join(map(str, divisors))}"
            )
    if not 0 <= s.frequency_power <= 1:
        raise DataError(f"frequency_power={s.frequency_power}, must be from 0 (as balanced) to 1 (as classes)")
    if s.max_samples_per_class is not None and s.max_samples_per_class < s.samples_per_class:
        raise DataError(
            f"max_samples_per_class={s.max_samples_per_class} is less than samples_per_class={s.samples_per_class}, "
            f"one group: raise it or lower samples_per_class"
        )
    if s.window_shards < 0:
        raise DataError(f"window_shards={s.window_shards}, must be 0 (none) or a number of shards")


def _check_sizes(counts: NDArray[np.int64], sampling: Sampling) -> None:
    """Whether the data fills a batch."""
    s = sampling
    num_classes, largest = int(np.count_nonzero(counts)), int(counts.max())
    wanted = f"batches of {s.classes_per_batch} classes x {s.samples_per_class} samples"
    asked = f"{wanted} are larger than the data offers"
    if s.name == "all_positives":
        if s.batch_size > counts.sum():
            raise DataError(f"{asked}, {counts.sum()} samples: lower classes_per_batch={s.classes_per_batch}")
        return
    if s.classes_per_batch > num_classes:
        raise DataError(f"{asked}: classes_per_batch={s.classes_per_batch}, but there are {num_classes} classes")
    if s.samples_per_class > largest:
        raise DataError(
            f"{asked}: samples_per_class={s.samples_per_class}, but the largest class has {largest} samples"
        )


def _check_windows(sampling: Sampling, shards: ShardRows | None) -> None:
    s = sampling
    asked = f"window_shards={s.window_shards}"
    if s.name != "classes" or s.max_samples_per_class is not None:
        option = f"sampling={s.name}" if s.name != "classes" else f"max_samples_per_class={s.max_samples_per_class}"
        raise DataError(f"{asked} goes with sampling=classes alone, not with {option}: set window_shards=0 or leave it")
    if shards is None:
        raise DataError(f"{asked}, but the dataset is not in shards: set window_shards=0")
    used, sizes = window_sizes(shards, s.window_shards)
    fewest = int(np.sort(np.diff(shards.bounds)[used])[: int(sizes.min())].sum())
    # A group has at most K samples.
    if -(-fewest // s.samples_per_class) < s.num_streams:
        raise DataError(
            f"{asked}: a window may hold as few as {fewest} samples, which may be fewer groups of "
            f"samples_per_class={s.samples_per_class} than num_streams={s.num_streams}: "
            f"raise window_shards or lower num_streams"
        )


def _check_hierarchy(quotas: NDArray[np.int64], sampling: Sampling, super_classes: NDArray[np.int64] | None) -> None:
    asked = "sampling=hierarchical"
    if super_classes is None:
        raise DataError(f"{asked} needs super-classes, and the dataset has none: use sampling=classes")
    if len(super_classes) != len(quotas) or super_classes.min() < 0:
        raise DataError(
            f"{asked}: {len(super_classes)} super-class numbers for {len(quotas)} classes; each class needs one, "
            f"0 or more"
        )
    num_super = len(np.unique(super_classes[quotas > 0]))
    if sampling.super_classes_per_batch > num_super:
        raise DataError(
            f"super_classes_per_batch={sampling.super_classes_per_batch}, but there are {num_super} super-classes"
        )
    smallest = hierarchy.smallest_batch(quotas, super_classes, sampling)
    _check_smallest(sampling, smallest, "groups", " or raise super_classes_per_batch")


def _check_smallest(sampling: Sampling, smallest: int, unit: str, instead: str) -> None:
    if smallest < sampling.num_streams:
        raise DataError(
            f"sampling={sampling.name}: a batch may have as few as {smallest} {unit}, fewer than "
            f"num_streams={sampling.num_streams}: lower num_streams to at most {smallest}{instead}"
        )
