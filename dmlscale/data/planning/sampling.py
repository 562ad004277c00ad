"""How the samples of a global batch are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SamplingName = Literal["classes", "balanced", "by_frequency", "hierarchical", "all_positives"]


@dataclass(frozen=True)
class Sampling:
    """The options of a plan.

    Words: a *group* is up to K samples of one class; a *batch* is the groups of one step over all ranks, about P of
    them, of different classes; a *stream* is one of N lanes that every batch is dealt to.

    Args:
        classes_per_batch: P.
        samples_per_class: K.
        num_streams: N, a divisor of P.
        name: classes: every sample once an epoch. balanced: every class has the same number of groups.
            by_frequency: a class with m groups has a share in proportion to m ** frequency_power. hierarchical: a
            batch has classes of few super-classes. all_positives: a class stands as a whole in one batch of P * K
            samples, unless it is larger than half the batch.
        frequency_power: of by_frequency, from 0 (as balanced) to 1 (as classes).
        max_samples_per_class: at most so many of a class in an epoch, whole groups of K; the following epochs have
            the others. None: no bound.
        super_classes_per_batch: S of hierarchical, a divisor of P.
        window_shards: 0, or how many shards at a time the batches of classes are made of: for shards that are far
            away.
    """

    classes_per_batch: int
    samples_per_class: int
    num_streams: int
    name: SamplingName = "classes"
    frequency_power: float = 0.5
    max_samples_per_class: int | None = None
    super_classes_per_batch: int = 1
    window_shards: int = 0

    @property
    def batch_size(self) -> int:
        """P * K, samples of a full batch."""
        return self.classes_per_batch * self.samples_per_class

    @property
    def group_size(self) -> int:
        """Samples that a group has at most."""
        if self.name != "all_positives":
            return self.samples_per_class
        largest = max(self.batch_size // 2, min(2, self.batch_size))  # room for other classes beside it
        return min(largest, self.max_samples_per_class or largest)

    @property
    def max_groups(self) -> int | None:
        """Groups that a class has at most in an epoch."""
        return None if self.max_samples_per_class is None else max(1, self.max_samples_per_class // self.group_size)

    def num_steps(self, num_groups: int) -> int:
        """Batches that an epoch of so many groups is dealt to (all samplings but hierarchical and all_positives).

        As many as hold P groups each, the last ones' shortfall spread over all. With as many streams as classes
        per batch that would leave streams without a group: then there are fewer batches, each up to a factor
        1 + 1/num_steps above P groups.
        """
        return max(1, min(-(-num_groups // self.classes_per_batch), num_groups // self.num_streams))
