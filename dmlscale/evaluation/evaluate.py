"""Embeddings of all ranks -> retrieval and clustering metrics, the same for any number of ranks.

n samples over all ranks, d dimensions. Either each sample is looked up among all others, or queries in a gallery of
their own (the protocol of In-Shop Clothes Retrieval). Every rank passes its own share, gathers the whole and searches
only its own queries; the sums of the metrics are then added up over ranks and divided once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import (
    NO_NEIGHBOR,
    Sums,
    add_sums,
    count_relevant,
    means,
    nmi,
    retrieval_sums,
)
from dmlscale.evaluation.neighbors import Gallery, Metric, kmeans, normalize, queries_per_chunk

Gather = Callable[[Tensor], Tensor]
"""(n_r, ...) uneven over ranks -> (sum of n_r, ...) in rank order, identical on every rank."""
AllSum = Callable[[Tensor], Tensor]
"""A tensor of one shape -> its sum over ranks, identical on every rank."""


def alone(tensor: Tensor) -> Tensor:
    """Gather and sum of one process."""
    return tensor


def evaluate(
    local: Embedded,
    gallery: Embedded | None = None,
    *,
    gather: Gather = alone,
    all_sum: AllSum = alone,
    rank: int = 0,
    ks: Sequence[int] = (1, 2, 4, 8),
    metric: Metric = "cosine",
    with_nmi: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Retrieval of every sample among all others or in a gallery, and how well k-means finds the classes again.

    Args:
        local: this rank's share of the queries; shares may be uneven or empty, and a sample that several ranks (or
            one rank twice) embedded counts once.
        gallery: this rank's share of what the queries are looked up in, uneven or empty as well; nothing in it is
            left out, so it must not hold the queries. None, on all ranks alike: every query is looked up among the
            others.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        rank: this rank; rank 0 computes what is needed once (the clustering).
        ks: for which k to give Recall@k.
        metric: which neighbours are near.
        with_nmi: False leaves out k-means, which costs about as much as the search.
        seed: of k-means.

    Returns:
        `recall_at_<k>` for each k, `precision_at_1`, `r_precision`, `map_at_r`, `nmi` (all in [0, 1]),
        `num_queries` (with a sample of their class to find), `num_lone_queries` (without: left out of the
        means), `num_classes` and, with a gallery, `num_gallery` samples in it. What is clustered for `nmi`, and what
        `num_classes` counts the classes of, are the queries and the gallery together. Identical on every rank.

    Raises:
        ValueError: on every rank alike: no samples, NaN in embeddings, or no query that can be answered.

    Communication: gather of ids, labels, owners (n int64 each) and embeddings (n * d float32), n counting queries and
        gallery; all_sum of 2 * (number of metrics) + 1 float64.
    """
    queries, owners = gather_embedded(local, gather, rank=rank)
    searched = None if gallery is None else gather_embedded(gallery, gather, rank=rank)[0]
    _check(queries, searched)  # here and not in the search: every rank must raise, or the others hang
    num_relevant = count_relevant(queries.labels, None if searched is None else searched.labels)
    _check_answerable(num_relevant, searched)
    sums = _search(queries, searched, np.flatnonzero(owners.numpy() == rank), num_relevant, ks, metric)
    embeddings, labels = _together(queries, searched)
    num_classes = len(np.unique(labels))
    clustering = 0.0
    if with_nmi and rank == 0:
        clustering = nmi(kmeans(_directions(embeddings, metric), num_classes, seed=seed), labels)

    flat = [*(value for pair in sums.values() for value in pair), clustering]
    *totals, clustering = all_sum(torch.tensor(flat, dtype=torch.float64)).tolist()
    pairs = zip(totals[0::2], totals[1::2], strict=True)
    global_sums = {name: (total, round(count)) for name, (total, count) in zip(sums, pairs, strict=True)}
    result = means(global_sums)
    if with_nmi:
        result["nmi"] = clustering
    num_queries = global_sums["precision_at_1"][1]
    counts = {"queries": num_queries, "lone_queries": len(queries.labels) - num_queries, "classes": num_classes}
    if searched is not None:
        counts["gallery"] = len(searched.labels)
    return result | {f"num_{name}": float(count) for name, count in counts.items()}


def gather_embedded(local: Embedded, gather: Gather = alone, *, rank: int = 0) -> tuple[Embedded, Tensor]:
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


def _check(queries: Embedded, searched: Embedded | None) -> None:
    if not len(queries.labels):
        raise ValueError("there are no samples to evaluate")
    if searched is not None and not len(searched.labels):
        raise ValueError("there are no samples in the gallery")
    for samples in (queries, searched):
        if samples is not None and not bool(torch.isfinite(samples.embeddings).all()):
            raise ValueError("embeddings hold NaN or infinity: the training has diverged; try a lower learning rate")
    if searched is not None and queries.embeddings.shape[1] != searched.embeddings.shape[1]:
        dims = queries.embeddings.shape[1], searched.embeddings.shape[1]
        raise ValueError(f"queries have {dims[0]} dimensions and the gallery has {dims[1]}: embed both with one model")


def _check_answerable(num_relevant: NDArray[np.int64], searched: Embedded | None) -> None:
    if num_relevant.any():
        return
    if searched is None:
        raise ValueError("no class has two samples: there is nothing to retrieve")
    raise ValueError("no query has a sample of its class in the gallery: there is nothing to retrieve")


def _search(
    queries: Embedded,
    searched: Embedded | None,
    own: NDArray[np.int64],
    num_relevant: NDArray[np.int64],
    ks: Sequence[int],
    metric: Metric,
) -> Sums:
    """Sums over the queries in the rows ``own``; without a gallery each is looked up among all others."""
    embeddings, labels = queries.embeddings.numpy(), queries.labels.numpy()
    there = queries if searched is None else searched
    gallery, gallery_labels = Gallery(there.embeddings.numpy(), metric), there.labels.numpy()
    k = max([*ks, int(num_relevant.max(initial=1))])
    sums = retrieval_sums(np.empty((0, k), np.int64), np.empty(0, np.int64), np.empty(0, np.int64), ks)
    # A class of many samples needs many neighbours per query: search, score and forget, chunk by chunk.
    chunk = queries_per_chunk(k)
    for start in range(0, len(own), chunk):
        rows = own[start : start + chunk]
        _, neighbors = gallery.nearest(embeddings[rows], k, exclude=rows if searched is None else None)
        neighbor_labels = np.where(neighbors >= 0, gallery_labels[neighbors], NO_NEIGHBOR)
        sums = add_sums(sums, retrieval_sums(neighbor_labels, labels[rows], num_relevant[rows], ks))
    return sums


def _together(queries: Embedded, searched: Embedded | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings and labels of all samples, the queries first."""
    if searched is None:
        return queries.embeddings.numpy(), queries.labels.numpy()
    embeddings, labels = (torch.cat(pair).numpy() for pair in zip(queries[:2], searched[:2], strict=True))
    return embeddings, labels


def _directions(embeddings: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """What k-means sees: under the cosine, lengths do not matter."""
    if metric == "euclidean":
        return embeddings
    return normalize(embeddings)
