from __future__ import annotations

import math
import tracemalloc
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dmlscale.distributed.world import World
from dmlscale.evaluation import clustering, neighbors
from dmlscale.evaluation.clustering import (
    adjusted_mutual_information,
    cluster_metrics,
    kmeans_over_ranks,
    nearest_centroids,
    pairwise_f1,
)
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import Gallery, Metric, normalize
from dmlscale.evaluation.subsample import checked_share, few_enough, hash_order
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import random_samples, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
clusterings = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60)


def figures_on_rank(world: World, shares: list[Embedded], options: dict[str, Any]) -> dict[str, float]:
    """For the gloo pool."""
    ranks = OverRanks(world, torch.device("cpu"))
    return cluster_metrics(shares[world.rank], gather=ranks.gather, all_sum=ranks.all_sum, rank=world.rank, **options)


def clustered_on_rank(world: World, shares: list[Embedded], options: dict[str, Any]) -> Any:
    """For the gloo pool: figures and assignments, or what the error says."""
    ranks = OverRanks(world, torch.device("cpu"))
    local, k = shares[world.rank], options.get("num_clusters", 20)
    try:
        figures = cluster_metrics(local, gather=ranks.gather, all_sum=ranks.all_sum, rank=world.rank, **options)
    except ValueError as error:
        return str(error)
    share = checked_share(local, ranks.gather, rank=world.rank)
    options = {name: value for name, value in options.items() if name != "num_clusters"}
    return figures, kmeans_over_ranks(share, k, gather=ranks.gather, all_sum=ranks.all_sum, **options)


def samples_of(points: Any, labels: Any) -> Embedded:
    return Embedded(torch.as_tensor(np.asarray(points, np.float32)), torch.as_tensor(labels), torch.arange(len(labels)))


def blobs(num_blobs: int, each: int, dim: int, spread: float, seed: int) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_blobs * each) % num_blobs
    means = torch.randn(num_blobs, dim, generator=generator)
    return samples_of(means[labels] + spread * torch.randn(len(labels), dim, generator=generator), labels)


@settings(max_examples=200, deadline=None)
@given(clusterings)
def test_adjusted_information_equals_sklearn(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = (np.array(values, np.int64) + 2**40 for values in zip(*pairs, strict=True))
    expected = adjusted_mutual_info_score(labels, clusters)
    if abs(expected) > 2:  # both differences are nothing but rounding
        return
    assert adjusted_mutual_information(clusters, labels) == pytest.approx(expected, abs=1e-8)


def test_adjusted_information_of_many_clusters_and_special_cases() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 300, 3_000), rng.integers(0, 250, 3_000) ** 2
    expected = adjusted_mutual_info_score(labels, clusters)
    assert adjusted_mutual_information(clusters, labels) == pytest.approx(expected, abs=1e-10)
    everyone = np.arange(50)
    assert adjusted_mutual_information(everyone[::-1] * 7, everyone) == 1.0
    assert adjusted_mutual_information(np.zeros(50, int), everyone) == 0.0
    assert adjusted_mutual_information(np.zeros(50, int), np.ones(50, int)) == 1.0


@settings(max_examples=100, deadline=None)
@given(clusterings)
def test_f1_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = (np.array(values, np.int64) + 2**40 for values in zip(*pairs, strict=True))
    a, b = np.triu_indices(len(labels), 1)
    together, belong = clusters[a] == clusters[b], labels[a] == labels[b]
    if not (together | belong).any():
        assert pairwise_f1(clusters, labels) == 1.0
        return
    precision = (together & belong).sum() / max(1, together.sum())
    recall = (together & belong).sum() / max(1, belong.sum())
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert pairwise_f1(clusters, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_is_lloyds_algorithm_from_the_samples_that_are_first_by_hash(metric: Metric, seed: int) -> None:
    samples = blobs(20, 30, 16, 1.2, seed)
    points = samples.embeddings.numpy() if metric == "euclidean" else normalize(samples.embeddings.numpy())
    first = points[hash_order(np.arange(600), seed)[:20]]
    expected = KMeans(20, init=first, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(points).labels_
    found = kmeans_over_ranks(checked_share(samples), 20, metric=metric, seed=seed)
    np.testing.assert_array_equal(found, expected)
    figures = cluster_metrics(samples, metric=metric, seed=seed)
    assert figures["nmi"] == pytest.approx(normalized_mutual_info_score(samples.labels, expected), abs=1e-12)
    assert figures["ami"] == pytest.approx(adjusted_mutual_info_score(samples.labels, expected), abs=1e-9)


@pytest.mark.parametrize("spread", [0.5, 1.5, 100.0])
def test_is_as_good_as_faiss(spread: float) -> None:
    ours, theirs = [], []
    for seed in range(12):
        samples = blobs(40, 40, 32, spread, seed)
        ours.append(cluster_metrics(samples, seed=seed)["nmi"])
        points = normalize(samples.embeddings.numpy())
        reference = faiss.Kmeans(32, 40, niter=20, seed=seed, min_points_per_centroid=1, max_points_per_centroid=1600)
        reference.train(points)
        clusters = reference.index.search(points, 1)[1][:, 0]
        theirs.append(normalized_mutual_info_score(samples.labels, clusters))
    assert np.mean(ours) > np.mean(theirs) - 0.02


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(1, 400),
    num_centroids=st.integers(1, 30),
    dim=st.sampled_from([1, 3, 200]),
    offset=st.sampled_from([0.0, 1e4]),
    scale=st.sampled_from([1.0, 1e-22, 1e-23, 1e-40, 1e12]),
    on_grid=st.booleans(),
    seed=st.integers(0, 99),
)
def test_nearest_centroids_are_those_of_the_exact_search(
    num_rows: int, num_centroids: int, dim: int, offset: float, scale: float, on_grid: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, centroids = (rng.normal(size=(size, dim)) + offset for size in (num_rows, num_centroids))
    if on_grid:  # ties, and centroids that are there twice
        rows, centroids = np.round(rows), np.round(centroids)
    rows, centroids = rows * scale, centroids * scale
    points = rows.astype(np.float32)
    expected = Gallery(centroids, "euclidean").nearest(points, 1)[1][:, 0]
    np.testing.assert_array_equal(nearest_centroids(points, centroids), expected)


def test_empty_clusters_move_to_samples_that_are_far_away() -> None:
    """Many copies of one point are the first centroids; without a move, most clusters would stay empty."""
    points = np.concatenate([np.zeros((300, 2)), 100 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])])
    samples = samples_of(points, np.r_[np.zeros(300, int), 1, 2, 3, 4])
    figures = cluster_metrics(samples, metric="euclidean", seed=1)
    assert figures == {"nmi": pytest.approx(1.0), "ami": 1.0, "f1": 1.0, "num_clustered": 304}


def test_copies_that_cannot_be_told_apart_are_one_cluster() -> None:
    samples = samples_of(np.ones((30, 4)), np.arange(30) % 5)
    assert len(set(kmeans_over_ranks(checked_share(samples), 5).tolist())) == 1
    assert cluster_metrics(samples)["nmi"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sizes", [[100, 200], [300, 0], [0, 45, 255], [60, 1, 239]])
@pytest.mark.parametrize("kind", ["cosine", "euclidean", "grid"])
def test_the_same_bits_at_any_number_of_ranks(gloo_pool: GlooPool, sizes: list[int], kind: str) -> None:
    samples = random_samples(300, num_classes=20, dim=5)
    samples = samples._replace(labels=samples.labels + 2**60)
    if kind == "grid":  # copies and ties
        samples = samples._replace(embeddings=samples.embeddings.round())
    options = {"metric": "euclidean" if kind == "grid" else kind, "seed": 4, "num_clusters": 50}
    ((expected, clusters),) = gloo_pool.run(1, clustered_on_rank, [samples], options)
    shares = [share if len(share.ids) else NOTHING for share in split(samples, sizes)]
    shares.append(Embedded(*(values[5:9] for values in samples)))  # copies of what others hold
    for figures, found in gloo_pool.run(len(shares), clustered_on_rank, shares, options):
        assert figures == expected
        np.testing.assert_array_equal(found, clusters)


def totals_on_rank(world: World, shares: list[Embedded]) -> tuple[np.ndarray, np.ndarray]:
    """For the gloo pool: this rank's rounded rows, and the sums over all ranks of the rows of three clusters."""
    ranks = OverRanks(world, torch.device("cpu"))
    rows = shares[world.rank].embeddings.numpy().copy()
    clustering._round_to_grid(rows, 600, ranks.gather)
    totals = np.zeros((3, rows.shape[1] + 1))
    clusters = shares[world.rank].labels.numpy()
    clustering._move(totals, rows, np.full(len(rows), -1), clusters)
    return rows, ranks.all_sum(torch.from_numpy(totals)).numpy()


def test_sums_of_rows_of_any_magnitude_have_the_same_bits_at_any_number_of_ranks(gloo_pool: GlooPool) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(600, 7)) * 10.0 ** rng.integers(-14, 2, (600, 7))
    samples = samples_of(points, rng.integers(0, 3, 600))
    ((rows, expected),) = gloo_pool.run(1, totals_on_rank, [samples])
    for label in range(3):
        exact = [math.fsum(column) for column in rows[samples.labels == label].T.astype(np.float64)]
        assert expected[label, :-1].tolist() == exact
    np.testing.assert_allclose(rows, samples.embeddings, rtol=0, atol=1e-9)
    for sizes in ([100, 500], [1, 299, 300], [150, 0, 250, 200]):
        for _, totals in gloo_pool.run(len(sizes), totals_on_rank, split(samples, sizes)):
            np.testing.assert_array_equal(totals, expected)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_memory_is_that_of_one_copy_of_the_rows(monkeypatch: pytest.MonkeyPatch, metric: Metric) -> None:
    """Also where clusters are empty and most rows have two centroids that are equally near."""
    for module, name in (
        (clustering, "_ROWS_AT_ONCE"),
        (clustering, "_NUMBERS_AT_ONCE"),
        (neighbors, "_NUMBERS_AT_ONCE"),
    ):
        monkeypatch.setattr(module, name, 2_000)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, 64, generator=generator)[torch.arange(40_000) % 4]
    points[:100] += torch.randn(100, 64, generator=generator)
    share = checked_share(samples_of(points, torch.arange(40_000) % 4))
    tracemalloc.start()  # numpy tells it of its arrays
    try:
        clusters = kmeans_over_ranks(share, 12, metric=metric, iterations=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(clusters)) > 4  # empty ones have moved
    assert 1 < peak / share.embeddings.nbytes < 2


def test_of_many_samples_of_many_classes_some_classes_are_clustered(gloo_pool: GlooPool) -> None:
    samples = random_samples(300, num_classes=40)
    share = checked_share(samples)
    kept = few_enough(share, 1_000, seed=2)
    assert 0 < len(kept.ids) < 150
    is_kept = torch.isin(samples.ids, torch.from_numpy(kept.ids))
    expected = cluster_metrics(Embedded(*(values[is_kept] for values in samples)), seed=2)
    assert expected["num_clustered"] == len(kept.ids)
    options = {"most_distances": 1_000, "seed": 2}
    assert cluster_metrics(samples, **options) == expected  # type: ignore[arg-type]  # of mixed kinds
    assert cluster_metrics(samples, seed=2)["num_clustered"] == 300
    assert cluster_metrics(samples, num_clusters=5, **options)["num_clustered"] == 300  # type: ignore[arg-type]  # of mixed kinds
    shares = [NOTHING, *split(samples, [100, 200])]
    assert gloo_pool.run(3, figures_on_rank, shares, options) == [expected] * 3


def test_bad_input_is_an_error_on_every_rank(gloo_pool: GlooPool) -> None:
    shares = split(random_samples(60), [20, 40])
    for k in (0, 61):
        answers = gloo_pool.run(2, clustered_on_rank, shares, {"num_clusters": k})
        assert answers == [f"num_clusters = {k} of 60 samples: must be from 1 to their number"] * 2
    with pytest.raises(ValueError, match="unknown metric 'cos'"):
        cluster_metrics(shares[0], metric="cos")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="seed = -1: must be at least 0"):
        cluster_metrics(shares[0], seed=-1)
