"""Indexes find what they should, their recall is measured rightly, and files come back as they were."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.evaluation.closeness import Metric
from dmlscale.evaluation.copies import Copies
from dmlscale.evaluation.vector_index import Kind, VectorIndex, choose_parameters, measure_recall

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


def clustered(num_vectors: int, dim: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_vectors // 40, dim))
    chosen = centers[rng.integers(0, len(centers), num_vectors)]
    return (chosen + 0.4 * rng.normal(size=chosen.shape)).astype(np.float32)


def brute_force(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """(n, n) closeness in float64, higher is closer; of a vector to itself -inf."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        closeness = wide @ wide.T
    else:
        closeness = -np.linalg.norm(wide[:, None] - wide[None], axis=2)
    np.fill_diagonal(closeness, -np.inf)
    return closeness


def built(vectors: np.ndarray, kind: Kind, metric: Metric) -> VectorIndex:
    copies = Copies.among(vectors)
    return VectorIndex.build(vectors, copies, choose_parameters(kind, len(copies.counts), vectors.shape[1]), metric)


@given(num_vectors=st.integers(1, 60), dim=st.integers(1, 9), k=st.integers(1, 70), metric=st.sampled_from(METRICS))
@settings(deadline=None, max_examples=40)
def test_flat_is_exact(num_vectors: int, dim: int, k: int, metric: Metric) -> None:
    vectors = np.random.default_rng(num_vectors).normal(size=(num_vectors, dim)).astype(np.float32)
    own = np.arange(num_vectors)
    values, rows = built(vectors, "flat", metric).search(vectors, k, exclude=own)
    expected = np.sort(brute_force(vectors, metric), axis=1)[:, ::-1]
    count = min(k, num_vectors - 1)
    signed = values if metric == "cosine" else -values
    np.testing.assert_allclose(signed[:, :count], expected[:, :count], atol=2e-3)
    assert (rows != own[:, None]).all()
    assert (rows[:, :count] >= 0).all()
    assert all(len(set(found)) == count for found in rows[:, :count].tolist())
    assert (rows[:, count:] == -1).all()
    assert np.isneginf(signed[:, count:]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("kind", "at_1", "at_10"), [("flat", 1.0, 1.0), ("hnsw", 0.99, 0.99), ("ivf_pq", 0.5, 0.75)])
def test_recall_is_that_of_brute_force(kind: Kind, at_1: float, at_10: float, metric: Metric, tmp_path: Path) -> None:
    vectors = clustered(20_000, 8)
    index = built(vectors, kind, metric)
    queries = np.random.default_rng(1).choice(len(vectors), 200, replace=False)
    measured = measure_recall(index, vectors, queries)
    # The same without faiss and without ties.
    _, found = index.search(vectors[queries], 10, exclude=queries)
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    closeness = 2 * wide[queries] @ wide.T - (wide**2).sum(axis=1)  # the order of both
    closeness[np.arange(len(queries)), queries] = -np.inf
    exact = np.argsort(-closeness, axis=1)[:, :10]
    for k, least in ((1, at_1), (10, at_10)):
        shared = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
        assert measured.at[k] == pytest.approx(np.mean(shared), abs=1e-3)
        assert measured.at[k] >= least
    assert measured.num_queries == 200
    assert measured.ms_per_query > 0
    assert measured.exact_ms_per_query > 0
    # From a file: the same parameters, so the same answers.
    index.save(tmp_path / "index.faiss")
    again = VectorIndex.load(tmp_path / "index.faiss", index.copies, metric)
    assert (again.num_vectors, again.embedding_dim) == (20_000, 8)
    values, rows = index.search(vectors[:50], 10)
    again_values, again_rows = again.search(vectors[:50], 10)
    assert np.array_equal(values, again_values)
    assert np.array_equal(rows, again_rows)


def test_a_worse_search_has_a_lower_recall() -> None:
    """The measure is not always one: 20 of 40 vectors are missing from what is searched."""
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    far = vectors.copy()
    far[20:] *= 100
    index = built(far, "flat", "euclidean")
    closeness = brute_force(vectors, "euclidean")
    closest = np.argsort(-closeness[:20], axis=1)
    measured = measure_recall(index, vectors, np.arange(20), ks=(1, 5))
    # Those at a hundred times the distance are never found, as long as there are five of the others.
    assert measured.at[1] == pytest.approx((closest[:, 0] < 20).mean())
    assert measured.at[5] == pytest.approx((closest[:, :5] < 20).mean())
    assert measured.at[5] < 0.9


def test_of_equal_vectors_any_will_do() -> None:
    vectors = np.repeat(np.eye(3, 4, dtype=np.float32), 50, axis=0)
    for metric in METRICS:
        assert measure_recall(built(vectors, "flat", metric), vectors, np.arange(150)).at == {1: 1.0, 10: 1.0}


@pytest.mark.parametrize("metric", METRICS)
def test_a_heap_of_copies_hides_nothing(metric: Metric) -> None:
    vectors = np.random.default_rng(0).normal(size=(4_000, 16)).astype(np.float32)
    vectors[1_000:] = vectors[0]
    index = built(vectors, "hnsw", metric)
    assert measure_recall(index, vectors, np.arange(1, 500)).at[1] > 0.99
    _, rows = index.search(vectors[:1], 3_001)
    assert sorted(rows[0].tolist()) == [0, *range(1_000, 4_000)]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """faiss's own writer only prints that the end of a file has found no room."""
    index = built(np.random.default_rng(0).normal(size=(3_000, 8)).astype(np.float32), "flat", "cosine")
    index.save(tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1_000, size - 1, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            if room < size:
                with pytest.raises(OSError, match="File too large"):
                    index.save(tmp_path / "file")
            else:
                index.save(tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "whole").read_bytes()


def test_fewer_neighbours_than_asked_for() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert measure_recall(built(vectors, "hnsw", "cosine"), vectors, np.arange(4)).at == {1: 1.0, 10: 1.0}
    with pytest.raises(ValueError, match="recall of 1 queries in 1 vectors"):
        measure_recall(built(vectors[:1], "flat", "cosine"), vectors[:1], np.arange(1))


@given(num_vectors=st.integers(9_984, 10**9), dim=st.integers(1, 5_000))
def test_parameters_of_ivf_pq_follow_their_rule(num_vectors: int, dim: int) -> None:
    parameters = choose_parameters("ivf_pq", num_vectors, dim)
    padded, num_lists, num_bytes = (
        int("".join(letter for letter in part if letter.isdigit())) for part in parameters.factory.split(",")
    )
    assert num_lists * 39 <= num_vectors
    assert num_lists <= 4 * num_vectors**0.5 + 1
    assert 1 <= num_bytes <= 64
    assert dim <= padded < dim + num_bytes
    assert padded % num_bytes == 0
    assert min(num_vectors, 30 * num_lists, 9_984) <= parameters.num_training <= num_vectors
    assert 8 <= parameters.settings["nprobe"] <= num_lists


@pytest.mark.parametrize(
    ("kind", "num_vectors", "dim", "message"),
    [
        ("ivf_pq", 9_983, 8, "9,983 vectors are too few to train ivf_pq, which needs 9,984: use flat"),
        ("tree", 10, 8, "unknown kind of index 'tree'"),
        ("flat", 0, 8, "0 vectors"),
    ],
)
def test_wrong_parameters(kind: Kind, num_vectors: int, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_parameters(kind, num_vectors, dim)


def test_wrong_queries_and_files(tmp_path: Path) -> None:
    index = built(np.eye(5, 3, dtype=np.float32), "flat", "cosine")
    for queries, message in (
        (np.ones((1, 4)), r"\(q, 3\)"),
        (np.ones(3), r"\(q, 3\)"),
        (np.full((1, 3), np.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(queries, 1)
    with pytest.raises(ValueError, match="k = 0"):
        index.search(np.ones((1, 3)), 0)
    index.save(tmp_path / "good")
    with pytest.raises(ValueError, match="not made for the metric 'euclidean'"):
        VectorIndex.load(tmp_path / "good", index.copies, "euclidean")
    with pytest.raises(ValueError, match="good holds 4 vectors, 3 different ones are named"):
        VectorIndex.load(tmp_path / "good", Copies.none(3), "cosine")
    (tmp_path / "cut").write_bytes((tmp_path / "good").read_bytes()[:-9])
    (tmp_path / "text").write_bytes(b"hello world")
    for name in ("cut", "text"):
        with pytest.raises(ValueError, match=f"{name} is damaged, or no index of faiss"):
            VectorIndex.load(tmp_path / name, index.copies, "cosine")
    with pytest.raises(ValueError, match="there is no"):
        VectorIndex.load(tmp_path / "none", index.copies, "cosine")
    with pytest.raises(OSError, match="No such file"):
        index.save(tmp_path / "none" / "file")
