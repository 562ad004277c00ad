"""Search and scores of this rank's queries, and their sums over all ranks by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.data.hashing import mix
from dmlscale.evaluation.metrics import NO_NEIGHBOR, IntArray, query_scores
from dmlscale.evaluation.neighbors import Metric, queries_per_chunk
from dmlscale.evaluation.ranks import AllSum, Gather
from dmlscale.evaluation.sharded_search import nearest_over_ranks
from dmlscale.evaluation.shares import Share

MOST_CONFUSIONS = 1_000_000


class Retrieved(NamedTuple):
    """What was found for this rank's m queries."""

    scores: dict[str, NDArray[np.float64]]  # metric -> (m,), NaN where there is nothing to find
    nearest: IntArray  # (m,) class of the nearest item


def retrieve(
    queries: Share, searched: Share | None, num_relevant: IntArray, ks: Sequence[int], *, metric: Metric, gather: Gather
) -> Retrieved:
    """The retrieval metrics of each of this rank's queries.

    Args:
        queries: this rank's share of the queries.
        searched: of the gallery; None where each query is looked up among all others.
        num_relevant: (n,) R of the queries of all ranks.
        ks: for which k to give Recall@k.
        metric: which neighbours are near.
        gather: concatenates over ranks.

    Communication: the gallery's slices, again for every `queries_per_chunk` of a rank's queries.
    """
    there = queries if searched is None else searched
    k = max([*ks, int(num_relevant.max(initial=1))])
    # A class of many samples needs many neighbours per query: search, score and forget, chunk by chunk.
    chunk = queries_per_chunk(k)
    num_chunks = -(-int(gather(torch.tensor([len(queries.rows)])).max()) // chunk)
    parts = [query_scores(np.empty((0, k), np.int64), np.empty(0, np.int64), np.empty(0, np.int64), ks)]
    nearest = [np.empty(0, np.int64)]
    for number in range(num_chunks):
        part = slice(number * chunk, (number + 1) * chunk)
        rows = queries.rows[part]
        exclude = rows if searched is None else None
        search = (queries.embeddings[part], there.embeddings, there.rows, k)
        _, neighbors = nearest_over_ranks(*search, exclude=exclude, metric=metric, gather=gather)
        labels = np.where(neighbors >= 0, there.labels[neighbors], NO_NEIGHBOR)
        parts.append(query_scores(labels, queries.labels[rows], num_relevant[rows], ks))
        nearest.append(labels[:, 0])
    scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Retrieved(scores, np.concatenate(nearest))


def sums_by_class(
    scores: dict[str, NDArray[np.float64]], labels: IntArray, classes: IntArray, *, all_sum: AllSum
) -> tuple[dict[str, NDArray[np.float64]], dict[str, IntArray]]:
    """Sums of scores over the queries of each class on all ranks, and how many there are.

    Args:
        scores: metric -> (m,) of this rank's queries; NaN is left out.
        labels: (m,) classes of the queries.
        classes: (C,) ascending.
        all_sum: adds up over ranks.

    Returns:
        metric -> (C,) float64 sums, metric -> (C,) int64 counts.

    Communication: all_sum of 2 * (number of metrics) * C float64.
    """
    place = np.searchsorted(classes, labels)
    rows = []
    for values in scores.values():
        is_there = ~np.isnan(values)
        weights = (np.where(is_there, values, 0), is_there)
        rows += [np.bincount(place, weights=each, minlength=len(classes)) for each in weights]
    # Without any query, bincount gives integers.
    totals = all_sum(torch.from_numpy(np.stack(rows).astype(np.float64))).numpy()
    counts = {name: row.round().astype(np.int64) for name, row in zip(scores, totals[1::2], strict=True)}
    return dict(zip(scores, totals[0::2], strict=True)), counts


def confusions(
    queries: Share, retrieved: Retrieved, *, gather: Gather, all_sum: AllSum, most: int = MOST_CONFUSIONS
) -> IntArray:
    """(m, 2) class of a query and of its nearest neighbour, where that is wrong though there was something to find.

    At most ``most`` of them, chosen by a hash of their ids, in the order of the queries' rows.

    Communication: gather of 3 int64 per row, all_sum of 1.
    """
    labels = queries.own_labels
    wrong = np.flatnonzero(retrieved.scores["precision_at_1"] == 0)
    num_wrong = int(all_sum(torch.tensor([len(wrong)])))
    if num_wrong > most:
        share = mix(queries.ids[queries.rows[wrong]].astype(np.uint64)) / 2.0**64
        wrong = wrong[share < most / num_wrong]
    own = np.column_stack([queries.rows[wrong], labels[wrong], retrieved.nearest[wrong]])
    of_all = gather(torch.from_numpy(own)).numpy()
    return np.asarray(of_all[np.argsort(of_all[:, 0])][:most, 1:])
