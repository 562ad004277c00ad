"""Counts of a dataset: what the packer prints and `dmlscale inspect` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**22  # rows looked at together


class SplitStatistics(NamedTuple):
    """One split in numbers."""

    num_samples: int
    num_classes: int
    smallest_class: int  # samples
    median_class: float
    largest_class: int
    num_single: int  # classes of one sample, which have no positive pair
    num_bytes: int  # of the samples, without tar headers

    def __str__(self) -> str:
        of_one = f", {self.num_single:,} of them with one" if self.num_single else ""
        return (
            f"{self.num_samples:,} samples, {self.num_classes:,} classes of {self.smallest_class:,} to "
            f"{self.largest_class:,} samples (median {self.median_class:g}{of_one}), {self.num_bytes / 1e6:,.1f} MB"
        )


def class_counts(
    splits: NDArray[np.int8], labels: NDArray[np.int32], num_splits: int, num_classes: int
) -> NDArray[np.int64]:
    """(splits, classes) number of samples."""
    counts = np.zeros(num_splits * num_classes, np.int64)
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        np.add.at(counts, splits[part].astype(np.int64) * num_classes + labels[part], 1)
    return counts.reshape(num_splits, num_classes)


def split_statistics(
    splits: NDArray[np.int8],
    labels: NDArray[np.int32],
    sizes: NDArray[np.int64],
    split_names: Sequence[str],
    num_classes: int,
) -> dict[str, SplitStatistics]:
    """Numbers by split, without those that have no sample.

    Args:
        splits: (n,) positions in ``split_names``.
        labels: (n,)
        sizes: (n,) bytes.
        split_names: in the order to show.
        num_classes: number of labels.
    """
    counts = class_counts(splits, labels, len(split_names), num_classes)
    num_bytes = np.zeros(len(split_names), np.int64)
    for start in range(0, len(labels), CHUNK):
        np.add.at(num_bytes, splits[start : start + CHUNK], sizes[start : start + CHUNK])
    statistics = {}
    for code, name in enumerate(split_names):
        present = counts[code][counts[code] > 0]
        if len(present):
            statistics[name] = SplitStatistics(
                num_samples=int(present.sum()),
                num_classes=len(present),
                smallest_class=int(present.min()),
                median_class=float(np.median(present)),
                largest_class=int(present.max()),
                num_single=int((present == 1).sum()),
                num_bytes=int(num_bytes[code]),
            )
    return statistics


def duplicates(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose content an earlier row has.

    Returns:
        (d,) rows, ascending, and (d,) the first row with the same content.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    first = order[is_new]
    group = np.cumsum(is_new) - 1
    later = ~is_new
    rows, originals = order[later], first[group[later]]
    ascending = np.argsort(rows)
    return rows[ascending], originals[ascending]


def as_json(statistics: Mapping[str, SplitStatistics]) -> dict[str, dict[str, Any]]:
    """Plain values, for dataset.json."""
    return {name: numbers._asdict() for name, numbers in statistics.items()}
