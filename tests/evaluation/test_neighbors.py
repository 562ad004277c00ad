import builtins
import importlib
from typing import Any

import numpy as np
import pytest

from dmlscale.evaluation import neighbors
from dmlscale.evaluation.neighbors import FaissMissingError, nearest, normalize, require_faiss
from tests.evaluation.oracles import sorted_neighbors


def _points(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_sorting_all_pairs(metric: Any) -> None:
    queries, gallery = _points(13, seed=1), _points(40, seed=2)
    if metric == "cosine":
        unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
        values = unit[0] @ unit[1].T
        order = np.argsort(-values, axis=1)[:, :5]
    else:
        values = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
        order = np.argsort(values, axis=1)[:, :5]
    got_values, got_rows = nearest(queries, gallery, 5, metric=metric)
    assert got_rows.tolist() == order.tolist()
    np.testing.assert_allclose(got_values, np.take_along_axis(values, order, 1), rtol=1e-5, atol=1e-6)
    assert got_values.dtype == np.float32
    assert got_rows.dtype == np.int64


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_queries", [3, 25])  # faiss multiplies matrices from 20 on
@pytest.mark.parametrize("k", [5, 99, 100, 150])  # and keeps the best in another way from 100 on
def test_of_equally_near_items_the_lower_rows_come_first(metric: Any, num_queries: int, k: int) -> None:
    rng = np.random.default_rng(k)
    gallery = rng.integers(-2, 3, (2000, 4)).astype(np.float32)  # 625 different ones
    queries, own = gallery[:num_queries], np.arange(num_queries)
    for exclude in (None, own):
        values, rows = nearest(queries, gallery, k, exclude=exclude, metric=metric)
        expected_values, expected_rows = sorted_neighbors(queries, gallery, k, metric, exclude)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(values, expected_values, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_copies_in_many_dimensions_are_equally_near(metric: Any) -> None:
    """Products in float32 round copies of one vector differently, by their place in the matrix."""
    rng = np.random.default_rng(0)
    gallery = _points(40, d=600)[rng.integers(0, 40, 1501)]
    queries = _points(333, d=600, seed=1)
    _, rows = nearest(queries, gallery, 60, metric=metric)
    np.testing.assert_array_equal(rows, sorted_neighbors(queries, gallery, 60, metric)[1])


def test_distances_of_near_points_far_from_the_origin_are_exact() -> None:
    """Through squared lengths, as in faiss, nothing would be left of them in float32."""
    points = np.float32(1000) + np.round(_points(200, d=8) * 64) / 64
    values, rows = nearest(points, points, 3, exclude=np.arange(200), metric="euclidean")
    expected_values, expected_rows = sorted_neighbors(points, points, 3, "euclidean", np.arange(200))
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(values, expected_values, rtol=1e-6)


def test_without_ties_faiss_alone_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "closest_of_all", None)
    points = _points(2000, d=32)
    for metric in ("cosine", "euclidean"):
        nearest(points[:500], points, 10, exclude=np.arange(500), metric=metric)


def test_self_is_excluded_by_row_among_exact_duplicates() -> None:
    gallery = np.repeat(_points(4), 5, axis=0)  # every point five times: self is rarely the first hit
    own = np.arange(20)
    _, rows = nearest(gallery, gallery, 4, exclude=own)
    assert not (rows == own[:, None]).any()
    assert (rows // 5 == (own // 5)[:, None]).all()


def test_self_is_excluded_where_more_duplicates_than_neighbours_hide_it() -> None:
    gallery = np.ones((50, 3), np.float32)
    _, rows = nearest(gallery, gallery, 3, exclude=np.arange(50))
    assert not (rows == np.arange(50)[:, None]).any()
    assert all(len(set(row)) == 3 for row in rows.tolist())


def test_query_outside_the_gallery_excludes_nothing() -> None:
    gallery = _points(6)
    _, rows = nearest(gallery[:2], gallery, 2, exclude=np.array([-1, 1]))
    assert rows[0, 0] == 0
    assert rows[1, 0] != 1


def test_more_neighbours_than_gallery_are_padded() -> None:
    gallery = _points(3)
    values, rows = nearest(gallery, gallery, 5, exclude=np.arange(3))
    assert (rows[:, 2:] == -1).all()
    assert sorted(rows[0, :2].tolist()) == [1, 2]
    assert (values[:, 2:] == -np.inf).all()
    assert (nearest(gallery, gallery, 5, metric="euclidean")[0][:, 3:] == np.inf).all()


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.round(_points(300, d=4) * 4)  # exact arithmetic with many ties
    points[(points == 0).all(axis=1)] = 1
    whole = nearest(points, points, 7, exclude=np.arange(300), metric="euclidean")
    monkeypatch.setattr(neighbors, "RESULTS_PER_CHUNK", 8 * 37)
    assert neighbors.queries_per_chunk(7) == 37
    parts = nearest(points, points, 7, exclude=np.arange(300), metric="euclidean")
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_nan_is_a_clear_error() -> None:
    points = _points(5)
    points[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 queries hold NaN or infinity \(first: row 3\)"):
        nearest(points, _points(5), 2)
    with pytest.raises(ValueError, match="gallery hold NaN"):
        nearest(_points(5), points, 2)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-22, 1e19, 1e37])
def test_directions_of_very_short_and_very_long_vectors_count(scale: float) -> None:
    """In float32 their squares are zero or infinite."""
    points = (_points(50) * scale).astype(np.float32)
    values, rows = nearest(points, points, 5, exclude=np.arange(50))
    unit = points.astype(np.float64) / np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    np.testing.assert_array_equal(rows, np.argsort(-similarity, axis=1)[:, :5])
    np.testing.assert_allclose(values, np.take_along_axis(similarity, rows, 1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(normalize(np.asfortranarray(points)), unit, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1e-23, 1e-22, 1e-20, 1e10, 1e15])
def test_distances_between_very_short_and_very_long_vectors_are_exact(scale: float) -> None:
    for seed in range(4):
        points = ((_points(60, d=4, seed=seed) + 10) * scale).astype(np.float32)
        values, rows = nearest(points, points, 5, exclude=np.arange(60), metric="euclidean")
        expected_values, expected_rows = sorted_neighbors(points, points, 5, "euclidean", np.arange(60))
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(values, expected_values, rtol=1e-6, atol=1e-44)  # float32 ends at 1.4e-45


def test_vectors_too_long_for_squared_distances_are_a_clear_error() -> None:
    points = _points(5)
    points[2] *= np.float32(1e18)
    with pytest.raises(
        ValueError, match=r"1 of 5 gallery hold NaN or infinity, or are longer than 1e\+18 \(first: row 2"
    ):
        nearest(_points(5), points, 2, metric="euclidean")
    with pytest.raises(ValueError, match=r"1 of 5 queries .* longer than 1e\+18"):
        nearest(points, _points(5), 2, metric="euclidean")
    assert nearest(points, points, 2)[1].shape == (5, 2)


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown metric 'cos': there are cosine, euclidean"):
        nearest(_points(5), _points(5), 2, metric="cos")  # type: ignore[arg-type]  # wrong on purpose


def test_zero_vector_is_near_nothing_but_no_error() -> None:
    values, rows = nearest(np.zeros((1, 3)), np.eye(3), 3)
    assert values.tolist() == [[0, 0, 0]]
    assert sorted(rows[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("k", "gallery"), [(0, _points(4)), (1, np.empty((0, 6))), (1, _points(4, d=5))])
def test_shapes_that_do_not_fit_are_errors(k: int, gallery: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        nearest(_points(2), gallery, k)


def test_no_queries_give_no_rows() -> None:
    assert nearest(np.empty((0, 6)), _points(4), 2)[1].shape == (0, 2)


def test_without_faiss_the_error_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def hide(name: str, package: str | None = None) -> Any:
        if name == "faiss":
            raise builtins.ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", hide)
    with pytest.raises(FaissMissingError, match=r'exactly one.*dmlscale\[cpu\]".*or.*dmlscale\[gpu\]"'):
        require_faiss()


class _GpuWheel:
    """Stands for the GPU wheel: the same search under the GPU's call, which notes that it was used."""

    METRIC_INNER_PRODUCT, METRIC_L2 = 0, 1
    StandardGpuResources = object

    def __init__(self) -> None:
        self._faiss = require_faiss()
        self.calls: list[str] = []

    def get_num_gpus(self) -> int:
        return 1

    def knn_gpu(self, resources: object, queries: Any, gallery: Any, k: int, metric: int) -> Any:
        self.calls.append("gpu")
        return self._faiss.knn(queries, gallery, k, metric=metric)

    def knn(self, queries: Any, gallery: Any, k: int, metric: int) -> Any:
        self.calls.append("cpu")
        return self._faiss.knn(queries, gallery, k, metric=metric)


def test_gpu_is_used_where_there_is_one_up_to_its_largest_k(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _GpuWheel()
    monkeypatch.setattr(neighbors, "require_faiss", lambda: wheel)
    points = _points(9)
    _, rows = nearest(points, points, 3, exclude=np.arange(9))
    nearest(points, points, 2048)
    assert wheel.calls == ["gpu", "cpu"]
    monkeypatch.undo()
    np.testing.assert_array_equal(rows, nearest(points, points, 3, exclude=np.arange(9))[1])
