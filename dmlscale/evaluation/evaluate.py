"""Embeddings of all ranks -> retrieval and clustering metrics, the same for any number of ranks.

n samples over all ranks, d dimensions. Either each sample is looked up among all others, or queries in a gallery of
their own (the protocol of In-Shop Clothes Retrieval). Every rank passes its own share and knows the ids and labels of
all; embeddings stay, and visit other ranks slice by slice. Sums of the metrics by class are then added up over ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.average_precision import average_precisions, choose_queries
from dmlscale.evaluation.bootstrap import intervals
from dmlscale.evaluation.closeness import Metric, require_metric
from dmlscale.evaluation.clustering import ITERATIONS, MOST_DISTANCES, cluster_metrics
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import IntArray, PerClass, count_relevant
from dmlscale.evaluation.ranks import AllSum, Gather, alone
from dmlscale.evaluation.retrieval import confusions, retrieve, sums_by_class
from dmlscale.evaluation.shares import Share, check_shares, require_seed, share_of

GROUPS = ("retrieval", "map", "clustering")


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a split, the same on every rank.

    Args:
        metrics: name -> value.
        intervals: name of a retrieval metric -> lower and upper end of its 95 % confidence interval (bootstrap.py).
        per_class: sums of the retrieval metrics by class.
        confusions: (m, 2) class of a query and class of its nearest neighbour, for the queries where that is wrong; at
            most a million, and then chosen at random.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    per_class: PerClass
    confusions: IntArray


def evaluate(
    local: Embedded,
    gallery: Embedded | None = None,
    *,
    gather: Gather = alone,
    all_sum: AllSum = alone,
    rank: int = 0,
    ks: Sequence[int] = (1, 2, 4, 8),
    metric: Metric = "cosine",
    groups: Collection[str] = ("retrieval", "clustering"),
    most_map_queries: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Retrieval of every sample among all others or in a gallery, and how well k-means finds the classes again.

    Exact, also among equally near neighbours: of these the one with the lower id comes first. With one process, memory
    is the embeddings, once more the embeddings (of unit length), and less than 1 GB.

    Args:
        local: this rank's share of the queries; shares may be uneven or empty, and a sample that several ranks (or
            one rank twice) embedded counts once.
        gallery: this rank's share of what the queries are looked up in, uneven or empty as well; nothing in it is
            left out, so it must not hold the queries. None, on all ranks alike: every query is looked up among the
            others.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        rank: this rank.
        ks: for which k to give Recall@k.
        metric: which neighbours are near.
        groups: what to compute. "retrieval", which is always computed, "map" (average precision over the whole ranking)
            and "clustering" (k-means), which costs about as much as the search at most, or half a minute of a core (for
            d = 128) where that is more: of many samples of many classes only some classes are clustered.
        most_map_queries: "map" is of so many queries that have something to find, chosen by a hash of their ids; of all
            where there are fewer.
        seed: of k-means, of the bootstrap and of the choice of queries.

    Returns:
        Metrics: `recall_at_<k>` for each k, `precision_at_1`, `r_precision`, `map_at_r`; of "map"
        `mean_average_precision` and `num_map_queries`; of "clustering" `nmi`, `ami`, `f1` and `num_clustered`
        (clustering.py); `num_queries` (with a sample of their class to find), `num_lone_queries` (without: left out of
        the means), `num_classes` and, with a gallery, `num_gallery` samples in it. What is clustered, and what
        `num_classes` counts the classes of, are the queries and the gallery together.

    Raises:
        ValueError: on every rank alike: no samples, NaN in embeddings or Euclidean lengths above 1e18, shapes that do
            not fit, no query that can be answered, an unknown group or metric, a k or ``most_map_queries`` below 1, or
            a negative seed.

    Communication: gather of ids and labels (n int64 each) and of the gallery's slices (sharded_search.py), n counting
        queries and gallery; all_sum of 2 * (number of metrics) * (number of classes) float64.
    """
    _check_options(ks, groups, most_map_queries)
    require_metric(metric)
    require_seed(seed)
    queries = share_of(local, gather, rank=rank)
    searched = None if gallery is None else share_of(gallery, gather, rank=rank)
    check_shares(queries, searched, metric=metric, gather=gather)
    num_relevant = count_relevant(queries.labels, None if searched is None else searched.labels)
    _check_answerable(num_relevant, searched)

    retrieved = retrieve(queries, searched, num_relevant, ks, metric=metric, gather=gather)
    scores = dict(retrieved.scores)
    if "map" in groups:
        chosen = choose_queries(queries.ids, num_relevant, most_map_queries, seed=seed)
        found, rows = average_precisions(queries, searched, chosen, num_relevant, metric=metric, gather=gather)
        scores["mean_average_precision"] = _at_rows(found, rows, queries)
    classes = np.unique(queries.labels)
    per_class = PerClass(classes, *sums_by_class(scores, queries.own_labels, classes, all_sum=all_sum))
    metrics = per_class.means()
    if "clustering" in groups:
        together = _together(local, queries, searched)
        num_pairs = len(queries.ids) * len((queries if searched is None else searched).ids)
        metrics |= cluster_metrics(
            together,
            gather=gather,
            all_sum=all_sum,
            rank=rank,
            metric=metric,
            most_distances=max(MOST_DISTANCES, num_pairs // ITERATIONS),
            seed=seed,
        )
    return Evaluation(
        metrics | _counts(queries, searched, per_class),
        intervals(per_class, seed=seed),
        per_class,
        confusions(queries, retrieved, gather=gather, all_sum=all_sum),
    )


def gather_embedded(local: Embedded, gather: Gather = alone, *, rank: int = 0) -> tuple[Embedded, torch.Tensor]:
    """All samples of all ranks in the order of their ids, each id once: the same for any number of ranks.

    Returns:
        The samples, and (n,) the rank that each of them comes from.
    """
    # A rank with an empty share does not know d.
    dim = int(gather(torch.tensor([local.embeddings.shape[1]])).max())
    own = local.embeddings if len(local.labels) else local.embeddings.new_empty(0, dim)
    ids = gather(local.ids.long()).cpu()
    owners = gather(torch.full_like(local.ids, rank, dtype=torch.int64)).cpu()
    labels = gather(local.labels.long()).cpu()
    embeddings = gather(own.float()).cpu()
    _, first = np.unique(ids.numpy(), return_index=True)
    rows = torch.from_numpy(first)
    return Embedded(embeddings[rows], labels[rows], ids[rows]), owners[rows]


def _check_options(ks: Sequence[int], groups: Collection[str], most_map_queries: int) -> None:
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"unknown groups of metrics {unknown}: there are {', '.join(GROUPS)}")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks = {list(ks)}: each must be at least 1")
    if most_map_queries < 1:
        raise ValueError(f"most_map_queries = {most_map_queries}: must be at least 1")


def _check_answerable(num_relevant: IntArray, searched: Share | None) -> None:
    if num_relevant.any():
        return
    if searched is None:
        raise ValueError("no class has two samples: there is nothing to retrieve")
    raise ValueError("no query has a sample of its class in the gallery: there is nothing to retrieve")


def _at_rows(values: NDArray[np.float64], rows: IntArray, queries: Share) -> NDArray[np.float64]:
    """(m,) for all of this rank's queries: the values at the given rows, NaN elsewhere."""
    everywhere = np.full(len(queries.rows), np.nan)
    everywhere[np.isin(queries.rows, rows)] = values
    return everywhere


def _counts(queries: Share, searched: Share | None, per_class: PerClass) -> dict[str, float]:
    num_queries = int(per_class.num_queries.sum())
    labels = [queries.labels] if searched is None else [queries.labels, searched.labels]
    counts = {
        "num_queries": num_queries,
        "num_lone_queries": len(queries.ids) - num_queries,
        "num_classes": len(np.unique(np.concatenate(labels))),
    }
    if "mean_average_precision" in per_class.counts:
        counts["num_map_queries"] = int(per_class.counts["mean_average_precision"].sum())
    if searched is not None:
        counts["num_gallery"] = len(searched.ids)
    return {name: float(count) for name, count in counts.items()}


def _together(local: Embedded, queries: Share, searched: Share | None) -> Embedded:
    """This rank's queries and gallery items, with ids that tell them apart."""
    if searched is None:
        return local
    sides = [(queries, 0), (searched, len(queries.ids))]
    rows = [np.column_stack([side.own_labels, side.rows + offset]) for side, offset in sides]
    labels, ids = torch.from_numpy(np.concatenate(rows)).unbind(1)
    return Embedded(torch.cat([torch.from_numpy(side.embeddings) for side, _ in sides]), labels, ids)
