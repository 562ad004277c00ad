"""Which queries to show, with their nearest neighbours. What they look like: figures.py."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import NO_NEIGHBOR, count_relevant, query_scores
from dmlscale.evaluation.neighbors import Metric, nearest

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
    queries: Embedded,
    gallery: Embedded | None = None,
    *,
    num_queries: int = 9,
    num_neighbors: int = 7,
    max_candidates: int = 2000,
    metric: Metric = "cosine",
    seed: int = 0,
) -> list[RetrievalRow]:
    """Some queries with their nearest neighbours in a gallery, or among all other queries.

    Args:
        queries: as from `gather_embedded`.
        gallery: what they are looked up in; None where that is the queries themselves, each among all others.
        num_queries: see `pick_queries`; scored by MAP@R.
        num_neighbors: per query; fewer where there are fewer samples.
        max_candidates: worst and best are looked for among so many random queries, so that a picture does not
            cost a second evaluation.
        metric: which neighbours are near.
        seed: of the candidates and the choice.
    """
    embeddings, labels, ids = (tensor.numpy() for tensor in queries)
    searched, searched_labels, searched_ids = (tensor.numpy() for tensor in (queries if gallery is None else gallery))
    num_relevant = count_relevant(labels, None if gallery is None else searched_labels)
    answerable = np.flatnonzero(num_relevant > 0)
    rng = np.random.default_rng(seed)
    candidates = rng.choice(answerable, min(max_candidates, len(answerable)), replace=False)
    if not len(candidates):
        return []
    k = max(num_neighbors, int(num_relevant[candidates].max()))
    exclude = candidates if gallery is None else None
    closeness, neighbors = nearest(embeddings[candidates], searched, k, exclude=exclude, metric=metric)
    neighbor_labels = np.where(neighbors >= 0, searched_labels[neighbors], NO_NEIGHBOR)
    scores = query_scores(neighbor_labels, labels[candidates], num_relevant[candidates], ks=())["map_at_r"]

    def row_of(query: PickedQuery) -> RetrievalRow:
        found = zip(neighbors[query.row, :num_neighbors], closeness[query.row], strict=False)
        return RetrievalRow(
            id=int(ids[candidates[query.row]]),
            label=int(labels[candidates[query.row]]),
            kind=query.kind,
            score=query.score,
            neighbors=tuple(
                Neighbor(int(searched_ids[row]), int(searched_labels[row]), float(value))
                for row, value in found
                if row >= 0
            ),
        )

    return [row_of(query) for query in pick_queries(scores, num_queries, seed=seed, labels=labels[candidates])]


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
