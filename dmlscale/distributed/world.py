"""Who I am among how many: the only description of a process group the rest of the package passes around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from dmlscale.distributed.node_groups import NodeGroups


@dataclass(frozen=True)
class World:
    """The ranks that share one global batch.

    Args:
        rank: this process, 0 .. num_ranks - 1.
        num_ranks: how many there are.
        group: their process group; None is the default group, or no group at all when ``num_ranks`` is 1.
        nodes: the ranks by node, if collectives go by node (`grouped_by_node`); None: by rank.
    """

    rank: int = 0
    num_ranks: int = 1
    group: dist.ProcessGroup | None = None
    nodes: NodeGroups | None = None

    @classmethod
    def current(cls, group: dist.ProcessGroup | None = None) -> World:
        """The world of an initialised process group, or a world of one when there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def share(self, total: int) -> tuple[int, int]:
        """This rank's contiguous share ``[start, stop)`` of ``total`` items; the last ranks may have fewer, or none.

        The cut is that of ``torch.chunk``, which a DTensor sharded over its first dimension uses too.
        """
        each = -(-total // self.num_ranks)
        return min(total, each * self.rank), min(total, each * (self.rank + 1))
