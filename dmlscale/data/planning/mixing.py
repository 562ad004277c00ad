"""How well a plan mixes: which classes meet, beside a perfect shuffle of the same groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import key_of, random_order
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.windows import ShardRows

_RUN = 4  # samples of a class that the packer lets follow each other


class Meetings(NamedTuple):
    """Shares of the pairs of classes that stood in one batch at least once."""

    share: float  # in the plans
    perfect_share: float  # had the groups been shuffled over all batches

    @property
    def quality(self) -> float:
        """1: as good as a perfect shuffle. Say it where `perfect_share` is not near 1: there every plan is good."""
        return self.share / self.perfect_share


def class_meetings(
    plans: Iterable[EpochPlan], labels: NDArray[np.integer], *, num_classes: int, samples_per_class: int
) -> Meetings:
    """Which classes meet over some epochs; memory grows with the square of the number of classes.

    Args:
        plans: of the epochs.
        labels: (n_total,) class of each row id.
        num_classes: C, at least 2; labels are below it.
        samples_per_class: K: a class has as many groups in a batch as its samples there need.
    """
    met, met_if_perfect = (np.eye(num_classes, dtype=bool) for _ in range(2))
    rng = np.random.default_rng(0)
    for plan in plans:
        batches = [_classes_of_groups(labels[plan.batch(step)], samples_per_class) for step in range(plan.num_steps)]
        sizes = [len(batch) for batch in batches]
        _meet(met, batches)
        _meet(met_if_perfect, np.split(rng.permutation(np.concatenate(batches)), np.cumsum(sizes)[:-1]))
    return Meetings(_share_of_pairs(met), _share_of_pairs(met_if_perfect))


def _classes_of_groups(labels: NDArray[np.integer], samples_per_class: int) -> NDArray[np.integer]:
    classes, counts = np.unique(labels, return_counts=True)
    return np.repeat(classes, -(-counts // samples_per_class))


def _meet(met: NDArray[np.bool_], batches: Iterable[NDArray[np.integer]]) -> None:
    for classes in batches:
        met[np.ix_(classes, classes)] = True


def _share_of_pairs(met: NDArray[np.bool_]) -> float:
    """Of different classes; a class has met itself."""
    num_classes = len(met)
    return (int(met.sum()) - num_classes) / (num_classes * (num_classes - 1))


def classes_in_a_window(shards: ShardRows, counts: NDArray[np.int64], window_shards: int) -> tuple[int, float]:
    """How many classes a window has, against one of shards in which classes are mixed.

    Args:
        shards: of the split.
        counts: (C,) its samples of each class.
        window_shards: M.

    Returns:
        Classes in one window, drawn at random; and those to expect if runs of four samples were mixed over all shards.
    """
    used = np.flatnonzero(np.diff(shards.bounds))
    drawn = used[random_order(len(used), key_of(0))[:window_shards]]
    in_window = shards.labels[shards.rows_of(drawn)]
    share = len(in_window) / counts.sum()
    return len(np.unique(in_window)), float((1 - (1 - share) ** -(-counts // _RUN)).sum())
