"""How many groups of each class an epoch has: the same for every epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import order_by
from dmlscale.data.planning.sampling import Sampling

_GRID = 2.0**16  # weights are rounded to a grid, so that their sum is exact and the same on every machine


def groups_of_class(counts: NDArray[np.int64], group_size: int) -> NDArray[np.int64]:
    """(C,) number of groups of at most ``group_size`` that each class is cut into."""
    return -(-counts // group_size)


def quotas_of(counts: NDArray[np.int64], sampling: Sampling) -> NDArray[np.int64]:
    """Groups of each class in an epoch.

    The total is the same for all samplings by groups of K. A class that has samples has at least one group.

    Args:
        counts: (C,) samples of each class.
        sampling: options that `check_plan` accepts.

    Returns:
        (C,) groups.
    """
    groups = groups_of_class(counts, sampling.group_size)
    if sampling.max_groups is not None:
        np.minimum(groups, sampling.max_groups, out=groups)
    power = {"balanced": 0.0, "by_frequency": sampling.frequency_power}.get(sampling.name, 1.0)
    return groups if power == 1 else _share(groups, power)


def _share(groups: NDArray[np.int64], power: float) -> NDArray[np.int64]:
    """Shares the sum of ``groups`` in proportion to their powers, the largest remainders rounded up.

    The weights are at least 1 and their sum at most the total, so no share is below 1; a power below 1 evens out, so
    no share is above the largest of ``groups``, and a bound of that holds.
    """
    total = int(groups.sum())
    weights = np.where(groups > 0, np.rint(groups.astype(np.float64) ** power * _GRID), 0)
    shares = weights * (total * _GRID / int(weights.astype(np.int64).sum())) / _GRID
    whole = np.floor(shares).astype(np.int64)
    remainders = (shares - whole) * (2.0**32 - 1)
    by_remainder = order_by(np.uint64(2**32 - 1) - remainders.astype(np.uint64))
    whole[by_remainder[: total - int(whole.sum())]] += 1
    return whole
