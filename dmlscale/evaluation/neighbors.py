"""Exact nearest neighbours and k-means: the only door to faiss.

q queries, n gallery items, d dimensions, k neighbours. Bounded memory: queries go through in chunks.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "euclidean"]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

RESULTS_PER_CHUNK = 8_000_000
"""Neighbours kept at once (12 bytes each, a few temporaries beside them: about 400 MB)."""
QUERIES_PER_CHUNK = 65_536
_MAX_K_ON_GPU = 2048  # a limit of faiss's GPU kernels


class FaissMissingError(ImportError):
    """Neither faiss wheel is installed."""

    def __init__(self) -> None:
        super().__init__(
            "evaluation needs faiss, which comes in two wheels that share one module; install exactly one: "
            '`pip install "dmlscale[cpu]"`, or `pip install "dmlscale[gpu]"` on a machine with an NVIDIA GPU'
        )


def require_faiss() -> ModuleType:
    """The faiss module; call it early so that a missing wheel is told before training, not after it.

    Raises:
        FaissMissingError: there is none.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise FaissMissingError from error


def queries_per_chunk(k: int) -> int:
    """How many queries to search at once so that their k neighbours fit in memory."""
    return max(1, min(QUERIES_PER_CHUNK, RESULTS_PER_CHUNK // (k + 1)))


def nearest(
    queries: NDArray[Any],
    gallery: NDArray[Any],
    k: int,
    *,
    exclude: NDArray[Any] | None = None,
    metric: Metric = "cosine",
) -> tuple[FloatArray, IntArray]:
    """The k nearest gallery items of each query, nearest first, by exhaustive search.

    Args:
        queries: (q, d) finite.
        gallery: (n, d) finite.
        k: may be larger than the gallery; missing neighbours have row -1.
        exclude: (q,) gallery row of the query itself, or -1. It is dropped wherever it is found: among exact
            duplicates the query is not always its own first hit, so dropping the first column would be wrong.
        metric: "cosine" gives similarities (higher is closer), "euclidean" distances (lower is closer).

    Returns:
        (q, k) float32 similarities or distances (-inf or inf where missing), (q, k) int64 gallery rows.

    Raises:
        ValueError: NaN or infinite values, or shapes that do not fit.
        FaissMissingError: neither faiss wheel is installed.
    """
    return Gallery(gallery, metric).nearest(queries, k, exclude=exclude)


class Gallery:
    """Items to search, checked and brought to the metric's form once for many searches.

    Args:
        rows: (n, d) finite.
        metric: as for `nearest`.

    Raises:
        ValueError: NaN or infinite values, or no items.
        FaissMissingError: neither faiss wheel is installed.
    """

    def __init__(self, rows: NDArray[Any], metric: Metric) -> None:
        self._faiss = require_faiss()
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"gallery {rows.shape} must be (n, d), n at least 1")
        _require_finite(rows, "gallery")
        self.rows, self.metric = _prepare(rows, metric), metric

    def nearest(
        self, queries: NDArray[Any], k: int, *, exclude: NDArray[Any] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """What the function `nearest` returns."""
        _check(queries, self.rows, k, exclude)
        queries = _prepare(queries, self.metric)
        skip = np.full(len(queries), -1, np.int64) if exclude is None else np.asarray(exclude, np.int64)
        chunk = queries_per_chunk(k)
        values = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        search = _gpu_search(self._faiss, k + 1) or self._faiss.knn
        is_cosine = self.metric == "cosine"
        faiss_metric = self._faiss.METRIC_INNER_PRODUCT if is_cosine else self._faiss.METRIC_L2
        for start in range(0, len(queries), chunk):
            part = slice(start, start + chunk)
            found_values, found_rows = search(queries[part], self.rows, k + 1, metric=faiss_metric)
            values[part], rows[part] = _drop(found_values, found_rows.astype(np.int64, copy=False), skip[part])
        if not is_cosine:
            values = np.sqrt(np.maximum(values, 0))  # faiss gives squares; rounding may leave them just below 0
        values[rows < 0] = -np.inf if is_cosine else np.inf
        return values, rows


def kmeans(embeddings: NDArray[Any], num_clusters: int, *, seed: int = 0, iterations: int = 20) -> IntArray:
    """Cluster of each row, by Lloyd's algorithm over all rows (faiss would subsample by default).

    Args:
        embeddings: (n, d) finite.
        num_clusters: at most n.
        seed: of the first centroids.
        iterations: of Lloyd's algorithm.

    Returns:
        (n,) int64 in [0, num_clusters).
    """
    faiss = require_faiss()
    rows = np.ascontiguousarray(embeddings, np.float32)
    _require_finite(rows, "embeddings")
    if not 1 <= num_clusters <= len(rows):
        raise ValueError(f"{num_clusters} clusters of {len(rows)} rows: must be from 1 to the number of rows")
    clustering = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed,
        gpu=_has_gpu(faiss),
        # Classes of a zero-shot split are small: without these two, faiss warns or drops rows.
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    clustering.train(rows)
    _, assignments = clustering.index.search(rows, 1)
    return np.asarray(assignments[:, 0], np.int64)


def normalize(rows: NDArray[Any]) -> FloatArray:
    """Rows of unit length; a zero vector has no direction and stays zero, with similarity 0 to everything."""
    rows = np.asarray(rows, np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _has_gpu(faiss: ModuleType) -> bool:
    # The CPU wheel has neither of the two; the GPU wheel also imports on a machine without a GPU.
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _gpu_search(faiss: ModuleType, k: int) -> Any:
    if not _has_gpu(faiss) or k > _MAX_K_ON_GPU:
        return None
    resources = faiss.StandardGpuResources()
    return lambda queries, gallery, k, metric: faiss.knn_gpu(resources, queries, gallery, k, metric=metric)


def _drop(values: FloatArray, rows: IntArray, skip: IntArray) -> tuple[FloatArray, IntArray]:
    """(q, k+1) -> (q, k): without the row to skip, or without the last one where it was not found."""
    keep = (rows != skip[:, None]) | (skip < 0)[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = (len(rows), rows.shape[1] - 1)
    return values[keep].reshape(shape), rows[keep].reshape(shape)


def _prepare(rows: NDArray[Any], metric: Metric) -> FloatArray:
    return normalize(rows) if metric == "cosine" else np.ascontiguousarray(rows, np.float32)


def _check(queries: NDArray[Any], gallery: NDArray[Any], k: int, exclude: NDArray[Any] | None) -> None:
    if queries.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (q, d) and (n, d)")
    if k < 1:
        raise ValueError(f"k = {k} neighbours: must be at least 1")
    if exclude is not None and len(exclude) != len(queries):
        raise ValueError(f"exclude has {len(exclude)} rows for {len(queries)} queries")
    _require_finite(queries, "queries")


def _require_finite(rows: NDArray[Any], name: str) -> None:
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(rows)} {name} hold NaN or infinity (first: row {broken[0]}): "
            "the training has probably diverged; try a lower learning rate"
        )
