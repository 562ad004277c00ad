from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.hashing import key_of, order_by, random_order
from dmlscale.data.planning.shuffle import permute


def order(size: int, key: int) -> np.ndarray:
    return permute(np.arange(size), np.full(size, size), np.repeat(key_of(key), size))


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63))
def test_every_thing_has_one_place(size: int, key: int) -> None:
    assert np.array_equal(np.sort(order(size, key)), np.arange(size))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 99)), min_size=1, max_size=20), st.data())
def test_a_place_does_not_depend_on_those_asked_with_it(orders: list[tuple[int, int]], data: st.DataObject) -> None:
    places = np.array([data.draw(st.integers(0, size - 1)) for size, _ in orders])
    sizes = np.array([size for size, _ in orders])
    keys = np.concatenate([key_of(key) for _, key in orders])
    together = permute(places, sizes, keys)
    assert ((together >= 0) & (together < sizes)).all()
    alone = [permute(places[[i]], sizes[[i]], keys[[i]]) for i in range(len(orders))]
    assert np.array_equal(together, np.concatenate(alone))


def chi_square(observed: np.ndarray) -> float:
    """Deviation from equal frequencies, in standard deviations of the chi-square distribution."""
    expected = observed.sum() / len(observed)
    freedom = len(observed) - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_few_things_are_equally_likely(size: int) -> None:
    repeats = 200 * math.factorial(size)
    keys = np.repeat(np.arange(repeats, dtype=np.uint64) << np.uint64(20), size)
    orders = permute(np.tile(np.arange(size), repeats), np.full(repeats * size, size), keys).reshape(repeats, size)
    _, observed = np.unique(orders @ size ** np.arange(size), return_counts=True)
    assert len(observed) == math.factorial(size)
    assert chi_square(observed) < 4


@pytest.mark.parametrize("size", [7, 16, 17, 100, 1000])
def test_two_things_are_equally_likely_in_any_two_places(size: int) -> None:
    """The first two and the last place, in bins, over many keys."""
    repeats, bins = 40_000, min(size, 8)
    keys = np.repeat(np.arange(repeats, dtype=np.uint64), 3)
    places = np.tile([0, 1, size - 1], repeats)
    things = permute(places, np.full(3 * repeats, size), keys).reshape(repeats, 3)
    width = size // bins
    things = things[(things < width * bins).all(axis=1)] // width
    for first, second in ((0, 1), (0, 2)):
        table = np.bincount(things[:, first] * bins + things[:, second], minlength=bins * bins)
        same = np.arange(bins) * (bins + 1)
        assert chi_square(np.delete(table, same)) < 4  # a pair of different bins
        assert width > 1 or (table[same] == 0).all()


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_order_by_is_the_stable_order(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    assert np.array_equal(order_by(array), np.argsort(array, kind="stable"))


def test_random_orders_differ_by_key() -> None:
    first, second = random_order(100, key_of(1, 2)), random_order(100, key_of(2, 1))
    assert np.array_equal(np.sort(first), np.arange(100))
    assert not np.array_equal(first, second)
