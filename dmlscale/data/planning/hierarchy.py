"""Batches of classes of few super-classes, which are harder to tell apart than classes of all of them.

The groups of each super-class are dealt to *blocks* of up to P / S groups, no class twice in a block unless it has more
groups than there are blocks; the blocks are dealt to batches, S different super-classes each, unless a super-class has
more blocks than there are batches. Both are done by `fill_rows`: what a
class is to a batch there, a super-class is too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, mix
from dmlscale.data.planning.group_plan import Rows
from dmlscale.data.planning.rows import EMPTY, fill_rows
from dmlscale.data.planning.sampling import Sampling

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The layout of batches that are made of blocks."""

    members: NDArray[np.int32]  # (groups,) numbers of the groups, by block
    bounds: IntArray  # (blocks + 1,) where each block begins in ``members``
    batches: Rows  # which blocks make a batch

    @property
    def num_steps(self) -> int:
        """Batches."""
        return self.batches.num_steps

    def groups(self, step: int) -> NDArray[np.int32]:
        """(g,) numbers of the groups of batch ``step``."""
        blocks = self.batches.groups(step)
        return np.concatenate([self.members[self.bounds[block] : self.bounds[block + 1]] for block in blocks])


def lay_blocks(firsts: IntArray, super_classes: IntArray, sampling: Sampling, key: Keys) -> Blocks:
    """Deals groups to blocks and blocks to batches.

    Args:
        firsts: (C + 1,) number of the first group of each class, and of all groups.
        super_classes: (C,) the super-class of each class, 0 or more.
        sampling: P and S.
        key: (1,) of all randomness.
    """
    quotas = np.diff(firsts)
    _, blocks_of_super = _sizes(quotas, super_classes, sampling)
    by_super = np.argsort(super_classes, kind="stable")
    of_super = np.split(by_super, np.cumsum(np.bincount(super_classes))[:-1])
    members, sizes = [], []
    for super_class in np.flatnonzero(blocks_of_super).tolist():
        classes = of_super[super_class]
        own_firsts = _cumulated(quotas[classes])
        own_key = mix(mix(key) ^ np.uint64(super_class))
        cells = fill_rows(own_firsts, int(blocks_of_super[super_class]), own_key).T  # (blocks, rows)
        # From numbers within the super-class to those of the epoch.
        numbers = np.arange(own_firsts[-1]) + np.repeat(firsts[classes] - own_firsts[:-1], quotas[classes])
        members.append(numbers[cells[cells != EMPTY]].astype(np.int32))
        sizes.append(np.count_nonzero(cells != EMPTY, axis=1))
    batches = Rows(fill_rows(_cumulated(blocks_of_super), _num_batches(blocks_of_super, sampling), key))
    return Blocks(np.concatenate(members), _cumulated(np.concatenate(sizes)), batches)


def smallest_batch(quotas: IntArray, super_classes: IntArray, sampling: Sampling) -> int:
    """Groups that every batch has at least, whatever the seed.

    Args:
        quotas: (C,) groups of each class in an epoch.
        super_classes: (C,) the super-class of each class.
        sampling: P and S.
    """
    groups, blocks = _sizes(quotas, super_classes, sampling)
    groups, blocks = groups[blocks > 0], blocks[blocks > 0]
    num_batches = _num_batches(blocks, sampling)
    # At worst the smallest blocks meet, each super-class as often as it has to be in a batch.
    meeting = np.sort(np.repeat(groups // blocks, -(-blocks // num_batches)))
    return int(meeting[: int(blocks.sum()) // num_batches].sum())


def _sizes(quotas: IntArray, super_classes: IntArray, sampling: Sampling) -> tuple[IntArray, IntArray]:
    """Groups and blocks of each super-class."""
    groups = np.bincount(super_classes, weights=quotas).astype(np.int64)
    return groups, -(-groups // (sampling.classes_per_batch // sampling.super_classes_per_batch))


def _num_batches(blocks_of_super: IntArray, sampling: Sampling) -> int:
    return -(-int(blocks_of_super.sum()) // sampling.super_classes_per_batch)


def _cumulated(sizes: IntArray) -> IntArray:
    return np.concatenate(([0], np.cumsum(sizes)))
