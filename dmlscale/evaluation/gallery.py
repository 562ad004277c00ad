"""Which queries to show, with their nearest neighbours. What they look like: figures/retrieval_gallery.py."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import NO_NEIGHBOR, count_relevant, query_scores
from dmlscale.evaluation.neighbors import FloatArray, IntArray, Metric, queries_per_chunk
from dmlscale.evaluation.ranks import Gather, alone
from dmlscale.evaluation.sharded_search import nearest_over_ranks
from dmlscale.evaluation.shares import Share, share_of

Kind = Literal["worst", "random", "best"]


class PickedQuery(NamedTuple):
    """A query to show, and why."""

    row: int
    kind: Kind
    score: float


class Neighbor(NamedTuple):
    """One found item."""

    id: int
    label: int
    closeness: float  # cosine similarity or Euclidean distance


class RetrievalRow(NamedTuple):
    """One query of a gallery with what was found for it, nearest first."""

    id: int
    label: int
    kind: Kind
    score: float  # MAP@R of this query
    neighbors: tuple[Neighbor, ...]


def pick_queries(
    scores: NDArray[np.float64], num_queries: int, *, seed: int = 0, labels: NDArray[np.int64] | None = None
) -> list[PickedQuery]:
    """A third of the worst, a third at random, a third of the best queries, in this order, none twice.

    Ties (often most queries have the full score) are broken at random by the seed. Random ones are drawn
    first, so that they stand for the whole set and not for what the extremes left over.

    Args:
        scores: (q,) higher is better; NaN (a query without an answer) is never picked.
        num_queries: at most so many; fewer where there are fewer queries.
        seed: of ties and of the random third.
        labels: (q,) if given, a class is shown twice only when there are too few classes.

    Returns:
        The picked rows; where ``num_queries`` is not a multiple of three, worst come first, then random ones.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~np.isnan(scores)))
    num_queries = min(num_queries, len(order))
    by_score = order[np.argsort(scores[order], kind="stable")]
    plan: list[tuple[Kind, NDArray[np.int64], int]] = [
        ("random", order, (num_queries + 1) // 3),
        ("worst", by_score, (num_queries + 2) // 3),
        ("best", by_score[::-1], num_queries // 3),
    ]
    seen_rows: set[int] = set()
    seen_labels: set[int] = set()
    picked: dict[Kind, list[int]] = {}
    for kind, candidates, share in plan:
        picked[kind] = _first_of_new_classes(candidates.tolist(), share, labels, seen_rows, seen_labels)
    kinds: tuple[Kind, ...] = ("worst", "random", "best")
    return [PickedQuery(row, kind, float(scores[row])) for kind in kinds for row in picked[kind]]


def gallery_rows(
    local: Embedded,
    gallery: Embedded | None = None,
    *,
    num_queries: int = 9,
    num_neighbors: int = 7,
    max_candidates: int = 2000,
    metric: Metric = "cosine",
    seed: int = 0,
    gather: Gather = alone,
    rank: int = 0,
) -> list[RetrievalRow]:
    """Some queries with their nearest neighbours in a gallery, or among all other queries; the same on every rank.

    Args:
        local: this rank's share of the queries, as for `evaluate`.
        gallery: of what they are looked up in; None where that is the queries themselves, each among all others.
        num_queries: see `pick_queries`; scored by MAP@R.
        num_neighbors: per query; fewer where there are fewer samples.
        max_candidates: worst and best are looked for among so many random queries, so that a picture does not
            cost a second evaluation; among fewer where classes of thousands of samples make each of them dear.
        metric: which neighbours are near.
        seed: of the candidates and the choice.
        gather: concatenates over ranks.
        rank: this rank.

    Communication: as `share_of` and `nearest_over_ranks`; gather of some 20 numbers for each candidate.
    """
    queries = share_of(local, gather, rank=rank)
    searched = queries if gallery is None else share_of(gallery, gather, rank=rank)
    num_relevant = count_relevant(queries.labels, None if gallery is None else searched.labels)
    answerable = np.flatnonzero(num_relevant > 0)
    k = max(num_neighbors, int(num_relevant.max(initial=0)))
    num_candidates = min(max_candidates, len(answerable), max(num_queries, queries_per_chunk(k)))
    candidates = np.random.default_rng(seed).choice(answerable, num_candidates, replace=False)
    if not len(candidates):
        return []
    positions, scores, closeness, neighbors = _look_up(
        queries, searched, candidates, num_relevant, k, is_among=gallery is None, metric=metric, gather=gather
    )
    shown = slice(num_neighbors)
    columns = (positions, scores, closeness[:, shown], neighbors[:, shown])
    positions, scores, closeness, neighbors = (gather(torch.from_numpy(column)).numpy() for column in columns)
    order = np.argsort(positions)
    scores, closeness, neighbors = scores[order], closeness[order], neighbors[order]

    def row_of(query: PickedQuery) -> RetrievalRow:
        found = zip(neighbors[query.row], closeness[query.row], strict=True)
        return RetrievalRow(
            id=int(queries.ids[candidates[query.row]]),
            label=int(queries.labels[candidates[query.row]]),
            kind=query.kind,
            score=query.score,
            neighbors=tuple(
                Neighbor(int(searched.ids[row]), int(searched.labels[row]), float(value))
                for row, value in found
                if row >= 0
            ),
        )

    labels = queries.labels[candidates]
    return [row_of(query) for query in pick_queries(scores, num_queries, seed=seed, labels=labels)]


def _look_up(
    queries: Share,
    searched: Share,
    candidates: IntArray,
    num_relevant: IntArray,
    k: int,
    *,
    is_among: bool,
    metric: Metric,
    gather: Gather,
) -> tuple[IntArray, NDArray[np.float64], FloatArray, IntArray]:
    """Of this rank's candidates: places among all of them, MAP@R, and closeness and rows of the k nearest."""
    order = np.argsort(candidates)
    place = np.minimum(np.searchsorted(candidates, queries.rows, sorter=order), len(order) - 1)
    own = np.flatnonzero(candidates[order[place]] == queries.rows)
    rows = queries.rows[own]
    closeness, neighbors = nearest_over_ranks(
        queries.embeddings[own],
        searched.embeddings,
        searched.rows,
        k,
        exclude=rows if is_among else None,
        metric=metric,
        gather=gather,
    )
    labels = np.where(neighbors >= 0, searched.labels[neighbors], NO_NEIGHBOR)
    scores = query_scores(labels, queries.labels[rows], num_relevant[rows], ks=())["map_at_r"]
    return order[place[own]], scores, closeness, neighbors


def _first_of_new_classes(
    candidates: list[int],
    share: int,
    labels: NDArray[np.int64] | None,
    seen_rows: set[int],
    seen_labels: set[int],
) -> list[int]:
    """The first ``share`` candidates, those of a class not yet seen before those of a seen one."""
    picked: list[int] = []
    for repeat_allowed in (False, True):
        for row in candidates:
            label = None if labels is None else int(labels[row])
            if len(picked) == share:
                return picked
            if row in seen_rows or (label in seen_labels and not repeat_allowed):
                continue
            picked.append(row)
            seen_rows.add(row)
            if label is not None:
                seen_labels.add(label)
    return picked
