"""The groups of each class, epoch after epoch.

A class of n samples has m = ceil(n / K) groups. A *pass* over the class is its samples in a random order, cut into m
groups of equal size up to one sample; passes follow each other without end and without regard to epochs. An epoch takes
the next ``quota`` groups of each class. So no sample comes twice in a pass, and none is forgotten: each has been in
after ceil(m / quota) epochs, however small the quota.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import Keys, mix
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.shuffle import permute

IntArray = NDArray[np.int64]


class Spans(NamedTuple):
    """Where some groups lie in the passes over their classes; each (g,)."""

    classes: IntArray
    passes: IntArray
    starts: IntArray  # place of the first sample in the pass
    sizes: IntArray


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of any epoch, numbered by class; any of them can be looked up by itself.

    Args:
        class_rows: of the split.
        group_size: K, samples that a group has at most.
        firsts: (C + 1,) number of the first group of each class in an epoch, and of all: the cumulated quotas.
        key: (1,) of the random orders.
    """

    class_rows: ClassRows
    group_size: int
    firsts: IntArray
    key: Keys

    def spans(self, groups: NDArray[np.integer], epoch: int) -> Spans:
        """Look up (g,) groups by number."""
        classes = np.searchsorted(self.firsts, groups, "right") - 1
        first = self.firsts[classes]
        quotas = self.firsts[classes + 1] - first
        counts = self._counts(classes)
        num_groups = -(-counts // self.group_size)
        passes, place = np.divmod(epoch * quotas + groups - first, num_groups)
        smaller, num_larger = np.divmod(counts, num_groups)
        starts = place * smaller + np.minimum(place, num_larger)
        return Spans(classes, passes, starts, smaller + (place < num_larger))

    def rows(self, spans: Spans, owners: IntArray, offsets: IntArray) -> IntArray:
        """(b,) row ids: for each of (b,) owners, an index of ``spans``, the sample at the offset in that group."""
        keys = mix(mix(self.key ^ spans.classes.astype(np.uint64)) ^ spans.passes.astype(np.uint64))
        classes = spans.classes[owners]
        inside = permute(spans.starts[owners] + offsets, self._counts(classes), keys[owners])
        return np.asarray(self.class_rows.rows[self.class_rows.starts[classes] + inside])

    def all_rows(self, spans: Spans) -> IntArray:
        """(b,) row ids of all samples, group after group."""
        owners = np.repeat(np.arange(len(spans.sizes)), spans.sizes)
        begins = np.cumsum(spans.sizes) - spans.sizes
        return self.rows(spans, owners, np.arange(len(owners)) - begins[owners])

    def _counts(self, classes: IntArray) -> IntArray:
        return self.class_rows.starts[classes + 1] - self.class_rows.starts[classes]
