"""Collectives with their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from dmlscale.distributed.collectives import SMALLEST_BY_NODE

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
# Times that the whole buffer passes each rank's link, but for the part that stays.
_PASSES = {"all_reduce": 2}


@dataclass(frozen=True)
class Traffic:
    """One collective of a step.

    Args:
        what: in words, e.g. "embeddings".
        collective: which.
        payload: bytes of the whole buffer: what an all-gather ends with, what a reduce-scatter begins with, else the
            tensor.
        num_ranks: that take part.
        far: whether a link between nodes is crossed.
        hidden: goes on beside the backward pass of the backbone.
    """

    what: str
    collective: Kind
    payload: int
    num_ranks: int
    far: bool = False
    hidden: bool = False

    @property
    def wire(self) -> float:
        """Bytes that each rank sends, in a ring: of an all-reduce 2 (W - 1) / W of the payload, else half of that."""
        return _PASSES.get(self.collective, 1) * self.payload * (self.num_ranks - 1) / self.num_ranks

    @property
    def hops(self) -> int:
        """Messages that wait for each other."""
        return _PASSES.get(self.collective, 1) * (self.num_ranks - 1)


@dataclass(frozen=True)
class Nodes:
    """How ranks lie on nodes.

    Args:
        num_ranks: W.
        per_node: ranks on each node, the last perhaps fewer.
    """

    num_ranks: int
    per_node: int

    @property
    def number(self) -> int:
        """N."""
        return -(-self.num_ranks // self.per_node)

    @property
    def is_even(self) -> bool:
        """Whether all nodes have as many ranks."""
        return self.number == 1 or self.num_ranks % self.per_node == 0

    @property
    def is_useful(self) -> bool:
        """Whether going by node differs from going by rank."""
        return 1 < self.number < self.num_ranks


def placed(calls: Iterable[Traffic], nodes: Nodes) -> tuple[Traffic, ...]:
    """The same, of all ranks: a ring over several nodes crosses the links between them."""
    return tuple(replace(call, far=nodes.number > 1) for call in calls)


def by_node(calls: Iterable[Traffic], nodes: Nodes) -> tuple[Traffic, ...]:
    """What becomes of collectives of all ranks with `train.by_node`, as `distributed.by_node` does it.

    Nodes with different numbers of ranks go by rank here, which is not less than what is sent.
    """
    found: list[Traffic] = []
    for call in placed(calls, nodes):
        is_large = call.payload >= SMALLEST_BY_NODE or call.hidden
        found += _pieces(call, nodes) if nodes.is_useful and nodes.is_even and is_large else [call]
    return tuple(found)


def _pieces(call: Traffic, nodes: Nodes) -> list[Traffic]:
    each, n = nodes.per_node, call.payload

    def piece(collective: Kind, payload: int, *, far: bool) -> Traffic:
        return Traffic(call.what, collective, payload, nodes.number if far else each, far, call.hidden)

    if call.collective == "all_reduce":
        return [
            piece("reduce_scatter", n, far=False),
            piece("all_reduce", -(-n // each), far=True),
            piece("all_gather", n, far=False),
        ]
    if call.collective == "all_gather":
        return [piece("all_gather", n // each, far=True), piece("all_gather", n, far=False)]
    return [piece("reduce_scatter", n, far=False), piece("all_to_all", n // each, far=True)]
