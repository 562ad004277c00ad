"""Neighbours in a gallery that is spread over ranks, against sorting of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.evaluation import sharded_search
from dmlscale.evaluation.neighbors import Metric, nearest
from dmlscale.evaluation.sharded_search import nearest_over_ranks
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import sorted_neighbors

Share = dict[str, Any]


def search_on_rank(
    world: World, shares: list[Share], k: int, metric: Metric, numbers_per_slice: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """For the gloo pool: values, rows, and the largest gathered tensor in numbers."""
    ranks = OverRanks(world, torch.device("cpu"))
    largest = 0

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        gathered = ranks.gather(tensor)
        largest = max(largest, gathered.numel())
        return gathered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_search, "NUMBERS_PER_SLICE", numbers_per_slice)
        values, rows = nearest_over_ranks(**shares[world.rank], k=k, metric=metric, gather=gather)
    return values, rows, largest


def spread_out(
    rng: np.random.Generator, num_ranks: int, queries: np.ndarray, gallery: np.ndarray, exclude: np.ndarray | None
) -> tuple[list[Share], list[np.ndarray]]:
    """Queries and gallery dealt out at random; the queries' positions by rank."""
    query_owner, item_owner = (rng.integers(0, num_ranks, len(rows)) for rows in (queries, gallery))
    shares, positions = [], []
    for rank in range(num_ranks):
        here = np.flatnonzero(query_owner == rank)
        own_rows = rng.permutation(np.flatnonzero(item_owner == rank))
        own = gallery[own_rows] if len(own_rows) else np.empty((0, 0), np.float32)
        share = {"queries": queries[here], "own": own, "own_rows": own_rows}
        shares.append(share | {"exclude": None if exclude is None else exclude[here]})
        positions.append(here)
    return shares, positions


def check(
    pool: GlooPool,
    num_ranks: int,
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    metric: Metric,
    exclude: np.ndarray | None,
    seed: int,
    numbers_per_slice: int = 60,
) -> None:
    shares, positions = spread_out(np.random.default_rng(seed), num_ranks, queries, gallery, exclude)
    expected_values, expected_rows = sorted_neighbors(queries, gallery, k, metric, exclude)
    found = pool.run(num_ranks, search_on_rank, shares, k, metric, numbers_per_slice)
    for (values, rows, largest), here in zip(found, positions, strict=True):
        assert rows.tolist() == expected_rows[here].tolist()
        np.testing.assert_allclose(values, expected_values[here], rtol=1e-6, atol=1e-6)
        # A gather hands in at least one row of each rank.
        assert largest <= max(numbers_per_slice, num_ranks * max(2, gallery.shape[1])) or num_ranks == 1


@settings(max_examples=30, deadline=None)
@given(
    num_ranks=st.integers(1, 4),
    num_queries=st.integers(1, 9),
    num_items=st.integers(1, 40),
    k=st.integers(1, 12),
    metric=st.sampled_from(["cosine", "euclidean"]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    seed=st.integers(0, 999),
)
def test_equals_sorting_all_pairs_with_exact_ties(
    gloo_pool: GlooPool,
    num_ranks: int,
    num_queries: int,
    num_items: int,
    k: int,
    metric: Metric,
    spread: float,
    seed: int,
) -> None:
    """Integer vectors of few values; with the cosine, of unit length already: no rounding."""
    rng = np.random.default_rng(seed)

    def points(count: int) -> np.ndarray:
        if metric == "cosine":
            return (np.eye(4)[rng.integers(0, 4, count)] * rng.choice([-1.0, 1.0], (count, 1))).astype(np.float32)
        return np.round(spread * rng.normal(size=(count, 4))).astype(np.float32)

    exclude = rng.integers(-1, num_items, num_queries) if seed % 2 else None
    check(gloo_pool, num_ranks, points(num_queries), points(num_items), k, metric, exclude, seed)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_copies_in_many_dimensions_are_equally_near_on_all_ranks(
    gloo_pool: GlooPool, metric: Metric, num_ranks: int
) -> None:
    """A float32 product rounds copies of one vector differently, by their place in it."""
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(40, 600)).astype(np.float32)[rng.integers(0, 40, 1500)]
    queries = rng.normal(size=(200, 600)).astype(np.float32)
    expected = nearest(queries, gallery, 60, metric=metric)
    assert expected[1].tolist() == sorted_neighbors(queries, gallery, 60, metric)[1].tolist()
    shares, positions = spread_out(rng, num_ranks, queries, gallery, None)
    for (values, rows, _), here in zip(
        gloo_pool.run(num_ranks, search_on_rank, shares, 60, metric, 100_000), positions, strict=True
    ):
        assert np.array_equal(values, expected[0][here])
        assert np.array_equal(rows, expected[1][here])


def test_each_sample_among_all_others(gloo_pool: GlooPool) -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(-3, 4, (300, 5)).astype(np.float32)  # many copies: itself is rarely the first hit
    check(gloo_pool, 3, points, points, 7, "euclidean", np.arange(300), seed=0, numbers_per_slice=256)


def test_one_process_searches_its_share_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_search, "NUMBERS_PER_SLICE", 1)
    own, rows = np.eye(5, dtype=np.float32), np.array([9, 3, 1, 2, 7])
    ((slice_of_all, numbers),) = sharded_search.gallery_slices(own, rows)
    assert slice_of_all is own
    assert numbers is rows
    values, found = nearest_over_ranks(own[:1], own, rows, 7)
    assert found.tolist() == [[9, 1, 2, 3, 7, -1, -1]]
    assert values.tolist() == [[1, 0, 0, 0, 0, -np.inf, -np.inf]]


def test_an_empty_gallery_has_no_neighbours() -> None:
    nothing = np.empty((0, 3), np.float32), np.empty(0, np.int64)
    values, rows = nearest_over_ranks(np.eye(3, dtype=np.float32), *nothing, 2, metric="euclidean")
    assert (rows == -1).all()
    assert (values == np.inf).all()
