"""Keys that a source has made of paths, told apart where they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.fingerprint import content_hash


def key_hash(key: str) -> int:
    """64 bits of a key; two different keys of 10^8 share them with a probability of 3 in 10,000."""
    return content_hash([key.encode()])


@dataclass(frozen=True, eq=False)
class NumberedKeys:
    """Which keys of a list get a number at their end."""

    positions: NDArray[np.int64]  # (m,) in the list, ascending
    numbers: NDArray[np.int64]  # (m,) 2 or more

    @classmethod
    def none(cls) -> NumberedKeys:
        """Every key stays."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def key(self, position: int, plain: str) -> str:
        """The key at a position, where the list has ``plain``."""
        if not len(self.positions):
            return plain
        place = int(np.searchsorted(self.positions, position))
        if place == len(self.positions) or self.positions[place] != position:
            return plain
        return f"{plain}-{self.numbers[place]}"


def repeated_keys(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions of keys that came before, ascending; of two that share a hash the later one is taken for the same."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def number_keys(
    hashes: NDArray[np.uint64], read: Callable[[int], tuple[str, str]]
) -> tuple[NumberedKeys, NDArray[np.int64]]:
    """Number the keys that came before: "x", "x-2", "x-3"; a number whose key is in the list is passed over.

    Args:
        hashes: (n,) of the keys.
        read: key and ref at a position.

    Returns:
        The numbers, and the positions (m,) whose key came before with the same ref: one file that is listed twice.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    numbers: list[tuple[int, int]] = []
    same: list[int] = []
    for start, stop in _runs(ordered):
        seen: set[str] = set()
        number = 2
        for position in order[start:stop].tolist():
            key, ref = read(position)
            if ref in seen:
                same.append(position)
                continue
            if seen:
                while _holds(ordered, key_hash(f"{key}-{number}")):
                    number += 1
                numbers.append((position, number))
                number += 1
            seen.add(ref)
    positions, endings = np.array(sorted(numbers), np.int64).reshape(-1, 2).T
    return NumberedKeys(positions.copy(), endings.copy()), np.array(sorted(same), np.int64)


def _runs(ordered: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of two or more equal values."""
    ends = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True]))) + 1
    starts = np.concatenate(([0], ends[:-1]))
    long = ends - starts > 1
    yield from zip(starts[long].tolist(), ends[long].tolist(), strict=True)


def _holds(ordered: NDArray[np.uint64], value: int) -> bool:
    place = int(np.searchsorted(ordered, np.uint64(value)))
    return place < len(ordered) and int(ordered[place]) == value
