"""Which samples all ranks hold together, a choice of them that every rank then holds, and all pairs of that choice.

Labels and ids of all n samples are gathered (16 bytes each); of the embeddings (n, d) only those that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, key_of, mix
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import FloatArray, IntArray, Metric
from dmlscale.evaluation.ranks import Gather, alone
from dmlscale.evaluation.shares import Share, check_shares, require_seed, share_of

_FEWEST_CLASSES = 10
_CLASSES, _SAMPLES = 1, 2  # whose hashes
_ROWS_PER_TILE = 256
_GRID = 2.0**-22


def checked_share(local: Embedded, gather: Gather = alone, *, rank: int = 0, metric: Metric = "cosine") -> Share:
    """This rank's share, as `share_of`; what is wrong is an error on every rank.

    Raises:
        ValueError: as `share_of` and `check_shares`.

    Communication: as `share_of` and `check_shares`.
    """
    share = share_of(local, gather, rank=rank)
    check_shares(share, metric=metric, gather=gather)
    return share


def gathered(share: Share, chosen: IntArray, gather: Gather) -> FloatArray:
    """The embeddings of some samples, on every rank.

    Args:
        share: from `checked_share`.
        chosen: (c,) row numbers, without repetition and the same on every rank.
        gather: concatenates over ranks.

    Returns:
        (c, d), in the order of ``chosen``.

    Communication: gather of c int64 and c * d float32.
    """
    is_chosen = np.isin(share.rows, chosen)
    rows = gather(torch.from_numpy(share.rows[is_chosen])).cpu().numpy()
    embeddings: FloatArray = gather(torch.from_numpy(share.embeddings[is_chosen])).cpu().numpy()
    return embeddings[np.argsort(rows)][np.argsort(np.argsort(chosen))]


def hash_order(numbers: IntArray, *key: int) -> IntArray:
    """A random order (n,) of n different numbers: a function of each number and the key, not of the others."""
    return np.argsort(_hashes(numbers, key_of(*key)))


def order_within_classes(share: Share, *key: int) -> tuple[IntArray, IntArray, IntArray]:
    """Classes in random order, and a random number for each sample of a class.

    Returns:
        Classes (C,) in hash order, their sizes (C,), and for each of the n samples its position in the hash order of
        its class: 0, 1, ...
    """
    classes, inverse, sizes = np.unique(share.labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((_hashes(share.ids, key_of(*key, _SAMPLES)), inverse))
    starts = np.cumsum(sizes) - sizes
    positions = np.empty(len(inverse), np.int64)
    positions[by_class] = np.arange(len(inverse)) - np.repeat(starts, sizes)
    order = hash_order(classes, *key, _CLASSES)
    return classes[order], sizes[order], positions


def few_enough(share: Share, most: int, *, seed: int = 0) -> Share:
    """The share of so few whole classes that samples times classes are not more than ``most``.

    Classes are taken in the same order as by `whole_classes`. No embeddings travel.

    Args:
        share: from `checked_share`.
        most: samples times classes; the first class is taken whatever its size.
        seed: of the choice.

    Returns:
        The share as it is, where all classes are few enough.
    """
    classes, sizes, _ = order_within_classes(share, seed)
    products = np.cumsum(sizes) * np.arange(1, len(sizes) + 1)
    num_classes = max(1, int(np.searchsorted(products, most, side="right")))
    if num_classes == len(classes):
        return share
    chosen = np.flatnonzero(np.isin(share.labels, classes[:num_classes]))
    is_chosen = np.isin(share.rows, chosen)
    rows = np.searchsorted(chosen, share.rows[is_chosen])
    return Share(share.ids[chosen], share.labels[chosen], share.embeddings[is_chosen], rows)


def whole_classes(
    local: Embedded, most: int = 5_000, *, seed: int = 0, gather: Gather = alone, rank: int = 0
) -> Embedded:
    """All samples of randomly chosen classes, on every rank: enough to look at pairs, and small enough for it.

    Classes are taken in the order of a hash of their label until the next one would make more than ``most`` samples.
    A class that is larger than a tenth of ``most`` takes part with that many of its samples, chosen by a hash of
    their ids: a few large classes would otherwise be the whole choice, or one of them none.

    Args:
        local: this rank's share, uneven or empty; an id that is there several times counts once.
        most: samples; where there are no more, all are taken.
        seed: of the choice, at least 0.
        gather: concatenates over ranks.
        rank: this rank.

    Returns:
        At most ``most`` samples in the order of their ids, the same on every rank and at any number of ranks.

    Raises:
        ValueError: as `checked_share`, ``most`` is less than 1, or ``seed`` is negative.

    Communication: as `checked_share`, and gather of the chosen embeddings.
    """
    if most < 1:
        raise ValueError(f"most = {most} samples: must be at least 1")
    require_seed(seed)
    share = checked_share(local, gather, rank=rank)
    chosen = np.arange(len(share.ids))
    if len(chosen) > most:
        classes, sizes, positions = order_within_classes(share, seed)
        limit = max(1, most // min(_FEWEST_CLASSES, len(classes)))
        num_classes = int(np.searchsorted(np.cumsum(np.minimum(sizes, limit)), most, side="right"))
        chosen = np.flatnonzero(np.isin(share.labels, classes[:num_classes]) & (positions < limit))
    embeddings = torch.from_numpy(gathered(share, chosen, gather))
    return Embedded(embeddings, torch.from_numpy(share.labels[chosen]), torch.from_numpy(share.ids[chosen]))


def compare(embeddings: FloatArray, codes: IntArray, metric: Metric) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Score of each pair, in the order of `np.triu_indices(n, 1)`, and whether it is of one class.

    Args:
        embeddings: (n, d) finite.
        codes: (n,) classes.
        metric: what close means.

    Returns:
        (n * (n - 1) / 2,) float32, higher is closer, and as many truth values.
    """
    rows = embeddings.astype(np.float64)
    if metric == "cosine":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths > 0, lengths, 1)
        grid = _GRID
    else:
        rows -= rows.mean(axis=0)  # distances come from squares, in which a common offset would drown them
        squares = (rows**2).sum(axis=1)
        grid = _GRID * 2 ** np.ceil(np.log2(np.sqrt(squares.max()) or 1))
    scores, is_same = [], []
    for a, b in pairs(len(rows)):
        first = a[0]
        values = (rows[first : a[-1] + 1] @ rows[first:].T)[a - first, b - first]
        if metric == "euclidean":
            values = -np.sqrt(np.maximum(squares[a] + squares[b] - 2 * values, 0))
        scores.append((np.round(values / grid) * grid + 0.0).astype(np.float32))
        is_same.append(codes[a] == codes[b])
    return np.concatenate([np.empty(0, np.float32), *scores]), np.concatenate([np.empty(0, bool), *is_same])


def pairs(num_rows: int) -> Iterator[tuple[IntArray, IntArray]]:
    """All pairs a < b, a few rows a at once."""
    numbers = np.arange(num_rows)
    for start in range(0, num_rows - 1, _ROWS_PER_TILE):
        a, b = np.nonzero(numbers[start : start + _ROWS_PER_TILE, None] < numbers[start:])
        yield a + start, b + start


def _hashes(numbers: IntArray, key: Keys) -> NDArray[np.uint64]:
    return mix(key ^ numbers.astype(np.uint64))
