"""How the backbone of a run is held and passed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dmlscale.config.schema import Config
from dmlscale.launch.plan.sizes import Sizes


@dataclass(frozen=True)
class Layout:
    """How the backbone is held, and passed.

    Args:
        shards: ranks that share its parameters; 1 unless FSDP.
        has_buckets: gradients lie in buckets that stay (DDP).
        reproducible: stream by stream, gradients added exactly.
        samples: in one pass.
        passes: of the rank's samples.
        two_passes: embed all first (train.micro_batch_size).
    """

    shards: int
    has_buckets: bool
    reproducible: bool
    samples: int
    passes: int
    two_passes: bool

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients come up in the one backward pass, while activations go; else their place is taken."""
        return self.reproducible or (self.passes == 1 and self.shards == 1 and not self.has_buckets)

    @classmethod
    def of(cls, config: Config, sizes: Sizes, per_node: int, *, reproducible: bool) -> Layout:
        """The layout of a config."""
        t, many = config.train, sizes.num_ranks > 1
        # By node only where a node has several ranks; else a rank would hold the whole (distributed/fully_sharded.py).
        within = min(per_node, sizes.num_ranks) if t.by_node and per_node > 1 else sizes.num_ranks
        shards = within if t.parallel == "fsdp" else 1
        whole = sizes.local // sizes.streams if reproducible else sizes.local
        samples = whole if t.micro_batch_size is None else min(whole, t.micro_batch_size)
        passes = (sizes.streams if reproducible else 1) * math.ceil(whole / samples)
        has_buckets = many and t.parallel == "ddp" and not reproducible
        return cls(shards, has_buckets, reproducible, samples, passes, t.micro_batch_size is not None)
