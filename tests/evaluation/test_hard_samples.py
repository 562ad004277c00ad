from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.evaluation import hard_samples
from dmlscale.evaluation.hard_samples import Mined, mine_hard_samples
from dmlscale.evaluation.neighbors import Metric


def distances(embeddings: np.ndarray, metric: Metric) -> np.ndarray:
    """(n, n), smaller is nearer."""
    points = embeddings.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(points[:, None] - points, axis=2)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.where(lengths > 0, lengths, 1)
    return -points @ points.T


def check_against_brute_force(embeddings: np.ndarray, labels: np.ndarray, m: int, metric: Metric) -> None:
    """Among equally near samples any may be taken, so distances are compared, not positions."""
    mined = mine_hard_samples(embeddings, labels, m, metric=metric)
    table, everything = mined.table, distances(embeddings, metric)
    nearest = []
    for sample in range(len(labels)):
        is_own = labels == labels[sample]
        found = table.nearest_negatives[sample]
        assert not is_own[found].any()
        assert len(set(found.tolist())) == m
        expected = np.sort(everything[sample, ~is_own])[:m]
        np.testing.assert_allclose(everything[sample, found], expected, rtol=1e-5, atol=1e-4)
        nearest.append(expected[0])
        is_own[sample] = False
        positive = table.farthest_positive[sample]
        if not is_own.any():
            assert positive == -1
            continue
        assert is_own[positive]
        assert everything[sample, positive] >= everything[sample, is_own].max() - 1e-4
    sign = -1 if metric == "cosine" else 1
    assert mined.nearest_negative == pytest.approx(sign * np.mean(nearest), abs=1e-4)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Points with exact ties and duplicates; classes of one, and classes much larger than m."""
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.permutation(np.repeat(3 * np.arange(len(counts)), counts))
    spread = draw(st.sampled_from([0.0, 1.0, 100.0]))  # 0: all at one place
    points = np.round(spread * rng.normal(size=(len(labels), 3))).astype(np.float32)
    m = draw(st.integers(1, len(labels) - max(counts)))
    return {"embeddings": points, "labels": labels, "m": m, "metric": draw(st.sampled_from(["cosine", "euclidean"]))}


@given(cases())
def test_table_equals_brute_force(case: dict[str, Any]) -> None:
    check_against_brute_force(**case)


@settings(max_examples=40)
@given(cases(), st.integers(1, 20))
def test_classes_searched_for_among_the_others_equal_brute_force(case: dict[str, Any], large: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_samples, "LARGE_CLASS", large)
        patch.setattr(hard_samples, "FEWEST_QUERIES", 7)
        patch.setattr(hard_samples, "_DISTANCES_AT_ONCE", 20)
        check_against_brute_force(**case)


def test_converged_classes_hide_the_negatives_behind_many_positives() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 300)
    embeddings = (50 * np.eye(4, 8)[labels] + rng.normal(size=(1200, 8))).astype(np.float32)
    check_against_brute_force(embeddings, labels, 5, "euclidean")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_ranks", [2, 3, 5, 70])
def test_the_same_table_at_any_number_of_ranks(metric: Metric, num_ranks: int) -> None:
    """Nearly equal distances too: their rounding, which from d = 128 on depends on the number of queries, must not."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 150, 1000)
    embeddings = np.repeat(rng.normal(size=(100, 128)), 10, axis=0).astype(np.float32)
    embeddings += rng.normal(size=embeddings.shape).astype(np.float32) * 1e-6

    def on_rank(rank: int, gathered: Any, total: Any) -> Mined:
        return mine_hard_samples(
            embeddings, labels, 6, metric=metric, gather=gathered, all_sum=total, rank=rank, num_ranks=num_ranks
        )

    shares: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []

    def keep_share(tensor: torch.Tensor) -> torch.Tensor:
        shares.append(tensor)
        return torch.zeros(len(labels), tensor.shape[1], dtype=tensor.dtype)

    def keep_sum(tensor: torch.Tensor) -> torch.Tensor:
        sums.append(tensor)
        return tensor

    for rank in range(num_ranks):
        on_rank(rank, keep_share, keep_sum)
    together = on_rank(0, lambda _: torch.cat(shares), lambda _: torch.stack(sums).sum(dim=0))
    alone = mine_hard_samples(embeddings, labels, 6, metric=metric)
    assert np.array_equal(together.table.nearest_negatives, alone.table.nearest_negatives)
    assert np.array_equal(together.table.farthest_positive, alone.table.farthest_positive)
    assert together.nearest_negative == pytest.approx(alone.nearest_negative)
    if num_ranks < 10:
        assert all(len(share) for share in shares)


@pytest.mark.parametrize("m", [0, 4])
def test_more_negatives_than_there_are_is_an_error(m: int) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match=f"{m} negatives of each sample: must be from 1 to 3"):
        mine_hard_samples(np.eye(7, dtype=np.float32), labels, m)


def test_nan_is_an_error() -> None:
    embeddings = np.eye(4, dtype=np.float32)
    embeddings[1, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        mine_hard_samples(embeddings, np.array([0, 0, 1, 1]), 1)
