"""Exact nearest neighbours in a gallery that is spread over ranks and that no rank ever holds as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dmlscale.evaluation.neighbors import FloatArray, Gallery, IntArray, Metric
from dmlscale.evaluation.ranks import Gather, alone

NUMBERS_PER_SLICE = 16_777_216
"""Coordinates of the gallery that travel at once over all ranks (64 MB in float32)."""


def nearest_over_ranks(
    queries: FloatArray,
    own: FloatArray,
    own_rows: IntArray,
    k: int,
    *,
    exclude: IntArray | None = None,
    metric: Metric = "cosine",
    gather: Gather = alone,
) -> tuple[FloatArray, IntArray]:
    """The k nearest items of the whole gallery for each of this rank's queries, the same for any number of ranks.

    The queries stay. The gallery travels in slices, each with a piece of every rank's share: all ranks get it, search
    it for their own queries and keep the best so far. With one process it is a single search of the share as it is.

    Args:
        queries: (q_r, d) finite, this rank's; ranks may have different numbers of them, or none.
        own: (n_r, d) finite, this rank's share of the gallery, uneven or empty.
        own_rows: (n_r,) row numbers of the share in the whole gallery, in any order; distinct over all ranks, not
            negative.
        k: the same on all ranks; may be larger than the gallery.
        exclude: (q_r,) the row number of an item that is no neighbour of the query, or -1; None on all ranks alike.
        metric: as for `neighbors.nearest`.
        gather: concatenates over ranks.

    Returns:
        What `neighbors.nearest` does: (q_r, k) float32 similarities or distances, nearest first, and (q_r, k) int64 row
        numbers, -1 where the gallery has fewer than k items. Of equally near items the one with the lower row number
        is first.

    Raises:
        ValueError: NaN or infinite values, or shapes that do not fit. Only the rank that sees it raises; where the
            others would wait for it, check before.

    Communication: gather of 2 int64 per rank, then of n * (d float32 + 1 int64) in slices.
    """
    farthest = -np.inf if metric == "cosine" else np.inf
    best = np.full((len(queries), k), farthest, np.float32), np.full((len(queries), k), -1, np.int64)
    for count, (rows, numbers) in enumerate(gallery_slices(own, own_rows, gather)):
        if len(queries):  # a rank without queries takes part in every gather
            found = Gallery(rows, metric, numbers=numbers).nearest(queries, k, exclude=exclude)
            best = _nearer_of(best, found, metric) if count else found
    return best


def gallery_slices(
    own: FloatArray, own_rows: IntArray, gather: Gather = alone
) -> Iterator[tuple[FloatArray, IntArray]]:
    """All ranks' shares of a gallery, slice by slice, the same slices on every rank; all ranks must exhaust this.

    With one process, its share is the only slice, and is not copied.

    Args:
        own: (n_r, d), this rank's share, uneven or empty.
        own_rows: (n_r,) row numbers of the share in the whole gallery.
        gather: concatenates over ranks.

    Yields:
        (m, d) embeddings and (m,) row numbers, m at least 1.

    Communication: as of `nearest_over_ranks`.
    """
    shapes = gather(torch.tensor([[len(own), own.shape[1]]]))
    if len(shapes) == 1:
        if len(own):
            yield own, own_rows
        return
    dim = int(shapes[:, 1].max())  # a rank with an empty share may not know it
    size = max(1, NUMBERS_PER_SLICE // (max(1, dim) * len(shapes)))
    own = own if len(own) else own.reshape(0, dim)
    num_pieces = -(-int(shapes[:, 0].max()) // size)
    for piece in range(num_pieces):
        part = slice(piece * size, (piece + 1) * size)
        yield gather(torch.from_numpy(own[part])).numpy(), gather(torch.from_numpy(own_rows[part])).numpy()


def _nearer_of(
    first: tuple[FloatArray, IntArray], second: tuple[FloatArray, IntArray], metric: Metric
) -> tuple[FloatArray, IntArray]:
    """The k nearest of two lists of k each."""
    values = np.concatenate([first[0], second[0]], axis=1)
    numbers = np.concatenate([first[1], second[1]], axis=1)
    farness = -values if metric == "cosine" else values
    order = np.lexsort((numbers, farness), axis=1)[:, : first[0].shape[1]]
    return np.take_along_axis(values, order, 1), np.take_along_axis(numbers, order, 1)
