"""How close a query and a gallery item are, to the last bit: what decides between neighbours that are nearly equal.

The same two vectors have the same closeness wherever they lie in a batch, a chunk or on a rank: it is computed in
float64 and rounded to float32. With products in float32, as in faiss, that is not so: from a few hundred dimensions on,
two copies of one vector get values that differ in the last bits, by their place in the matrix.

q queries, n gallery items, d dimensions, k neighbours. Closeness: higher is closer; the cosine similarity of vectors of
unit length, or the negative Euclidean distance.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Metric = Literal["cosine", "euclidean"]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_NUMBERS_AT_ONCE = 4_000_000  # 32 MB in float64
_FARTHEST = np.iinfo(np.int64).min
_LOW_BITS = 2**32 - 1


def require_metric(metric: str) -> None:
    """Raises ValueError where there is no such metric; without a check, any other word would mean "euclidean"."""
    if metric not in get_args(Metric):
        raise ValueError(f"unknown metric {metric!r}: there are {', '.join(get_args(Metric))}")


def closeness_of_pairs(queries: FloatArray, gallery: FloatArray, found: IntArray, metric: Metric) -> FloatArray:
    """Closeness of each query and the gallery items that were found for it.

    Args:
        queries: (q, d).
        gallery: (n, d).
        found: (q, k) gallery positions; -1 where nothing was found.
        metric: what close means; for "cosine" all vectors have unit length.

    Returns:
        (q, k) float32; -inf where nothing was found.
    """
    closeness = np.empty(found.shape, np.float32)
    chunk = max(1, _NUMBERS_AT_ONCE // max(1, found.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        items = gallery[found[part]]  # (chunk, k, d)
        if metric == "cosine":
            closeness[part] = np.einsum("qd,qkd->qk", queries[part], items, dtype=np.float64)
        else:
            apart = np.subtract(items, queries[part, None], dtype=np.float64)
            closeness[part] = -np.sqrt(np.einsum("qkd,qkd->qk", apart, apart))
    closeness += np.float32(0)  # -0 becomes 0, so that both have the same place in an order of bits
    closeness[found < 0] = -np.inf
    return closeness


def closeness_of_all(queries: FloatArray, gallery: FloatArray, metric: Metric) -> FloatArray:
    """Closeness of every query and every gallery item, the same as of `closeness_of_pairs`: (q, n) float32."""
    here, there = torch.from_numpy(queries).double(), torch.from_numpy(gallery).double()
    if metric == "cosine":
        closeness = here @ there.T
    else:  # from differences: through products, the distance of a vector to its copy would not be 0
        closeness = -torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")
    return closeness.float().numpy() + np.float32(0)


def closest_of_all(
    queries: FloatArray, gallery: FloatArray, k: int, *, exclude: IntArray, numbers: IntArray, metric: Metric
) -> IntArray:
    """The k closest gallery items of each query; of equally close ones those with the lower number.

    It computes every pair in float64, some five times slower than faiss, so it is for the few queries that faiss cannot
    answer exactly. Memory is bounded: tiles of queries x gallery.

    Args:
        queries: (q, d).
        gallery: (n, d), n below 2^32.
        k: neighbours.
        exclude: (q,) the number of an item that is left out, or -1.
        numbers: (n,) distinct.
        metric: as for `closeness_of_pairs`.

    Returns:
        (q, k) gallery positions, closest first; -1 where there are fewer than k items.
    """
    order = np.argsort(numbers, kind="stable")
    place = np.empty(len(numbers), np.int64)
    place[order] = np.arange(len(numbers))
    tile = min(len(gallery), 8192)
    chunk = max(1, _NUMBERS_AT_ONCE // tile)
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk):
        part = slice(start, start + chunk)
        best = np.full((len(queries[part]), k), _FARTHEST)
        for first in range(0, len(gallery), tile):
            items = slice(first, first + tile)
            keys = _keys(closeness_of_all(queries[part], gallery[items], metric), place[items])
            keys[numbers[items] == exclude[part, None]] = _FARTHEST
            both = np.concatenate([best, keys], axis=1)
            best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
        best = np.sort(best, axis=1)[:, ::-1]
        found[part] = np.where(best == _FARTHEST, -1, order[(_LOW_BITS - (best & _LOW_BITS)) % len(order)])
    return found


def _keys(closeness: FloatArray, place: IntArray) -> IntArray:
    """One integer for closeness and place: larger is closer, or equally close and at an earlier place."""
    bits = closeness.view(np.int32)
    ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # negative numbers sort backwards by their bits
    return (ascending.astype(np.int64) << 32) | (_LOW_BITS - place)
