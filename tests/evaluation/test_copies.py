"""Equal vectors are found, whatever their hashes, and come back from a search as rows of their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dmlscale.evaluation import copies as module
from dmlscale.evaluation.copies import Copies

VECTORS = st.tuples(st.integers(1, 40), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.0, -0.0, 1.0, 2.0]))
)


def slow_numbers(vectors: np.ndarray) -> list[int]:
    known: dict[tuple[float, ...], int] = {}
    return [known.setdefault(tuple(vector), len(known)) for vector in vectors.tolist()]


@given(VECTORS)
def test_equal_vectors_have_one_number(vectors: np.ndarray) -> None:
    found = Copies.among(vectors)
    expected = slow_numbers(vectors)
    assert found.number.tolist() == expected
    assert found.counts.tolist() == [expected.count(number) for number in range(max(expected) + 1)]
    assert found.first_rows.tolist() == [expected.index(number) for number in range(max(expected) + 1)]


def test_more_vectors_than_are_looked_at_at_once() -> None:
    vectors = np.random.default_rng(0).integers(0, 100, (20_000, 2)).astype(np.float32)
    assert Copies.among(vectors).number.tolist() == slow_numbers(vectors)


def test_vectors_of_equal_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda vectors: np.zeros(len(vectors), np.uint64))
    vectors = np.array([[1], [2], [1], [3], [2]], np.float32)
    found = Copies.among(vectors)
    same = found.number[:, None] == found.number[None]
    assert (same <= (vectors == vectors.T)).all()
    assert same[0, 2]


@given(VECTORS, st.integers(1, 9), st.integers(1, 50), st.data())
def test_rows_of_what_was_found(vectors: np.ndarray, wanted: int, k: int, data: st.DataObject) -> None:
    copies = Copies.among(vectors)
    num_different = len(copies.counts)
    orders = data.draw(st.lists(st.permutations(range(num_different)), min_size=1, max_size=3))
    numbers = np.full((len(orders), wanted), -1)
    for row, order in zip(numbers, orders, strict=True):
        row[: len(order)] = order[:wanted]
    values, rows = copies.spread(numbers.astype(np.float32) + 0.5, numbers, k)
    for line, order in enumerate(orders):
        expected = [row for number in order[:wanted] for row in np.flatnonzero(copies.number == number).tolist()][:k]
        assert rows[line].tolist() == expected + [-1] * (k - len(expected))
        assert values[line, : len(expected)].tolist() == [copies.number[row] + 0.5 for row in expected]


@pytest.mark.parametrize("numbers", [[], [1, 1], [0, 2], [-1, 0], [0, 10**12]])
def test_numbers_that_are_none(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="numbers of vectors must be 0, 1, 2"):
        Copies(np.array(numbers, np.int64))
