"""How large the parts of a step are on the rank that has the most."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dmlscale.config.schema import Config


@dataclass(frozen=True)
class Sizes:
    """Samples and classes of a step.

    Args:
        num_ranks: W.
        local: samples of the rank that has the most of the batch.
        total: B, samples of the global batch.
        batch_classes: classes in the global batch.
        num_classes: C, of the class banks.
        streams: canonical streams that this rank serves.
        fullest_classes: classes of the batch on the rank whose bank has the most of them, where that is known.
    """

    num_ranks: int
    local: int
    total: int
    batch_classes: int
    num_classes: int
    streams: int
    fullest_classes: int | None = None

    @classmethod
    def of(cls, config: Config, num_classes: int) -> Sizes:
        """Those of a config whose classes have enough samples."""
        d, num_ranks = config.data, config.resources.workers
        streams = math.ceil(d.num_streams / num_ranks)
        total = d.classes_per_batch * d.samples_per_class
        each = total // d.num_streams
        return cls(num_ranks, streams * each, total, d.classes_per_batch, num_classes, streams)

    @property
    def local_classes(self) -> int:
        """Classes whose rows the rank holds in a bank; as `World.share` cuts them."""
        return math.ceil(self.num_classes / self.num_ranks)

    @property
    def fullest(self) -> int:
        """Classes of the batch on the rank whose bank has the most of them; if unknown an estimate for random ones."""
        if self.fullest_classes is not None:
            return self.fullest_classes
        mean = self.batch_classes / self.num_ranks
        spread = math.sqrt(2 * mean * math.log(self.num_ranks)) if self.num_ranks > 1 else 0.0
        return min(self.batch_classes, self.local_classes, math.ceil(mean + spread))
