"""Random numbers that belong to a sample: a function of (seed, epoch, sample id, draw), in any order.

A generator that is advanced from sample to sample would give other pixels for another number of ranks or
loader threads. Hashing a counter does not, and a whole batch is drawn in a few array operations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    run = _mix(_mix(np.array([seed], np.uint64)) ^ np.uint64(epoch))
    samples = _mix(run ^ ids.astype(np.uint64))
    draws = np.arange(1, num_draws + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(samples[:, None] + draws)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
