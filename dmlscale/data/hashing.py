"""Pseudo-random numbers by counter: a function of a key and a number, in any order, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*numbers: int) -> Keys:
    """(1,) a key of its own for every tuple of non-negative numbers."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix(key ^ np.uint64(number))
    return key


def random_bits(key: Keys, counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(n,) 32 random bits for each of the (n,) counters."""
    return mix(key ^ counters.astype(np.uint64)) >> _HALF


def order_by(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The order (n,) that sorts n < 2^32 values of at most 32 bits; equal ones stay in order.

    Value and index in one number make the numbers unique, so the fastest sort is as good as a stable one.
    """
    keys = values << _HALF
    keys |= np.arange(len(values), dtype=np.uint64)
    keys.sort()
    keys &= _LOW_HALF
    return keys.view(np.int64)


def random_order(size: int, key: Keys) -> NDArray[np.int64]:
    """A random permutation of 0..size-1."""
    return order_by(random_bits(key, np.arange(size)))
