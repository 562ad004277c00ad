"""How well clusters that know no labels agree with the classes: k-means over all ranks, and its figures.

n samples over all ranks, d dimensions, k clusters. Every rank keeps its own rows and holds all k centroids.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaln
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

from dmlscale.evaluation.closeness import FloatArray, IntArray, Metric, require_metric
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import nmi
from dmlscale.evaluation.neighbors import Gallery, normalize
from dmlscale.evaluation.ranks import AllSum, Gather, alone
from dmlscale.evaluation.shares import Share, require_seed
from dmlscale.evaluation.subsample import checked_share, few_enough, gathered, hash_order

ITERATIONS = 20
"""Of k-means, at most."""
MOST_DISTANCES = 700_000_000
"""Samples times clusters: half a minute of a core for d = 128. The 60,502 samples of 11,316 classes that Stanford
Online Products has to test with just fit.
"""
_EXACT_BITS = 51  # whole numbers of so many bits, and sums of two, are exact in float64
_ROUNDING = 2.0**-21  # times root of d and the lengths of both vectors: more than products in float32 lose
_VANISHED = 2.0**-120  # times d: more than is lost of products too small for float32
_ROWS_AT_ONCE = 65_536
_NUMBERS_AT_ONCE = 4_000_000


def cluster_metrics(
    local: Embedded,
    *,
    gather: Gather = alone,
    all_sum: AllSum = alone,
    rank: int = 0,
    metric: Metric = "cosine",
    num_clusters: int | None = None,
    most_distances: int = MOST_DISTANCES,
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> dict[str, float]:
    """Cluster the samples of all ranks by k-means and compare the clusters with the classes.

    Time grows with samples times clusters. Of many samples of many classes only some classes are clustered, whole and
    chosen by a hash of their labels (`few_enough`).

    Args:
        local: this rank's share, uneven or empty; an id that is there several times counts once.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        rank: this rank.
        metric: "cosine" clusters the directions of the embeddings, "euclidean" the embeddings.
        num_clusters: k, of all samples; the number of the classes that are clustered if not given.
        most_distances: samples times classes that are clustered, where k is not given.
        seed: of the first centroids and of the choice of classes, at least 0.
        iterations: of Lloyd's algorithm, at most.

    Returns:
        `nmi`, `ami` (mutual information, normalised by the mean of both entropies, and adjusted for chance as well),
        `f1` (see `pairwise_f1`) and `num_clustered` samples. The same on every rank and at any number of ranks.

    Raises:
        ValueError: on every rank alike: as `checked_share`, an unknown metric, a negative seed, or ``num_clusters`` is
            not from 1 to n.

    Communication: as `checked_share` and `kmeans_over_ranks`.
    """
    require_metric(metric)
    require_seed(seed)
    share = checked_share(local, gather, rank=rank, metric=metric)
    if num_clusters is None:
        share = few_enough(share, most_distances, seed=seed)
    k = len(np.unique(share.labels)) if num_clusters is None else num_clusters
    clusters = kmeans_over_ranks(
        share, k, gather=gather, all_sum=all_sum, metric=metric, seed=seed, iterations=iterations
    )
    return {
        "nmi": nmi(clusters, share.labels),
        "ami": adjusted_mutual_information(clusters, share.labels),
        "f1": pairwise_f1(clusters, share.labels),
        "num_clustered": float(len(clusters)),
    }


def kmeans_over_ranks(
    share: Share,
    num_clusters: int,
    *,
    gather: Gather = alone,
    all_sum: AllSum = alone,
    metric: Metric = "cosine",
    seed: int = 0,
    iterations: int = ITERATIONS,
) -> IntArray:
    """Cluster of each sample, by Lloyd's algorithm over the rows of all ranks.

    The first centroids are the samples that come first in the order of a hash of their ids (k-means++ would need k
    passes over all rows, one after the other). A cluster that loses all its samples moves to one of the samples that
    are farthest from their centroids, as in scikit-learn. Rows are added up on a common grid on which float64 is exact,
    so the centroids have the same bits at any number of ranks. It ends early where no sample changes its cluster.

    Args:
        share: from `checked_share`.
        num_clusters: k, from 1 to n.
        gather: concatenates over ranks.
        all_sum: adds up over ranks.
        metric: "cosine" takes the directions of the rows.
        seed: of the first centroids.
        iterations: at most.

    Returns:
        (n,) int64 in [0, k), in the order of ``share.ids``, on every rank.

    Raises:
        ValueError: k is not from 1 to n.

    Communication: gather of k * d float32 and of 2 float64 per rank, then for each iteration all_sum of
        k * (d + 1) + 1 numbers, and, where e clusters are empty, gather of at most e samples per rank; at the end
        gather of 2 n int64.

    Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    if not 1 <= num_clusters <= len(share.ids):
        raise ValueError(f"num_clusters = {num_clusters} of {len(share.ids)} samples: must be from 1 to their number")
    rows = normalize(share.embeddings) if metric == "cosine" else share.embeddings.copy()
    _round_to_grid(rows, len(share.ids), gather)
    first = gathered(replace(share, embeddings=rows), hash_order(share.ids, seed)[:num_clusters], gather)
    centroids = first.astype(np.float64)
    own_totals = np.zeros((num_clusters, rows.shape[1] + 1))
    previous, clusters = np.full(len(rows), -1), nearest_centroids(rows, centroids)
    for _ in range(iterations):
        _move(own_totals, rows, previous, clusters)
        totals = all_sum(torch.from_numpy(own_totals)).cpu().numpy()
        is_empty = totals[:, -1] == 0
        before, centroids = centroids, centroids.copy()
        centroids[~is_empty] = totals[~is_empty, :-1] / totals[~is_empty, -1:]
        if is_empty.any():
            apart = _distances(rows, before, clusters)
            farthest = _farthest(share.rows, apart, int(is_empty.sum()), gather)
            empty = np.flatnonzero(is_empty)[: len(farthest)]
            centroids[empty] = gathered(replace(share, embeddings=rows), farthest, gather)
        previous, clusters = clusters, nearest_centroids(rows, centroids)
        if not int(all_sum(torch.tensor([np.count_nonzero(clusters != previous)]))):
            break
    result = np.empty(len(share.ids), np.int64)
    result[gather(torch.from_numpy(share.rows)).cpu().numpy()] = gather(torch.from_numpy(clusters)).cpu().numpy()
    return result


def nearest_centroids(rows: FloatArray, centroids: NDArray[np.float64]) -> IntArray:
    """The centroid nearest to each row, as `Gallery` finds it, in the time of a matrix product.

    A product in float32 leaves few rows in doubt, those with two centroids nearly as near; only these are searched.

    Args:
        rows: (m, d).
        centroids: (k, d), compared as float32.

    Returns:
        (m,) int64 in [0, k).
    """
    there = centroids.astype(np.float32)
    halves = (centroids**2).sum(axis=1) / 2
    longest = np.sqrt(2 * halves.max())
    rounding = _ROUNDING * np.sqrt(rows.shape[1]) * longest * (np.sqrt(np.einsum("md,md->m", rows, rows)) + longest)
    rounding += _VANISHED * rows.shape[1]
    halves = halves.astype(np.float32)
    nearest = np.empty(len(rows), np.int64)
    lead = np.empty(len(rows))
    size = max(1, min(256, _NUMBERS_AT_ONCE // len(there)))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        closeness = rows[part] @ there.T
        closeness -= halves
        nearest[part] = closeness.argmax(axis=1)
        best = np.arange(len(closeness)), nearest[part]
        lead[part] = closeness[best]
        closeness[best] = -np.inf
        lead[part] -= closeness.max(axis=1)
    in_doubt = np.flatnonzero(lead <= rounding)
    if len(in_doubt):
        search = Gallery(there, "euclidean")
        for start in range(0, len(in_doubt), _ROWS_AT_ONCE):
            some = in_doubt[start : start + _ROWS_AT_ONCE]
            nearest[some] = search.nearest(rows[some], 1)[1][:, 0]
    return nearest


def adjusted_mutual_information(clusters: IntArray, labels: IntArray) -> float:
    """Mutual information adjusted for chance: 1 where clusters and classes are the same, 0 on average for random ones.

    scikit-learn's value, but its time grows with clusters times classes; this one's with the different sizes of either.

    Args:
        clusters: (n,) n at least 1.
        labels: (n,).

    Source: Vinh et al. 2010, "Information theoretic measures for clusterings comparison" (arithmetic mean).
    """
    contingency = contingency_matrix(labels, clusters, sparse=True)
    num_classes, num_clusters = contingency.shape
    if contingency.nnz == num_classes == num_clusters:  # the same: both differences below may be 0
        return 1.0
    sizes = [np.asarray(contingency.sum(axis=axis)).ravel().astype(np.int64) for axis in (1, 0)]
    if min(num_classes, num_clusters) == 1:
        return 0.0
    information = float(mutual_info_score(None, None, contingency=contingency))
    expected = _expected_information(*sizes)
    entropy = float(np.mean([-(size / len(labels) * np.log(size / len(labels))).sum() for size in sizes]))
    return (information - expected) / (entropy - expected)


def pairwise_f1(clusters: IntArray, labels: IntArray) -> float:
    """F1 of "these two samples belong together", over all pairs of samples.

    Args:
        clusters: (n,).
        labels: (n,).

    Returns:
        2 P R / (P + R): precision P is the share of the pairs in one cluster that are of one class, recall R the share
        of the pairs of one class that are in one cluster. 1 where no pair belongs together in either.

    Source: Oh Song et al. 2016, arXiv:1511.06452, section 6.1; Manning et al. 2008, chapter 16.3.
    """
    (_, only_clusters), (only_classes, both) = pair_confusion_matrix(labels, clusters).tolist()
    wrong = only_clusters + only_classes
    return 2 * both / (2 * both + wrong) if both + wrong else 1.0


def _expected_information(class_sizes: IntArray, cluster_sizes: IntArray) -> float:
    """Mean mutual information of two random labellings with these sizes (Vinh et al. 2010, equation 24a)."""
    total = int(class_sizes.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    expected = 0.0
    firsts, seconds = (np.unique(sizes, return_counts=True) for sizes in (class_sizes, cluster_sizes))
    for a, times_a in zip(*firsts, strict=True):
        for b, times_b in zip(*seconds, strict=True):
            common = np.arange(max(1, a + b - total), min(a, b) + 1)
            log_chance = log_factorial[[a, b, total - a, total - b]].sum() - log_factorial[total]
            log_chance = log_chance - log_factorial[common] - log_factorial[a - common]
            log_chance -= log_factorial[b - common] + log_factorial[total - a - b + common]
            information = common / total * np.log(total * common / (float(a) * b))
            expected += float(times_a * times_b * (information * np.exp(log_chance)).sum())
    return expected


def _round_to_grid(rows: FloatArray, num_rows: int, gather: Gather) -> None:
    """Rounds in place (less than float32 rounds the largest) so that sums over all ranks are exact in float64."""
    extremes = gather(torch.tensor([rows.max(initial=0), rows.min(initial=0)], dtype=torch.float64))
    largest = float(extremes.abs().max())
    grid = 2.0 ** (np.ceil(np.log2(largest * num_rows or 1)) - _EXACT_BITS)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows[part] = np.round(rows[part] / grid) * grid


def _distances(rows: FloatArray, centroids: NDArray[np.float64], clusters: IntArray) -> NDArray[np.float64]:
    """(m,) of each row to its centroid."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        distances[part] = np.linalg.norm(rows[part] - centroids[clusters[part]], axis=1)
    return distances


def _move(totals: NDArray[np.float64], rows: FloatArray, previous: IntArray, clusters: IntArray) -> None:
    """Bring (k, d + 1), sum and number of the rows of each cluster, from the previous clusters to the new ones."""
    moved = np.flatnonzero(clusters != previous)
    for sign, belong in ((-1, previous), (1, clusters)):
        there = moved[belong[moved] >= 0]  # at first they are nowhere
        totals[:, -1] += sign * np.bincount(belong[there], minlength=len(totals))
        for start in range(0, len(there), _ROWS_AT_ONCE):
            part = there[start : start + _ROWS_AT_ONCE]
            entries = np.full(len(part), float(sign)), (belong[part], np.arange(len(part)))
            totals[:, :-1] += csr_array(entries, shape=(len(totals), len(part))) @ rows[part]


def _farthest(rows: IntArray, distances: NDArray[np.float64], most: int, gather: Gather) -> IntArray:
    """Row numbers of the samples of all ranks that are farthest from their centroids, none of those that are at it."""
    own = np.lexsort((rows, -distances))[:most]
    rows, distances = (gather(torch.from_numpy(values[own])).cpu().numpy() for values in (rows, distances))
    order = np.lexsort((rows, -distances))[:most]
    return rows[order[distances[order] > 0]]
