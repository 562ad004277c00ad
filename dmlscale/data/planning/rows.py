"""Where the groups of each class go: T batches, as even as possible, no class twice in a batch.

The groups of all classes, classes in random order, are laid into rows of T places; place t of every row makes
batch t. A class whose groups lie in one row has them in different batches whatever the order inside the row,
so each row is free to spread its classes evenly and at random. Only a class that crosses the end of a row
needs care: in the second row it takes batches that it has not been in. This costs one sort per row, needs no
repair afterwards, and also holds where every class has a group in nearly every batch.

Beside the result and a few numbers per class, memory is needed for one row at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, mix, order_by, random_bits, random_order

EMPTY = -1


def fill_rows(
    firsts: NDArray[np.int64], num_steps: int, key: Keys, class_order: NDArray[np.int64] | None = None
) -> NDArray[np.int32]:
    """Give every group a batch and a row.

    Args:
        firsts: (C + 1,) number of the first group of each class, and of all groups; fewer than 2^31.
        num_steps: T, number of batches.
        key: (1,) of all randomness.
        class_order: (C,) in which classes are laid; at random if not given.

    Returns:
        (rows, T) the group in each row of each batch. Only the last row may have gaps, marked `EMPTY`, evenly spread.
    """
    order = random_order(len(firsts) - 1, key) if class_order is None else class_order
    ends = np.cumsum(np.diff(firsts)[order])
    num_groups = int(firsts[-1])
    rows = np.full((-(-num_groups // num_steps), num_steps), EMPTY, np.int32)
    jitter_key = mix(key)
    for row in range(len(rows)):
        start, stop = row * num_steps, min((row + 1) * num_steps, num_groups)
        laid = slice(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop)) + 1)
        first, class_ends = firsts[order[laid]], ends[laid]
        sizes = firsts[order[laid] + 1] - first
        lengths = np.minimum(class_ends, stop) - np.maximum(class_ends - sizes, start)  # of each class in this row
        places = np.arange(start, stop)
        rank_in_class = places - np.repeat(class_ends - sizes, lengths)
        # A class with g groups has one in each g-th part of the epoch, anywhere in that part.
        position = (rank_in_class.astype(np.uint64) << np.uint64(32)) + random_bits(jitter_key, places)
        position //= np.repeat(sizes, lengths).astype(np.uint64)
        groups = rank_in_class + np.repeat(first, lengths)
        head = int(lengths[0]) if class_ends[0] - sizes[0] < start else 0  # places of a class of the row before
        free = np.arange(num_steps)
        if head:
            was_in = (rows[row - 1] >= first[0]) & (rows[row - 1] < first[0] + sizes[0])
            allowed = np.flatnonzero(~was_in)
            if len(allowed) < head:  # the class has more groups than there are batches
                again = _evenly(np.flatnonzero(was_in), head - len(allowed))
                allowed = np.sort(np.concatenate((allowed, again)))
            _spread(rows[row], position[:head], groups[:head], allowed)
            free = np.flatnonzero(rows[row] == EMPTY)
        _spread(rows[row], position[head:], groups[head:], free)
    return rows


def _spread(
    row: NDArray[np.int32], position: NDArray[np.uint64], groups: NDArray[np.int64], batches: NDArray[np.int64]
) -> None:
    """Puts m groups into ``row`` at m of the ``batches``, evenly chosen, in the order of their positions."""
    row[_evenly(batches, len(groups))] = groups[order_by(position)]


def _evenly(batches: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) of the batches, at equal distances."""
    return batches[(2 * np.arange(count) + 1) * len(batches) // max(2 * count, 1)]
