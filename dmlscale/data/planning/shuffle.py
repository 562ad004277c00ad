"""A random order of n things of which any part can be read without making the rest.

A Feistel network: a number below n is written as (left, right), each half is moved on, round after round, by a hash
of the other; that can be undone, so it is a permutation. The halves span a rectangle slightly larger than n; a number
that comes out outside goes in again, until it falls below n (cycle walking), which keeps it a permutation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, mix

_ROUNDS = 20  # with 12 the 120 orders of five things differ by 3 % in frequency, with 20 by less than can be measured


def permute(places: NDArray[np.int64], sizes: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """What stands at each place of its own random order.

    Args:
        places: (b,) from 0 to below the size of the order.
        sizes: (b,) n of the order that each place is of.
        keys: (b,) names of the orders; equal keys and sizes mean the same order.

    Returns:
        (b,) numbers from 0 to below the size, different for different places of an order.
    """
    widths = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    heights = -(-sizes // widths.astype(np.int64)).astype(np.uint64)
    limits = sizes.astype(np.uint64)
    moved = _feistel(places.astype(np.uint64), widths, heights, keys)
    outside = np.flatnonzero(moved >= limits)
    while len(outside):
        moved[outside] = _feistel(moved[outside], widths[outside], heights[outside], keys[outside])
        outside = outside[moved[outside] >= limits[outside]]
    return moved.astype(np.int64)


def _feistel(
    numbers: NDArray[np.uint64], widths: NDArray[np.uint64], heights: NDArray[np.uint64], keys: Keys
) -> NDArray[np.uint64]:
    """Permutes 0..width*height-1."""
    left, right = np.divmod(numbers, heights)
    for _ in range(_ROUNDS // 2):
        keys = mix(keys)
        left = (left + mix(keys ^ right) % widths) % widths
        keys = mix(keys)
        right = (right + mix(keys ^ left) % heights) % heights
    return left * heights + right
