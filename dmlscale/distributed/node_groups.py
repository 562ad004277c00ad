"""Which ranks share a node, and the process groups within nodes and between them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch.distributed as dist

from dmlscale.distributed.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, eq=False)
class NodeGroups:
    """The ranks of a world by node.

    A node is even with the others when it has as many ranks. Then the n-th ranks of all nodes form a group, so every
    rank can carry its share of what passes between nodes. Uneven nodes speak to each other through their first ranks.

    Attributes:
        nodes: the ranks of each node, ascending; nodes in the order of their first rank.
        node: which of them is this rank's.
        place: of this rank in its node; 0 is the first.
        within: the group of this node's ranks.
        between: the group of the ranks in this place, one of each node; where nodes are uneven, of the first ranks,
            and None on the others.
    """

    nodes: tuple[tuple[int, ...], ...]
    node: int
    place: int
    within: dist.ProcessGroup
    between: dist.ProcessGroup | None

    @classmethod
    def of(cls, world: World, node: str | None = None) -> NodeGroups:
        """The nodes of a world. Called by all of its ranks; the answer is kept as long as the process group lives.

        Args:
            world: two ranks or more.
            node: what tells this rank's node from others; None finds it out (`node_identity`).

        Communication: all-gathers of a short text and of a number by rank, and two new process groups. Only on the
        first call, or when ``node`` is given.
        """
        if node is not None:
            return cls._make(world, _ranks_by_node(world, node))
        whole = world.group or dist.group.WORLD
        assert whole is not None
        if whole not in _known:
            _known[whole] = cls._make(world, _ranks_by_node(world, node_identity()))
        return _known[whole]

    def again(self, world: World) -> NodeGroups:
        """The same nodes with process groups of their own.

        Two threads may not share a group: its collectives must be called in the same order on all ranks.
        """
        return self._make(world, self.nodes)

    @property
    def rank(self) -> int:
        """This rank."""
        return self.nodes[self.node][self.place]

    @property
    def even(self) -> bool:
        """Whether all nodes have as many ranks."""
        return len({len(ranks) for ranks in self.nodes}) == 1

    @property
    def useful(self) -> bool:
        """Whether going by node differs from going by rank: there are several nodes, and one has several ranks."""
        return 1 < len(self.nodes) < sum(len(ranks) for ranks in self.nodes)

    @classmethod
    def _make(cls, world: World, nodes: tuple[tuple[int, ...], ...]) -> NodeGroups:
        node = next(n for n, ranks in enumerate(nodes) if world.rank in ranks)
        place = nodes[node].index(world.rank)
        _make_counts_equal(world)
        within = _group(world, nodes[node])
        if len({len(ranks) for ranks in nodes}) == 1 or place == 0:
            between: dist.ProcessGroup | None = _group(world, [ranks[place] for ranks in nodes])
        else:
            # A group of one, for nothing: torch names groups by how many a process has made, so all make as many.
            _group(world, [world.rank])
            between = None
        return cls(nodes, node, place, within, between)


_known: WeakKeyDictionary[dist.ProcessGroup, NodeGroups] = WeakKeyDictionary()


def node_identity() -> str:
    """What this process's node is called: equal for processes that reach each other without a network.

    Host name, start of the kernel and network namespace; so two containers on one machine count as two nodes.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.stat('/proc/self/ns/net').st_ino}"


def grouped_by_node(world: World, node: str | None = None) -> World:
    """The world with its collectives by node, where that differs from going by rank (`NodeGroups.useful`).

    Args:
        world: the ranks; all of them call this.
        node: see `NodeGroups.of`.

    Communication: that of `NodeGroups.of`.
    """
    if world.num_ranks == 1:
        return world
    groups = NodeGroups.of(world, node)
    return replace(world, nodes=groups) if groups.useful else world


def node_mesh(world: World, node: str | None = None) -> DeviceMesh:
    """All ranks as a grid (node, local): what FSDP shards over "local" and holds alike over "node".

    Args:
        world: two ranks or more; all of them call this.
        node: see `NodeGroups.of`.

    Raises:
        ValueError: nodes have different numbers of ranks.

    Communication: that of `NodeGroups.of`.
    """
    from torch.distributed.device_mesh import DeviceMesh

    groups = NodeGroups.of(world, node)
    if not groups.even:
        counts = ", ".join(str(len(ranks)) for ranks in groups.nodes)
        raise ValueError(
            f"sharding within nodes needs as many workers on each, but {len(groups.nodes)} nodes have {counts}: "
            "ask for as many on each, or set train.by_node=false"
        )
    assert groups.between is not None
    device = "cuda" if dist.get_backend(world.group) == "nccl" else "cpu"
    ranks = [_global_ranks(world, node_ranks) for node_ranks in groups.nodes]
    return DeviceMesh.from_group([groups.between, groups.within], device, ranks, mesh_dim_names=("node", "local"))


def _ranks_by_node(world: World, node: str) -> tuple[tuple[int, ...], ...]:
    names: list[str] = [""] * world.num_ranks
    dist.all_gather_object(names, node, group=world.group)
    ranks: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        ranks.setdefault(name, []).append(rank)
    return tuple(map(tuple, ranks.values()))


def _group(world: World, ranks: Sequence[int]) -> dist.ProcessGroup:
    # Only members meet: ranks outside this world need not know.
    made = dist.new_group(_global_ranks(world, ranks), use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)  # this rank is among them
    return made


def _make_counts_equal(world: World) -> None:
    """Torch names a group by how many its process has made; members with different counts wait for each other forever.

    They differ where only some ranks made groups before, as those of a smaller world do.
    """
    counts = [0] * world.num_ranks
    dist.all_gather_object(counts, dist.get_pg_count(), group=world.group)
    for _ in range(max(counts) - counts[world.rank]):
        _group(world, [world.rank])  # for nothing


def _global_ranks(world: World, ranks: Sequence[int]) -> list[int]:
    if world.group is None:
        return list(ranks)
    return [dist.get_global_rank(world.group, rank) for rank in ranks]
