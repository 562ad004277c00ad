"""Retrieval and clustering metrics, as pure functions of neighbour labels.

q queries, k neighbours per query, R = number of relevant gallery items of a query: those of its class, without the
query itself where a set is searched with itself. Every retrieval metric is a mean over the queries with R >= 1: a
query without a relevant item cannot be answered, so it is left out (as pytorch-metric-learning does) and counted apart.
Means are kept as (sum, count) pairs until the end, so that ranks can add theirs up before the one division.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

IntArray = NDArray[np.int64]
Ints = NDArray[np.integer] | Tensor
Sums = dict[str, tuple[float, int]]

NO_NEIGHBOR = np.iinfo(np.int64).min
"""The label that pads a row of neighbours where the gallery had fewer than k items."""


def query_scores(
    neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints, ks: Sequence[int] = (1, 2, 4, 8)
) -> dict[str, NDArray[np.float64]]:
    """The retrieval metrics of each single query.

    Args:
        neighbor_labels: (q, k), class of the i-th nearest gallery item, never the query itself; padded with
            `NO_NEIGHBOR`; k >= max(max(num_relevant), max(ks)).
        query_labels: (q,).
        num_relevant: (q,), R of each query.
        ks: for which k Recall@k is wanted.

    Returns:
        `recall_at_<k>`, `precision_at_1`, `r_precision`, `map_at_r` -> (q,) in [0, 1]; NaN where R = 0.

    Raises:
        ValueError: k is too small.

    Source: Musgrave et al. 2020, arXiv:2003.08505, section 3.2 (R-precision, MAP@R); Oh Song et al. 2016,
        arXiv:1511.06452 (Recall@K: is any of the first K of the query's class?).
    """
    neighbors, labels, relevant = (np.asarray(values) for values in (neighbor_labels, query_labels, num_relevant))
    num_columns = neighbors.shape[1]
    needed = max([*ks, int(relevant.max(initial=1))])
    if num_columns < needed:
        raise ValueError(f"{num_columns} neighbours per query are too few: these metrics need {needed}")
    is_relevant = neighbors == labels[:, None]  # (q, k)
    answerable = relevant > 0
    divisor = np.where(answerable, relevant, 1).astype(np.float64)

    positions = np.arange(1, num_columns + 1)
    within_r = is_relevant & (positions <= relevant[:, None])
    precision_here = np.cumsum(is_relevant, axis=1) / positions

    first_hit = np.where(is_relevant.any(axis=1), is_relevant.argmax(axis=1), num_columns)
    scores: dict[str, NDArray[np.float64]] = {f"recall_at_{k}": (first_hit < k).astype(np.float64) for k in ks}
    scores["precision_at_1"] = is_relevant[:, 0].astype(np.float64)
    scores["r_precision"] = within_r.sum(axis=1) / divisor
    scores["map_at_r"] = (precision_here * within_r).sum(axis=1) / divisor
    return {name: np.where(answerable, values, np.nan) for name, values in scores.items()}


def retrieval_sums(
    neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints, ks: Sequence[int] = (1, 2, 4, 8)
) -> Sums:
    """(sum, count) of each retrieval metric over the queries that can be answered.

    Args and errors as for `query_scores`; `count` is the number of queries with R >= 1.
    """
    scores = query_scores(neighbor_labels, query_labels, num_relevant, ks)
    count = int((np.asarray(num_relevant) > 0).sum())
    return {name: (float(np.nansum(values)), count) for name, values in scores.items()}


def means(sums: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Sum / count of each metric.

    Raises:
        ValueError: no query can be answered.
    """
    if any(count == 0 for _, count in sums.values()):
        raise ValueError("no query has a relevant item: there is nothing to retrieve")
    return {name: total / count for name, (total, count) in sums.items()}


def recall_at_k(neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints, k: int) -> float:
    """Share of queries with at least one item of their class among the first k neighbours.

    Needs only k columns. Args and errors as for `query_scores` and `means`.
    """
    neighbors, labels, relevant = (np.asarray(values) for values in (neighbor_labels, query_labels, num_relevant))
    at_most_k = np.minimum(relevant, k)  # recall does not look behind column k, so those columns may be absent
    return means(retrieval_sums(neighbors, labels, at_most_k, ks=(k,)))[f"recall_at_{k}"]


def precision_at_1(neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints) -> float:
    """Share of queries whose nearest neighbour is of their class (equal to Recall@1)."""
    return recall_at_k(neighbor_labels, query_labels, num_relevant, k=1)


def r_precision(neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints) -> float:
    """Mean share of relevant items among the first R neighbours. Args and errors as for `query_scores`."""
    return means(retrieval_sums(neighbor_labels, query_labels, num_relevant, ks=()))["r_precision"]


def map_at_r(neighbor_labels: Ints, query_labels: Ints, num_relevant: Ints) -> float:
    """Mean average precision over the first R neighbours of each query.

    Equals, for one query, ``(1/R) * sum_{i<=R} precision(i) * is_relevant(i)``. Args and errors as for
    `query_scores`.

    Source: Musgrave et al. 2020, arXiv:2003.08505, section 3.2. Differs from it in: nothing.
    """
    return means(retrieval_sums(neighbor_labels, query_labels, num_relevant, ks=()))["map_at_r"]


@dataclass(frozen=True)
class PerClass:
    """Sums of metrics over the queries of each class: what means and their confidence intervals come from.

    Args:
        labels: (C,) classes of the queries, ascending.
        sums: metric -> (C,) float64, its sum over the class's queries.
        counts: metric -> (C,) int64, how many queries are in the sum.
    """

    labels: IntArray
    sums: Mapping[str, NDArray[np.float64]]
    counts: Mapping[str, IntArray]

    @property
    def num_queries(self) -> IntArray:
        """(C,) queries that have something to find."""
        return self.counts["precision_at_1"]

    def mean(self, name: str) -> NDArray[np.float64]:
        """(C,) mean of a metric in each class, NaN where no query of it is in the sum."""
        counts = self.counts[name]
        return np.where(counts > 0, self.sums[name] / np.maximum(counts, 1), np.nan)

    def means(self) -> dict[str, float]:
        """Mean of each metric over all queries."""
        return {name: float(sums.sum() / self.counts[name].sum()) for name, sums in self.sums.items()}


def count_relevant(labels: Ints, gallery_labels: Ints | None = None) -> IntArray:
    """R of each query.

    Args:
        labels: (q,) classes of the queries.
        gallery_labels: (n,) classes of what is searched; None where the queries themselves are.

    Returns:
        (q,) the number of gallery items of the query's class, 0 where there is none; without a gallery the size of
        its class minus one.
    """
    if gallery_labels is None:
        _, inverse, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        return (sizes[inverse] - 1).astype(np.int64)
    classes, sizes = np.unique(np.asarray(gallery_labels), return_counts=True)
    if not len(classes):
        return np.zeros(len(labels), np.int64)
    places = np.minimum(np.searchsorted(classes, np.asarray(labels)), len(classes) - 1)
    return np.where(classes[places] == np.asarray(labels), sizes[places], 0).astype(np.int64)


def nmi(assignments: Ints, labels: Ints) -> float:
    """Normalised mutual information of clusters and classes, arithmetic average of the two entropies."""
    return float(normalized_mutual_info_score(np.asarray(labels), np.asarray(assignments), average_method="arithmetic"))
