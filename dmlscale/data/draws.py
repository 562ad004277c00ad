"""Random numbers that belong to a sample: a function of (seed, epoch, sample id, draw), in any order.

A generator that is advanced from sample to sample would give other pixels for another number of ranks or
loader threads. Hashing a counter does not, and a whole batch is drawn in a few array operations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform_draws(ids: NDArray[np.int64], num_draws: int, *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Independent numbers in [0, 1) for each sample.

    Args:
        ids: (b,) sample ids.
        num_draws: how many per sample.
        seed: of the run.
        epoch: 0, 1, ...

    Returns:
        (b, num_draws) float64.
    """
    run = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    samples = mix(run ^ ids.astype(np.uint64))
    draws = np.arange(1, num_draws + 1, dtype=np.uint64) * _GOLDEN
    bits = mix(samples[:, None] + draws)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
