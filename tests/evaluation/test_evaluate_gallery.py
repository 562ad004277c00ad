"""Queries that are looked up in a gallery of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.evaluation import retrieval
from dmlscale.evaluation.clustering import cluster_metrics
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import brute_force, query_and_gallery, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def evaluate_on_rank(
    world: World, shares: list[tuple[Embedded, Embedded]], ks: tuple[int, ...] = (1, 2, 4, 8)
) -> dict[str, float] | str:
    """For the gloo pool: figures, or what the error says."""
    ranks = OverRanks(world, torch.device("cpu"))
    try:
        queries, gallery = shares[world.rank]
        found = evaluate(queries, gallery, gather=ranks.gather, all_sum=ranks.all_sum, rank=world.rank, ks=ks)
        return dict(found.metrics)
    except ValueError as error:
        return str(error)


def oracle(queries: Embedded, gallery: Embedded, ks: tuple[int, ...]) -> dict[str, float]:
    there = gallery.embeddings.numpy(), gallery.labels.numpy()
    return brute_force(queries.embeddings.numpy(), queries.labels.numpy(), ks, there)


def cut(samples: Embedded, shares: list[float]) -> list[Embedded]:
    """Shares of the samples by rank; one of 0 has, as after no batch, no dimension."""
    sizes = [int(share * len(samples.labels)) for share in shares]
    sizes[int(np.argmax(sizes))] += len(samples.labels) - sum(sizes)
    return [part if len(part.labels) else NOTHING for part in split(samples, sizes)]


@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force_and_counts(seed: int) -> None:
    queries, gallery = query_and_gallery(seed)
    result = evaluate(queries, gallery, ks=(1, 3)).metrics
    expected = oracle(queries, gallery, (1, 3))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    lone = int(np.isin(queries.labels, gallery.labels, invert=True).sum())
    assert result["num_lone_queries"] == lone > 0
    assert result["num_queries"] == len(queries.labels) - lone
    assert result["num_gallery"] == len(gallery.labels)
    assert result["num_classes"] == len(set(queries.labels.tolist()) | set(gallery.labels.tolist()))
    counts = {"num_clustered", "num_queries", "num_lone_queries", "num_gallery", "num_classes"}
    assert set(result) == {*expected, "nmi", "ami", "f1", *counts}


@settings(max_examples=30, deadline=None)
@given(
    num_queries=st.integers(1, 8),
    num_gallery=st.integers(1, 12),
    num_classes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_sizes_equal_brute_force(num_queries: int, num_gallery: int, num_classes: int, seed: int) -> None:
    """Galleries smaller than k, queries without a match, a single query."""
    rng = np.random.default_rng(seed)
    queries, gallery = (
        Embedded(
            torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32)),
            torch.from_numpy(rng.integers(0, num_classes, count)),
            torch.from_numpy(rng.permutation(50)[:count]),
        )
        for count in (num_queries, num_gallery)
    )
    if not np.isin(queries.labels, gallery.labels).any():
        with pytest.raises(ValueError, match="no query has a sample of its class in the gallery"):
            evaluate(queries, gallery)
        return
    result = evaluate(queries, gallery, ks=(1, 5), groups=("retrieval",)).metrics
    expected = oracle(queries, gallery, (1, 5))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("query_shares", "gallery_shares"),
    [
        ([1.0], [1.0]),
        ([0.3, 0.7], [0.6, 0.4]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([0.2, 0.5, 0.3], [0.1, 0.1, 0.8]),
        ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.0, 0.5, 0.5], [0.0, 1.0, 0.0]),
    ],
)
def test_the_same_at_any_number_of_ranks(
    gloo_pool: GlooPool, query_shares: list[float], gallery_shares: list[float]
) -> None:
    queries, gallery = query_and_gallery()
    shares = list(zip(cut(queries, query_shares), cut(gallery, gallery_shares), strict=True))
    results = gloo_pool.run(len(shares), evaluate_on_rank, shares)
    expected = oracle(queries, gallery, (1, 2, 4, 8)) | {
        name: evaluate(queries, gallery).metrics[name] for name in ("nmi", "ami", "f1")
    }
    assert all(result == results[0] for result in results)
    assert {name: results[0][name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_order_of_samples_does_not_matter_even_with_ties() -> None:
    queries, gallery = query_and_gallery()
    queries, gallery = (side._replace(embeddings=side.embeddings.round() + 0.25) for side in (queries, gallery))
    orders = (
        torch.randperm(len(side.labels), generator=torch.Generator().manual_seed(1)) for side in (queries, gallery)
    )
    shuffled = (
        Embedded(*(values[order] for values in side)) for side, order in zip((queries, gallery), orders, strict=True)
    )
    assert evaluate(*shuffled).metrics == pytest.approx(evaluate(queries, gallery).metrics, abs=1e-12)


def test_a_copy_of_a_query_in_the_gallery_is_its_neighbour() -> None:
    """Row numbers and ids of the two sides have nothing to do with each other."""
    queries, _ = query_and_gallery()
    result = evaluate(queries, queries).metrics
    assert result["recall_at_1"] == 1.0
    assert result["num_lone_queries"] == 0
    assert evaluate(queries).metrics["recall_at_1"] < 1.0


def test_nmi_is_of_queries_and_gallery_together() -> None:
    queries, gallery = query_and_gallery()
    gallery = gallery._replace(ids=torch.arange(len(gallery.ids)))  # some are ids of queries too
    order = [side.ids.argsort() for side in (queries, gallery)]
    both = [torch.cat([a[order[0]], b[order[1]]]) for a, b in zip(queries, gallery, strict=True)]
    together = Embedded(both[0], both[1], torch.arange(len(both[2])))
    expected = cluster_metrics(together, seed=7)
    result = evaluate(queries, gallery, seed=7).metrics
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert expected["nmi"] != pytest.approx(cluster_metrics(queries, seed=7)["nmi"], abs=1e-3)


def test_queries_are_searched_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = query_and_gallery()
    expected = evaluate(queries, gallery).metrics
    monkeypatch.setattr(retrieval, "queries_per_chunk", lambda k: 7)
    assert evaluate(queries, gallery).metrics == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_evaluated_is_an_error_on_every_rank(gloo_pool: GlooPool) -> None:
    queries, gallery = query_and_gallery()
    first, second = (list(cut(side, [0.5, 0.5])) for side in (queries, gallery))
    broken = second[1]._replace(embeddings=second[1].embeddings.clone())
    broken.embeddings[3, 0] = float("nan")
    strange = [side._replace(labels=side.labels + 100) for side in second]
    flat = [side._replace(embeddings=side.embeddings[:, :5]) for side in second]
    for sides, message in (
        ((first, [second[0], broken]), "diverged"),
        (([NOTHING, NOTHING], second), "no samples to evaluate"),
        ((first, [NOTHING, NOTHING]), "no samples in the gallery"),
        ((first, strange), "no query has a sample of its class in the gallery"),
        ((first, flat), "queries have 8 dimensions and the gallery has 5"),
    ):
        said = gloo_pool.run(2, evaluate_on_rank, list(zip(*sides, strict=True)))
        assert all(message in text for text in said)
