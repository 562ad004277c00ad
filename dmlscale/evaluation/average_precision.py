"""Average precision over the whole ranking of a gallery that is spread over ranks. Exact, and never a q x n matrix.

q queries of this rank, n gallery items over all ranks, d dimensions, R relevant items of a query. The precision at a
relevant item is (relevant items at least as close) / (all items at least as close). So it is enough to know how close
the relevant items are, and to count for each the other items that are at least as close: two passes over the gallery.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.hashing import mix
from dmlscale.evaluation.closeness import FloatArray, IntArray, Metric, closeness_of_all, closeness_of_pairs
from dmlscale.evaluation.neighbors import prepare
from dmlscale.evaluation.ranks import Gather, alone
from dmlscale.evaluation.sharded_search import gallery_slices
from dmlscale.evaluation.shares import Share

_RELEVANT_AT_ONCE = 4_000_000  # of all queries that are looked up together; some 20 bytes each
_ITEMS_PER_TILE, _PAIRS_PER_TILE = 8192, 1_000_000


def choose_queries(ids: IntArray, num_relevant: IntArray, most: int, *, seed: int = 0) -> IntArray:
    """Rows of at most so many queries that have something to find: all of them, or some by a hash of their ids.

    Args:
        ids: (q,) of the queries of all ranks.
        num_relevant: (q,).
        most: how many.
        seed: another seed chooses others.
    """
    answerable = np.flatnonzero(num_relevant > 0)
    if len(answerable) <= most:
        return answerable
    hashes = mix(mix(np.array([seed], np.uint64)) ^ ids[answerable].astype(np.uint64))
    return np.sort(answerable[np.argsort(hashes)[:most]])


def average_precisions(
    queries: Share,
    searched: Share | None,
    chosen: IntArray,
    num_relevant: IntArray,
    *,
    metric: Metric,
    gather: Gather = alone,
) -> tuple[NDArray[np.float64], IntArray]:
    """Average precision of this rank's queries among the chosen ones.

    AP = 1/R * sum over relevant items of (relevant items at least as close) / (items at least as close): the whole
    ranking counts, not only the first R places of MAP@R. Equally close items come at one threshold, as in
    `sklearn.metrics.average_precision_score`, so their order does not matter.

    Args:
        queries: this rank's share of the queries.
        searched: of the gallery; None where each query is looked up among all others.
        chosen: (c,) rows of the queries that are wanted, the same on every rank; each must have something to find.
        num_relevant: (q of all ranks,) R of each query.
        metric: which items are close.
        gather: concatenates over ranks.

    Returns:
        (c_r,) float64 in (0, 1], and (c_r,) the rows of those queries: this rank's part of the chosen ones.

    Communication: the gallery's slices twice, again for every 4,000,000 relevant items of a rank's queries.
    """
    positions = np.flatnonzero(np.isin(queries.rows, chosen))
    most_relevant = int(num_relevant[chosen].max(initial=1))
    block = max(1, _RELEVANT_AT_ONCE // most_relevant)
    num_blocks = -(-int(gather(torch.tensor([len(positions)])).max()) // block)
    found = [np.empty(0)]
    for number in range(num_blocks):
        part = positions[number * block : (number + 1) * block]
        looked_up = _Block(queries, queries if searched is None else searched, part, metric, is_among=searched is None)
        found.append(looked_up.average_precisions(most_relevant, gather))
    return np.concatenate(found), queries.rows[positions]


class _Block:
    """Queries that are looked up together; ``is_among`` tells that each of them is an item of the gallery itself."""

    def __init__(self, queries: Share, searched: Share, positions: IntArray, metric: Metric, *, is_among: bool) -> None:
        self._vectors = prepare(queries.embeddings[positions], metric)
        self._labels = queries.own_labels[positions]
        self._own_rows = queries.rows[positions] if is_among else np.full(len(positions), -1)
        self._searched, self._metric = searched, metric

    def average_precisions(self, most_relevant: int, gather: Gather) -> NDArray[np.float64]:
        thresholds = np.full((len(self._labels), most_relevant), -np.inf, np.float32)
        slices = self._searched.embeddings, self._searched.rows, gather
        for rows, numbers in gallery_slices(*slices):
            if len(self._labels):
                closeness = self._of_relevant(prepare(rows, self._metric), numbers)
                both = np.concatenate([thresholds, closeness], axis=1)
                thresholds = np.sort(both, axis=1)[:, -most_relevant:]
        at_least = torch.from_numpy(np.ascontiguousarray(thresholds))
        counts = torch.zeros(len(self._labels), most_relevant + 1, dtype=torch.int64)
        for rows, numbers in gallery_slices(*slices):
            if len(self._labels):
                self._count_others(prepare(rows, self._metric), numbers, at_least, counts)
        return _from_counts(at_least, counts)

    def _of_relevant(self, rows: FloatArray, numbers: IntArray) -> FloatArray:
        """(q, most) closeness of the relevant items in a slice; -inf where a query has fewer."""
        labels = self._searched.labels[numbers]
        order = np.argsort(labels, kind="stable")
        starts, ends = (np.searchsorted(labels[order], self._labels, side=side) for side in ("left", "right"))
        columns = starts[:, None] + np.arange(int((ends - starts).max(initial=0)))
        is_there = columns < ends[:, None]
        found = np.where(is_there, order[np.minimum(columns, len(order) - 1)], -1)
        found[is_there & (numbers[found] == self._own_rows[:, None])] = -1
        return closeness_of_pairs(self._vectors, rows, found, self._metric)

    def _count_others(self, rows: FloatArray, numbers: IntArray, at_least: Tensor, counts: Tensor) -> None:
        """Adds each item of another class to ``counts[query, number of thresholds that it reaches]``."""
        labels = self._searched.labels[numbers]
        chunk = _PAIRS_PER_TILE // min(len(rows), _ITEMS_PER_TILE)
        for start in range(0, len(self._labels), chunk):
            part = slice(start, start + chunk)
            for first in range(0, len(rows), _ITEMS_PER_TILE):
                items = slice(first, first + _ITEMS_PER_TILE)
                closeness = closeness_of_all(self._vectors[part], rows[items], self._metric)
                closeness[self._labels[part, None] == labels[items]] = -np.inf
                reached = torch.searchsorted(at_least[part], torch.from_numpy(closeness), right=True)
                counts[part].scatter_add_(1, reached, torch.ones_like(reached))


def _from_counts(at_least: Tensor, counts: Tensor) -> NDArray[np.float64]:
    """Average precisions, from (q, R) ascending thresholds, -inf where there are fewer, and (q, R + 1) counts."""
    others = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # that are at least as close as the threshold of the column
    relevant = at_least.shape[1] - torch.searchsorted(at_least, at_least)
    precision = (relevant / (relevant + others).double()).masked_fill(at_least == -torch.inf, 0)
    means: NDArray[np.float64] = (precision.sum(1) / (at_least > -torch.inf).sum(1)).numpy()
    return means
