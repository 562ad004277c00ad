"""Exact nearest neighbours: with vector_index.py the only doors to faiss.

q queries, n gallery items, d dimensions, k neighbours. Bounded memory: queries go through in chunks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.closeness import (
    FloatArray,
    IntArray,
    Metric,
    closeness_of_pairs,
    closest_of_all,
    require_metric,
)

RESULTS_PER_CHUNK = 8_000_000
"""Neighbours kept at once (12 bytes each, a few temporaries beside them: about 400 MB)."""
QUERIES_PER_CHUNK = 65_536
LONGEST = 1e18
"""Length of a vector from which on squared distances may leave the range of float32."""
_NUMBERS_AT_ONCE = 4_000_000  # that are normalized or checked: 32 MB in float64
_MAX_K_ON_GPU = 2048  # a limit of faiss's GPU kernels
_ROUNDING = 2.0**-23
"""Times the root of the number of dimensions and the product of both lengths: a dozen times the rounding errors that
products in float32 have.
"""
_VANISHED = 2.0**-120  # times d: more than what is lost of squares and products too small for float32


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
    """The k nearest gallery items of each query by exhaustive search, nearest first.

    Of equally near ones the one with the lower row comes first. Near means: by `closeness_of_pairs`, which is float64
    rounded to float32, so the result does not depend on how faiss rounds, or on how many queries are searched together.
    Copies of a vector are always equally near. Vectors that should be equally near but do not have the same bits may
    not be: what they lost by rounding before the search decides.

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
        ValueError: NaN or infinite values, Euclidean lengths above `LONGEST`, shapes that do not fit, or an unknown
            metric.
        FaissMissingError: neither faiss wheel is installed.
    """
    return Gallery(gallery, metric).nearest(queries, k, exclude=exclude)


class Gallery:
    """Items to search, checked and brought to the metric's form once for many searches.

    Args:
        rows: (n, d) finite.
        metric: as for `nearest`.
        numbers: (n,) distinct, not negative: what the items are called in `exclude` and in results, and what decides
            between equally near ones. Their positions if not given.

    Raises:
        ValueError: NaN or infinite values, Euclidean lengths above `LONGEST`, no items, or an unknown metric.
        FaissMissingError: neither faiss wheel is installed.
    """

    def __init__(self, rows: NDArray[Any], metric: Metric, *, numbers: IntArray | None = None) -> None:
        require_metric(metric)
        self._faiss = require_faiss()
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"gallery {rows.shape} must be (n, d), n at least 1")
        _require_usable(rows, "gallery", metric)
        self.rows, self.metric = prepare(rows, metric), metric
        self._numbers = np.arange(len(rows)) if numbers is None else numbers

    def nearest(
        self, queries: NDArray[Any], k: int, *, exclude: NDArray[Any] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """What the function `nearest` returns."""
        _check(queries, self.rows, k, exclude)
        _require_usable(queries, "queries", self.metric)
        skip = np.full(len(queries), -1, np.int64) if exclude is None else np.asarray(exclude, np.int64)
        chunk = queries_per_chunk(k)
        values = np.empty((len(queries), k), np.float32)
        numbers = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), chunk):
            part = slice(start, start + chunk)
            prepared = prepare(queries[part], self.metric)
            values[part], numbers[part] = self._nearest(prepared, k, skip[part], exclude is not None)
        return values if self.metric == "cosine" else np.abs(values), numbers

    def _nearest(self, queries: FloatArray, k: int, skip: IntArray, skips: bool) -> tuple[FloatArray, IntArray]:
        """(q, k) closeness and (q, k) numbers."""
        # One more than asked for tells whether another item is as near as the last one.
        wanted = k + 1 + skips
        search = _gpu_search(self._faiss, wanted) or self._faiss.knn
        faiss_metric = self._faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else self._faiss.METRIC_L2
        rough, found = search(queries, self.rows, wanted, metric=faiss_metric)
        found = found.astype(np.int64, copy=False)
        if skips:
            is_skipped = (self._numbers[found] == skip[:, None]) & (found >= 0)
            rough, found = _drop(rough, found, is_skipped)
        closeness, found = self._in_order(queries, found)
        unsure = np.flatnonzero(self._is_unsure(queries, closeness[:, k - 1], rough[:, k]) & (found[:, k] >= 0))
        closeness, found = closeness[:, :k], found[:, :k]
        if len(unsure):
            again = closest_of_all(
                queries[unsure], self.rows, k, exclude=skip[unsure], numbers=self._numbers, metric=self.metric
            )
            closeness[unsure], found[unsure] = self._in_order(queries[unsure], again)
        return closeness, np.where(found >= 0, self._numbers[found], -1)

    def _in_order(self, queries: FloatArray, found: IntArray) -> tuple[FloatArray, IntArray]:
        closeness = closeness_of_pairs(queries, self.rows, found, self.metric)
        order = np.lexsort((self._numbers[found], -closeness), axis=1)
        return np.take_along_axis(closeness, order, 1), np.take_along_axis(found, order, 1)

    def _is_unsure(self, queries: FloatArray, last: FloatArray, next_rough: FloatArray) -> NDArray[np.bool_]:
        """Whether an item that faiss left out may be as near as the last one that is kept.

        Args:
            queries: (q, d).
            last: (q,) closeness of the last one that is kept.
            next_rough: (q,) faiss's value (similarity or squared distance) of the best that is not; what faiss left out
                is no better by that value.
        """
        rounding = _ROUNDING * np.sqrt(queries.shape[1])
        if self.metric == "cosine":
            return np.asarray(last <= next_rough + rounding)
        # faiss goes through the squared lengths of both vectors, so these decide how much is lost by rounding.
        length = _lengths(queries)
        distance = np.sqrt(np.maximum(next_rough, 0, dtype=np.float64))
        lost = rounding * (length**2 + (length + distance) ** 2) + _VANISHED * queries.shape[1]
        return np.asarray(last.astype(np.float64) ** 2 >= next_rough - lost)


def normalize(rows: NDArray[Any]) -> FloatArray:
    """Rows of unit length; a zero vector has no direction and stays zero, with similarity 0 to everything."""
    rows = np.asarray(rows, np.float32)
    directions = np.empty(rows.shape, np.float32)
    for part in _parts(rows):
        lengths = _lengths(rows[part])[:, None]
        directions[part] = rows[part] / np.where(lengths > 0, lengths, 1)
    return directions


def prepare(rows: NDArray[Any], metric: Metric) -> FloatArray:
    """Rows as they are compared: under the cosine, lengths do not matter, so all have unit length."""
    return normalize(rows) if metric == "cosine" else np.ascontiguousarray(rows, np.float32)


def _has_gpu(faiss: ModuleType) -> bool:
    # The CPU wheel has neither of the two; the GPU wheel also imports on a machine without a GPU.
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _gpu_search(faiss: ModuleType, k: int) -> Any:
    if not _has_gpu(faiss) or k > _MAX_K_ON_GPU:
        return None
    resources = faiss.StandardGpuResources()
    return lambda queries, gallery, k, metric: faiss.knn_gpu(resources, queries, gallery, k, metric=metric)


def _drop(values: FloatArray, rows: IntArray, is_dropped: NDArray[np.bool_]) -> tuple[FloatArray, IntArray]:
    """(q, k) -> (q, k - 1): without the one to drop, or without the last one where there is none to drop."""
    keep = ~is_dropped
    keep[keep.all(axis=1), -1] = False
    shape = (len(rows), rows.shape[1] - 1)
    return values[keep].reshape(shape), rows[keep].reshape(shape)


def _check(queries: NDArray[Any], gallery: NDArray[Any], k: int, exclude: NDArray[Any] | None) -> None:
    if queries.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (q, d) and (n, d)")
    if k < 1:
        raise ValueError(f"k = {k} neighbours: must be at least 1")
    if exclude is not None and len(exclude) != len(queries):
        raise ValueError(f"exclude has {len(exclude)} rows for {len(queries)} queries")


def first_unusable(rows: NDArray[Any], metric: Metric) -> tuple[int, int]:
    """How many of (n, d) rows are `what_is_unusable`, and the first one of them, -1 where there is none."""
    count, first = 0, -1
    for part in _parts(rows):
        is_usable = np.isfinite(rows[part]).all(axis=1)
        if metric == "euclidean":
            is_usable &= _lengths(rows[part]) <= LONGEST
        unusable = np.flatnonzero(~is_usable)
        if len(unusable) and not count:
            first = part.start + int(unusable[0])
        count += len(unusable)
    return count, first


def what_is_unusable(metric: Metric) -> str:
    """In words."""
    return "hold NaN or infinity" + (f", or are longer than {LONGEST:g}" if metric == "euclidean" else "")


def _require_usable(rows: NDArray[Any], name: str, metric: Metric) -> None:
    count, first = first_unusable(rows, metric)
    if count:
        raise ValueError(
            f"{count} of {len(rows)} {name} {what_is_unusable(metric)} (first: row {first}): "
            "the training has probably diverged; try a lower learning rate"
        )


def _lengths(rows: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) lengths. In float32 squares of numbers above 2e19 are infinite, and those of numbers below 1e-23 zero."""
    return np.asarray(np.linalg.norm(rows.astype(np.float64, order="C"), axis=1))


def _parts(rows: NDArray[Any]) -> Iterator[slice]:
    """All rows, so few at once that a copy of them is small."""
    size = max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1]))
    return (slice(start, start + size) for start in range(0, len(rows), size))
