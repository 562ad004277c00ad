"""Collectives that cross the links between nodes as little as possible.

N nodes with L ranks each, W = N L, and n bytes in the whole tensor. What a node sends over its link:

| | by rank (rings) | by node |
|---|---|---|
| sum over ranks | 2 (W - 1) / W n | 2 (N - 1) / N n |
| gather of rows | (W - 1) / W n | (N - 1) / N n |
| sum, each rank keeping its rows | (W - 1) / W n; with gloo 2 (W - 1) / W n | (N - 1) / N n |

With two nodes that is down to half, with many nodes hardly less. A ring also waits for the slow link W - 1 times in a
row, this N - 1 times. Rows by node need even nodes; where they are not, the largest node must send its rows anyway, and
the link is busy as long by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmlscale.distributed.node_groups import NodeGroups

# Of a tensor that is summed: small enough to overlap, large enough for a link to be busy with it.
PIECE_BYTES = 4 * 2**20
Start = Callable[[], dist.Work | None]


def sum_by_node(tensor: Tensor, groups: NodeGroups) -> None:
    """Sums a contiguous tensor over all ranks, in place; all of them end with the same bits.

    It goes piece by piece, so that one crosses the slow link while others are summed and spread within the node.

    Communication: where nodes are even, a reduce-scatter within the node, an all-reduce of 1/L between nodes and an
    all-gather within. Where not, all of it goes through the first rank of each node.
    """
    flat = tensor.view(-1)
    num_shards = len(groups.nodes[groups.node]) if groups.even else 1
    missing = -len(flat) % num_shards
    whole = torch.cat([flat, flat.new_zeros(missing)]) if missing else flat
    pieces = whole.split(-(-PIECE_BYTES // (whole.element_size() * num_shards)) * num_shards)
    _one_after_another(_shard_steps(pieces, groups) if groups.even else _first_rank_steps(pieces, groups))
    if missing:
        flat.copy_(whole[: len(flat)])


def _shard_steps(pieces: Sequence[Tensor], groups: NodeGroups) -> list[list[Start]]:
    shards = [piece.new_empty(len(piece) // len(groups.nodes[groups.node])) for piece in pieces]
    within: dict[str, Any] = {"group": groups.within, "async_op": True}
    return [
        [
            partial(dist.reduce_scatter_tensor, shard, piece, **within)
            for shard, piece in zip(shards, pieces, strict=True)
        ],
        [partial(dist.all_reduce, shard, group=groups.between, async_op=True) for shard in shards],
        [
            partial(dist.all_gather_into_tensor, piece, shard, **within)
            for shard, piece in zip(shards, pieces, strict=True)
        ],
    ]


def _first_rank_steps(pieces: Sequence[Tensor], groups: NodeGroups) -> list[list[Start]]:
    within: dict[str, Any] = {"group": groups.within, "async_op": True}
    steps: list[list[Start]] = [[partial(dist.reduce, piece, group_dst=0, **within) for piece in pieces]]
    if groups.between is not None:
        steps.append([partial(dist.all_reduce, piece, group=groups.between, async_op=True) for piece in pieces])
    steps.append([partial(dist.broadcast, piece, group_src=0, **within) for piece in pieces])
    return steps


def _one_after_another(steps: list[list[Start]]) -> None:
    """Takes each piece through all steps; a piece's next step begins when its last one is done.

    Collectives are called step by step and piece by piece: in the same order on all ranks, as they must be.
    """
    before: list[dist.Work | None] = [None] * len(steps[0])
    for step in steps:
        started = []
        for work, start in zip(before, step, strict=True):
            if work is not None:
                work.wait()
            started.append(start())
        before = started
    for work in before:
        if work is not None:
            work.wait()


def gather_by_node(local: Tensor, sizes: list[int], groups: NodeGroups) -> Tensor:
    """All ranks' rows in rank order: (b, ...) -> (B, ...).

    Args:
        local: (b, ...) this rank's rows.
        sizes: the b of every rank.
        groups: the ranks by node; nodes must be even.

    Communication: an all-gather of this rank's rows between nodes and one of 1/L of all rows within the node; rows
    are padded to the largest b.
    """
    longest, order = max(sizes), _order(groups)
    across = local.new_empty((len(groups.nodes) * longest, *local.shape[1:]))
    dist.all_gather_into_tensor(across, _padded(local, longest), group=groups.between)
    rows = local.new_empty((len(sizes) * longest, *local.shape[1:]))
    dist.all_gather_into_tensor(rows, across, group=groups.within)
    pieces = dict(zip(order, rows.split(longest), strict=True))
    return torch.cat([pieces[rank][:size] for rank, size in enumerate(sizes)])


def scatter_sum_by_node(whole: Tensor, sizes: list[int], groups: NodeGroups) -> Tensor:
    """The sum over ranks of this rank's rows: (B, ...) -> (b, ...). The backward pass of `gather_by_node`.

    Args:
        whole: (B, ...) this rank's terms of all rows, in rank order.
        sizes: the b of every rank.
        groups: the ranks by node; nodes must be even.

    Communication: a reduce-scatter of all rows within the node and an exchange of 1/L of them between nodes; rows are
    padded to the largest b.
    """
    longest, pieces = max(sizes), whole.split(sizes)
    rows = torch.cat([_padded(pieces[rank], longest) for rank in _order(groups)])
    of_node = whole.new_empty((len(groups.nodes) * longest, *whole.shape[1:]))
    dist.reduce_scatter_tensor(of_node, rows, group=groups.within)
    # Not a reduce-scatter: gloo makes an all-reduce of it, which sends twice as much.
    terms = torch.empty_like(of_node)
    dist.all_to_all_single(terms, of_node, group=groups.between)
    return terms.unflatten(0, (-1, longest)).sum(0)[: sizes[groups.rank]]


def _order(groups: NodeGroups) -> list[int]:
    """Ranks as rows lie after a gather between nodes and one within: all in the first place, all in the second, ..."""
    # A group is in the order of its ranks, which need not be that of the nodes.
    return [rank for same_place in zip(*groups.nodes, strict=True) for rank in sorted(same_place)]


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros((length - len(rows), *rows.shape[1:]))])
