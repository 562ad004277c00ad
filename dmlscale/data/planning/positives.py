"""Batches in which every sample has all samples of its class beside it.

The groups, as far as possible whole classes, are laid into rows, the largest first: each row holds groups of similar
size and gives one to every batch. So batches differ by at most the largest group, and by one sample for each row that
holds groups of a class that was cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, order_by, random_order
from dmlscale.data.planning.group_plan import Rows
from dmlscale.data.planning.quotas import groups_of_class
from dmlscale.data.planning.rows import fill_rows
from dmlscale.data.planning.sampling import Sampling

IntArray = NDArray[np.int64]


def lay_by_size(firsts: IntArray, counts: IntArray, sampling: Sampling, key: Keys) -> Rows:
    """Deals groups to batches of about P * K samples; a class that was cut has its groups in different batches.

    Args:
        firsts: (C + 1,) number of the first group of each class, and of all groups.
        counts: (C,) samples of each class.
        sampling: P, K and the bound of a class.
        key: (1,) of all randomness: groups of the same size are laid in random order.
    """
    sizes = _group_sizes(counts, sampling)
    order = random_order(len(counts), key)
    order = order[order_by(np.uint64(2**32 - 1) - sizes[order].astype(np.uint64))]
    return Rows(fill_rows(firsts, _num_batches(np.diff(firsts), counts, sampling), key, order))


def smallest_batch(quotas: IntArray, counts: IntArray, sampling: Sampling) -> int:
    """Samples that every batch has at least, whatever the seed.

    Args:
        quotas: (C,) groups of each class in an epoch.
        counts: (C,) samples of each class.
        sampling: P, K and the bound of a class.
    """
    sizes = _group_sizes(counts, sampling)
    order = order_by(np.uint64(2**32 - 1) - sizes.astype(np.uint64))
    ends = np.cumsum(quotas[order])
    num_batches = _num_batches(quotas, counts, sampling)
    last_of_row = np.arange(1, ends[-1] // num_batches + 1) * num_batches - 1
    smallest = sizes[order[np.searchsorted(ends, last_of_row, "right")]]
    is_any_cut = bool((groups_of_class(counts, sampling.group_size) > 1).any())
    return int(np.maximum(smallest - is_any_cut, 1).sum())


def _group_sizes(counts: IntArray, sampling: Sampling) -> IntArray:
    """(C,) samples of the largest group of each class."""
    return -(-counts // np.maximum(groups_of_class(counts, sampling.group_size), 1))


def _num_batches(quotas: IntArray, counts: IntArray, sampling: Sampling) -> int:
    num_samples = int(np.minimum(counts, quotas * _group_sizes(counts, sampling)).sum())
    return -(-num_samples // sampling.batch_size)
