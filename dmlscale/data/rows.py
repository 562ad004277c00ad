"""Where the groups of each class go: T batches, as even as possible, no class twice in a batch.

The groups of all classes, classes in random order, are laid into rows of T places; place t of every row makes
batch t. A class whose groups lie in one row has them in different batches whatever the order inside the row,
so each row is free to spread its classes evenly and at random. Only a class that crosses the end of a row
needs care: in the second row it takes batches that it has not been in. This costs one sort per row, needs no
repair afterwards, and also holds where every class has a group in nearly every batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fill_rows(
    groups_of_class: NDArray[np.int64], num_steps: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give every group a batch and a row.

    Args:
        groups_of_class: (classes,) number of groups.
        num_steps: T, number of batches.
        rng: source of all randomness.

    Returns:
        (groups,) batch of each group and (groups,) its row; groups are numbered by class. Each batch has one
        group per row, but perhaps none of the last.
    """
    num_groups = int(groups_of_class.sum())
    first_group = np.cumsum(groups_of_class) - groups_of_class
    class_order = rng.permutation(len(groups_of_class))
    sizes = groups_of_class[class_order]
    ends = np.cumsum(sizes)
    class_rank = np.repeat(np.arange(len(sizes)), sizes)  # of each place, in the order of laying
    rank_in_class = np.arange(num_groups) - np.repeat(ends - sizes, sizes)
    group_of_place = np.repeat(first_group[class_order], sizes) + rank_in_class
    # A class with g groups has one in each g-th part of the epoch, anywhere in that part.
    position = (rank_in_class + rng.random(num_groups)) / np.repeat(sizes, sizes)

    batch_of_place = np.empty(num_groups, np.int64)
    for start in range(0, num_groups, num_steps):
        stop = min(start + num_steps, num_groups)
        head = 0  # places of this row that continue the last class of the row before
        taken = batch_of_place[:0]
        if start and class_rank[start] == class_rank[start - 1]:
            class_end = int(ends[class_rank[start]])
            class_start = class_end - int(sizes[class_rank[start]])
            head = min(class_end, stop) - start
            taken = batch_of_place[max(class_start, start - num_steps) : start]
        batch_of_place[start:stop] = _fill_row(position[start:stop], head, taken, num_steps)
    batch_of_group, row_of_group = np.empty((2, num_groups), np.int64)
    batch_of_group[group_of_place] = batch_of_place
    row_of_group[group_of_place] = np.arange(num_groups) // num_steps
    return batch_of_group, row_of_group


def _fill_row(position: NDArray[np.float64], head: int, taken: NDArray[np.int64], num_steps: int) -> NDArray[np.int64]:
    """Batches (m,), all different, for the m places of a row, close to their positions in the epoch.

    The first ``head`` places avoid the batches ``taken``, as far as there are others.
    """
    batches = np.empty(len(position), np.int64)
    is_free = np.ones(num_steps, bool)
    if head:
        is_allowed = np.ones(num_steps, bool)
        is_allowed[taken] = False
        allowed = np.flatnonzero(is_allowed)
        if len(allowed) < head:  # the class has more groups than there are batches
            allowed = np.arange(num_steps)
        batches[:head] = _spread(position[:head], allowed)
        is_free[batches[:head]] = False
    batches[head:] = _spread(position[head:], np.flatnonzero(is_free))
    return batches


def _spread(position: NDArray[np.float64], batches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Assign m of the ``batches``, evenly chosen, to m places in the order of their positions."""
    num_places = len(position)
    chosen = batches[(2 * np.arange(num_places) + 1) * len(batches) // max(2 * num_places, 1)]
    assigned = np.empty(num_places, np.int64)
    assigned[np.argsort(position, kind="stable")] = chosen
    return assigned
