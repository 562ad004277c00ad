"""Embeddings of all ranks -> retrieval and clustering metrics, the same for any number of ranks.

n samples over all ranks, d dimensions. Every rank passes its own share, gathers the whole as the gallery and
searches only its own queries; the sums of the metrics are then added up over ranks and divided once.
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
from dmlscale.evaluation.neighbors import Metric, kmeans, nearest, normalize, queries_per_chunk

Gather = Callable[[Tensor], Tensor]
"""(n_r, ...) uneven over ranks -> (sum of n_r, ...) in rank order, identical on every rank."""
AllSum = Callable[[Tensor], Tensor]
"""A tensor of one shape -> its sum over ranks, identical on every rank."""


def alone(tensor: Tensor) -> Tensor:
    """Gather and sum of one process."""
    return tensor


def evaluate(
    local: Embedded,
    *,
    gather: Gather = alone,
    all_sum: AllSum = alone,
    rank: int = 0,
    ks: Sequence[int] = (1, 2, 4, 8),
    metric: Metric = "cosine",
    with_nmi: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """Retrieval of every sample among all others, and how well k-means finds the classes again.

    Args:
        local: this rank's share; shares may be uneven or empty, and a sample that several ranks (or one rank
            twice) embedded counts once.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        rank: this rank; rank 0 computes what is needed once (the clustering).
        ks: for which k to give Recall@k.
        metric: which neighbours are near.
        with_nmi: False leaves out k-means, which costs about as much as the search.
        seed: of k-means.

    Returns:
        `recall_at_<k>` for each k, `precision_at_1`, `r_precision`, `map_at_r`, `nmi` (all in [0, 1]),
        `num_queries` (with another sample of their class), `num_lone_queries` (without: left out of the
        means) and `num_classes`. Identical on every rank.

    Raises:
        ValueError: on every rank alike: no samples, NaN in embeddings, or no class with two samples.

    Communication: gather of ids, labels, owners (n int64 each) and embeddings (n * d float32); all_sum of
        2 * (number of metrics) + 1 float64.
    """
    everything, owners = gather_embedded(local, gather, rank=rank)
    embeddings, labels = everything.embeddings.numpy(), everything.labels.numpy()
    if not len(labels):
        raise ValueError("there are no samples to evaluate")
    if not np.isfinite(embeddings).all():  # here and not in the search: every rank must raise, or the others hang
        raise ValueError("embeddings hold NaN or infinity: the training has diverged; try a lower learning rate")
    sums = _search(embeddings, labels, np.flatnonzero(owners.numpy() == rank), ks, metric)
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
    counts = {"queries": num_queries, "lone_queries": len(labels) - num_queries, "classes": num_classes}
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


def _search(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    queries: NDArray[np.int64],
    ks: Sequence[int],
    metric: Metric,
) -> Sums:
    """Sums over the given rows as queries, all rows as gallery."""
    num_relevant = count_relevant(labels)
    k = max([*ks, int(num_relevant.max(initial=1))])
    sums = retrieval_sums(np.empty((0, k), np.int64), np.empty(0, np.int64), np.empty(0, np.int64), ks)
    # A class of many samples needs many neighbours per query: search, score and forget, chunk by chunk.
    chunk = queries_per_chunk(k)
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        _, neighbors = nearest(embeddings[rows], embeddings, k, exclude=rows, metric=metric)
        neighbor_labels = np.where(neighbors >= 0, labels[neighbors], NO_NEIGHBOR)
        sums = add_sums(sums, retrieval_sums(neighbor_labels, labels[rows], num_relevant[rows], ks))
    return sums


def _directions(embeddings: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """What k-means sees: under the cosine, lengths do not matter."""
    if metric == "euclidean":
        return embeddings
    return normalize(embeddings)
