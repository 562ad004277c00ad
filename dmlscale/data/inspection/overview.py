"""What a packed dataset holds, in numbers: all that a person wants to know before training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from dmlscale.data.index import Index
from dmlscale.data.inspection.histogram import Bin, log_histogram
from dmlscale.data.statistics import CHUNK, SplitStatistics, class_counts, split_statistics

_GROUP_SIZES = (2, 4, 8, 16, 32, 64)


class ClassSize(NamedTuple):
    """A class and its number of samples."""

    name: str
    num_samples: int


class GroupChoice(NamedTuple):
    """What ``samples_per_class`` = K finds in a split."""

    samples_per_class: int
    num_classes: int  # with K samples or more: P may be as large with no group smaller than K
    num_samples: int  # of these classes


@dataclass(frozen=True)
class SplitOverview:
    """One split. Sizes are bytes of a sample, all of its parts together."""

    numbers: SplitStatistics
    smallest_bytes: int
    median_bytes: float
    largest_bytes: int
    fewest_parts: int  # files of a sample
    most_parts: int
    extensions: Mapping[str, int]  # samples
    num_super_classes: int  # 0 where no class has one
    histogram: tuple[Bin, ...]  # classes by number of samples
    group_choices: tuple[GroupChoice, ...]
    largest: tuple[ClassSize, ...]
    smallest: tuple[ClassSize, ...]


class Overlap(NamedTuple):
    """Classes that two splits share: none is what zero-shot means."""

    splits: tuple[str, str]
    num_shared: int


@dataclass(frozen=True)
class Overview:
    """A dataset."""

    path: str
    source: str
    options: Mapping[str, Any]  # of the source
    input: str
    num_shards: int
    num_bytes: int  # of the shards
    smallest_shard: int  # bytes
    largest_shard: int
    splits: Mapping[str, SplitOverview]
    overlaps: tuple[Overlap, ...]  # of every pair of splits
    num_empty_classes: int
    num_rejects: int
    rejects: Mapping[str, int]  # samples by reason, the most frequent ones
    num_duplicates: int
    num_duplicates_across_splits: int


def look_at(index: Index, splits: Sequence[str] | None = None, *, num_listed: int = 5) -> Overview:
    """Count what is in a dataset.

    Args:
        index: of the whole dataset.
        splits: to describe; None takes all. Overlaps are told of all in any case.
        num_listed: largest and smallest classes to name.

    Raises:
        DataError: there is no such split.
    """
    columns, shards, told = index.columns, index.shards, index.description
    views = {name: index.split(name) for name in (index.splits if splits is None else splits)}
    counts = class_counts(columns.splits, columns.labels, len(index.splits), len(index.classes))
    numbers = split_statistics(columns.splits, columns.labels, columns.sizes, index.splits, len(index.classes))
    return Overview(
        path=str(index.storage),
        source=told["source"],
        options=told["options"],
        input=told["input"],
        num_shards=len(shards.names),
        num_bytes=int(shards.sizes.sum()),
        smallest_shard=int(shards.sizes.min()),
        largest_shard=int(shards.sizes.max()),
        splits={
            name: _split(view, counts[index.splits.index(name)], numbers[name], num_listed)
            for name, view in views.items()
            if len(view)
        },
        overlaps=tuple(
            Overlap((index.splits[a], index.splits[b]), int(((counts[a] > 0) & (counts[b] > 0)).sum()))
            for a, b in combinations(np.flatnonzero(counts.any(axis=1)).tolist(), 2)
        ),
        num_empty_classes=told["num_empty_classes"],
        num_rejects=told["num_rejects"],
        rejects=told["rejects"],
        num_duplicates=told["num_duplicates"],
        num_duplicates_across_splits=told["num_duplicates_across_splits"],
    )


def _split(view: Index, counts: NDArray[np.int64], numbers: SplitStatistics, num_listed: int) -> SplitOverview:
    columns = view.columns
    where = slice(view.rows.start, view.rows.stop) if isinstance(view.rows, range) else view.rows
    sizes, parts = columns.sizes[where], columns.num_parts[where]
    labels = np.flatnonzero(counts)
    ascending = labels[np.argsort(counts[labels], kind="stable")]
    descending = labels[np.argsort(-counts[labels], kind="stable")]

    def listed(chosen: NDArray[np.int64]) -> tuple[ClassSize, ...]:
        return tuple(ClassSize(view.class_names[label], int(counts[label])) for label in chosen[:num_listed].tolist())

    return SplitOverview(
        numbers=numbers,
        smallest_bytes=int(sizes.min()),
        median_bytes=float(np.median(sizes)),
        largest_bytes=int(sizes.max()),
        fewest_parts=int(parts.min()),
        most_parts=int(parts.max()),
        extensions=_extensions(view, columns.extensions[where]),
        num_super_classes=_num_super_classes(view, labels),
        histogram=log_histogram(counts[labels]),
        group_choices=_group_choices(counts[labels]),
        largest=listed(descending),
        smallest=listed(ascending),
    )


def _extensions(view: Index, codes: NDArray[np.int8]) -> dict[str, int]:
    counts = np.zeros(len(view.extensions), np.int64)
    for start in range(0, len(codes), CHUNK):  # bincount makes eight bytes of each
        counts += np.bincount(codes[start : start + CHUNK], minlength=len(counts))
    order = np.argsort(-counts, kind="stable").tolist()
    return {view.extensions[code]: int(counts[code]) for code in order if counts[code]}


def _num_super_classes(view: Index, labels: NDArray[np.int64]) -> int:
    found = pc.unique(view.classes.column("super_class").take(labels)).to_pylist()
    return len([name for name in found if name])


def _group_choices(counts: NDArray[np.int64]) -> tuple[GroupChoice, ...]:
    """For those K of which some class has so many samples."""
    choices = []
    for number in _GROUP_SIZES:
        enough = counts[counts >= number]
        if len(enough):
            choices.append(GroupChoice(number, len(enough), int(enough.sum())))
    return tuple(choices)
