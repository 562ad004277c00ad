"""Offline mining: the nearest samples of other classes and the farthest one of the own, for every sample. Exact.

n samples over all ranks, d dimensions, m negatives. The samples, sorted by class, are cut into pieces that depend on n
alone, and ranks take whole pieces: how a matrix product rounds depends on its shape, so other pieces would find other
neighbours where two are almost equally near. Memory is a piece's results and n x m; never n x n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.evaluation.neighbors import FloatArray, Gallery, IntArray, Metric
from dmlscale.evaluation.ranks import AllSum, Gather, alone

LARGE_CLASS = 256
"""Samples from which on a class is searched for in the others' samples alone.

Below, it is cheaper to look for as many neighbours more as the class is large, and then to drop the class.
"""
PIECES = 64
"""Pieces of a small set; they let that many ranks share the work evenly."""
FEWEST_QUERIES, MOST_QUERIES = 64, 8192
"""Of a piece."""
_DISTANCES_AT_ONCE = 4_000_000  # 32 MB


class Mined(NamedTuple):
    """The table, and how hard the negatives are."""

    table: NeighborTable
    nearest_negative: float  # mean similarity (cosine) or distance (euclidean) of a sample and its nearest negative


def mine_hard_samples(
    embeddings: NDArray[np.float32],
    labels: IntArray,
    num_negatives: int,
    *,
    metric: Metric = "cosine",
    gather: Gather = alone,
    all_sum: AllSum = alone,
    rank: int = 0,
    num_ranks: int = 1,
) -> Mined:
    """The neighbour table of all samples, the same on every rank and for any number of ranks.

    Among equally near (or far) samples it is not said which are taken, but it is always the same ones.

    Args:
        embeddings: (n, d) of all samples, the same on every rank.
        labels: (n,) class ids.
        num_negatives: m.
        metric: what near means.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        rank: this rank.
        num_ranks: number of ranks.

    Raises:
        ValueError: on every rank alike: NaN in embeddings, or m is larger than the number of samples that the largest
            class has beside it.

    Communication: gather of n * (m + 1) int64; all_sum of 1 float64.
    """
    if not np.isfinite(embeddings).all():  # here and not in the search: every rank must raise, or the others hang
        raise ValueError("embeddings hold NaN or infinity: the training has diverged; try a lower learning rate")
    num_others = len(labels) - int(np.bincount(labels).max(initial=0))
    if not 1 <= num_negatives <= num_others:
        raise ValueError(f"{num_negatives} negatives of each sample: must be from 1 to {num_others}")
    order = np.argsort(labels, kind="stable")
    size = min(max(-(-len(order) // PIECES), FEWEST_QUERIES), MOST_QUERIES)
    num_pieces = -(-len(order) // size)
    pieces = range(num_pieces * rank // num_ranks, num_pieces * (rank + 1) // num_ranks)
    search = _Search(embeddings, labels, order, metric)
    found = [np.empty((0, num_negatives + 1), np.int64)]  # a rank may have no piece
    total = 0.0
    for piece in pieces:
        queries = order[piece * size : (piece + 1) * size]
        values, negatives = search.nearest_negatives(queries, num_negatives)
        total += float(values[:, 0].sum(dtype=np.float64))
        found.append(np.column_stack([negatives, search.farthest_positives(queries)]))
    in_order = gather(torch.from_numpy(np.concatenate(found))).numpy()
    table = np.empty_like(in_order)
    table[order] = in_order
    mean = float(all_sum(torch.tensor([total], dtype=torch.float64))) / len(order)
    return Mined(NeighborTable(table[:, :-1], table[:, -1]), mean)


class _Search:
    """Searches of pieces; ``order`` (n,) are the samples sorted by class."""

    def __init__(self, embeddings: NDArray[np.float32], labels: IntArray, order: IntArray, metric: Metric) -> None:
        self._labels, self._order = labels, order
        self._gallery = Gallery(embeddings, metric)
        self._counts = np.bincount(labels)
        self._ends = np.cumsum(self._counts)

    def nearest_negatives(self, queries: IntArray, num_negatives: int) -> tuple[FloatArray, IntArray]:
        """(q, m) values and (q, m) positions for (q,) positions."""
        values = np.empty((len(queries), num_negatives), np.float32)
        found = np.empty((len(queries), num_negatives), np.int64)
        is_small = self._counts[self._labels[queries]] < LARGE_CLASS
        if is_small.any():
            values[is_small], found[is_small] = self._beside_own(queries[is_small], num_negatives)
        for label in np.unique(self._labels[queries[~is_small]]):
            here = self._labels[queries] == label
            others = np.flatnonzero(self._labels != label)
            gallery = Gallery(self._gallery.rows[others], self._gallery.metric)
            values[here], rows = gallery.nearest(self._gallery.rows[queries[here]], num_negatives)
            found[here] = others[rows]
        return values, found

    def _beside_own(self, queries: IntArray, num_negatives: int) -> tuple[FloatArray, IntArray]:
        """Looks for as many more as a class can have before its m-th negative."""
        most_own = int(self._counts[self._labels[queries]].max()) - 1
        values, rows = self._gallery.nearest(
            self._gallery.rows[queries], min(num_negatives + most_own, len(self._labels) - 1), exclude=queries
        )
        is_own = self._labels[rows] == self._labels[queries][:, None]
        negatives_first = np.argsort(is_own, axis=1, kind="stable")[:, :num_negatives]
        return np.take_along_axis(values, negatives_first, 1), np.take_along_axis(rows, negatives_first, 1)

    def farthest_positives(self, queries: IntArray) -> IntArray:
        """(q,) positions for (q,) positions sorted by class; -1 for a class of one."""
        cuts = np.flatnonzero(np.diff(self._labels[queries])) + 1
        return np.concatenate([self._farthest_in_class(part) for part in np.split(queries, cuts)])

    def _farthest_in_class(self, queries: IntArray) -> IntArray:
        label = self._labels[queries[0]]
        members = self._order[self._ends[label] - self._counts[label] : self._ends[label]]
        if len(members) == 1:
            return np.array([-1])
        points = self._gallery.rows[members].astype(np.float64)
        # Half the squared distance but for the query's own length, or the negative similarity: what orders members.
        lengths = 0.5 * (points**2).sum(axis=1) if self._gallery.metric == "euclidean" else 0.0
        found = []
        chunk = max(1, _DISTANCES_AT_ONCE // len(members))
        for start in range(0, len(queries), chunk):
            part = queries[start : start + chunk]
            distances = lengths - self._gallery.rows[part].astype(np.float64) @ points.T
            distances[part[:, None] == members] = -np.inf  # itself, where all of the class are one point
            found.append(members[np.argmax(distances, axis=1)])
        return np.concatenate(found)
