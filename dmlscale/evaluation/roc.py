"""Receiver operating characteristic: what a threshold on scores accepts of what it should, and of what it should not.

Here "same" are the scores of what ought to be accepted (pairs of one class, known queries), "different" those of what
ought to be refused. A score is accepted where it is at least the threshold. FAR (false acceptance rate) is the share of
different ones that are accepted, TAR (true acceptance rate) that of same ones.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Ints = NDArray[np.int64]

RATES = ("1e-1", "1e-2", "1e-3", "1e-4")
"""FARs at which the TAR is given."""
_POINTS_PER_SIDE = 950


@dataclass(frozen=True)
class Roc:
    """Some points of a receiver operating characteristic, each exact, from the strictest threshold to the loosest.

    Args:
        thresholds: (m,) descending; at the first, infinity, nothing is accepted, at the last everything.
        far: (m,) share of different pairs accepted.
        tar: (m,) share of same pairs accepted.
    """

    thresholds: Floats
    far: Floats
    tar: Floats

    def bins(self, scores: Scores) -> Ints:
        """For each score the first point at which it is accepted, counted from 0 at the second point."""
        return len(self.far) - 1 - np.searchsorted(self.thresholds[:0:-1], scores, side="right")

    def reweighted(self, same: Floats | Ints, different: Floats | Ints) -> Roc:
        """The curve of other pairs: (m - 1,) weight of the same and of the different pairs in each of the `bins`."""
        tar, far = (np.append(0, np.cumsum(side) / side.sum()) for side in (same, different))
        return Roc(self.thresholds, far, tar)

    def area(self) -> float:
        """Area under the straight lines between the points."""
        return float(np.trapezoid(self.tar, self.far))

    def equal_error_rate(self) -> tuple[float, float]:
        """Where the straight lines between the points meet FAR = 1 - TAR, and the threshold, interpolated likewise."""
        excess = self.far + self.tar - 1  # from -1 to 1, never falling
        after = int(np.argmax(excess >= 0))
        way = -excess[after - 1] / (excess[after] - excess[after - 1])
        rate = self.far[after - 1] + way * (self.far[after] - self.far[after - 1])
        stricter = self.thresholds[after - 1 if after > 1 else after]  # infinity is no number to interpolate with
        return float(rate), float(stricter + way * (self.thresholds[after] - stricter))


def roc_of(same: Scores, different: Scores) -> Roc:
    """At most 2,000 points of the curve: evenly spaced in TAR and in the logarithm of FAR, and those that are named.

    Args:
        same: (P,) ascending scores of same pairs, or of whatever ought to be accepted; at least one.
        different: (N,) ascending scores of different pairs, or of what ought to be refused; at least one.
    """
    sides = (same, different)
    even = np.linspace(0, len(same) - 1, min(len(same), _POINTS_PER_SIDE)).astype(np.int64)
    counts = np.geomspace(1, len(different), _POINTS_PER_SIDE).astype(np.int64)
    dense = len(different) - (counts if len(different) > _POINTS_PER_SIDE else np.arange(1, len(different) + 1))

    def next_higher(score: np.float32) -> Scores:
        places = (np.searchsorted(side, score, side="right") for side in sides)
        higher = [side[place] for side, place in zip(sides, places, strict=True) if place < len(side)]
        return np.array([min(higher)] if higher else [], np.float32)

    def accepts_too_few(score: np.float32) -> bool:
        refused = [int(np.searchsorted(side, score)) for side in sides]
        return (len(different) - refused[1]) * len(same) < refused[0] * len(different)  # FAR < 1 - TAR

    # Of the scores at which FAR >= 1 - TAR the highest; the EER lies between it and the next higher one.
    places = [bisect_left(side, True, key=accepts_too_few) for side in sides]
    crossing = max(side[place - 1] for side, place in zip(sides, places, strict=True) if place)
    highest_refused = [different[-1 - num_accepted(different, float(rate))] for rate in RATES]
    named = [next_higher(score) for score in (crossing, *highest_refused)]
    lowest = min(same[0], different[0])
    chosen = np.unique(np.concatenate([same[even], different[dense], [lowest, crossing], *named]))[::-1]
    tar, far = (np.append(0, (len(side) - np.searchsorted(side, chosen)) / len(side)) for side in sides)
    return Roc(np.append(np.inf, chosen.astype(np.float64)), far, tar)


def num_accepted(different: Scores, rate: float) -> int:
    """How many of the scores may be accepted at a FAR below 1."""
    return int(rate * len(different) + 1e-9)  # 0.29 * 100 is 28.999999999999996


def auc_of(same: Scores, different: Scores) -> float:
    """Area under the whole curve. Args as for `roc_of`."""
    lower = np.searchsorted(different, same, side="left") + np.searchsorted(different, same, side="right")
    return float(lower.sum() / (2 * len(same) * len(different)))
