"""How many of some counts are of which size, in bins that grow with the counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Bin(NamedTuple):
    """Counts from ``first`` to ``last``, both included."""

    first: int
    last: int
    number: int  # of counts in it


def log_histogram(counts: NDArray[np.int64], most_bins: int = 12) -> tuple[Bin, ...]:
    """Sort counts into bins of equal ratio.

    Args:
        counts: (n,) 1 or more.
        most_bins: small counts need fewer, since a bin has at least one whole number.

    Returns:
        Bins without gaps from the smallest to the largest count; none for no counts.
    """
    if not len(counts):
        return ()
    low, high = int(counts.min()), int(counts.max())
    edges = np.unique(np.geomspace(low, high + 1, most_bins + 1).round().astype(np.int64))
    numbers = np.diff(np.searchsorted(np.sort(counts), edges))
    return tuple(
        Bin(first, stop - 1, number)
        for first, stop, number in zip(edges[:-1].tolist(), edges[1:].tolist(), numbers.tolist(), strict=True)
    )
