"""The only tensor collectives of a training step.

| function | forward | backward | payload per rank |
|---|---|---|---|
| `gather_rows` | all-gather | reduce-scatter, *sum* | W * max_b * d elements each way |
| `sum_over_ranks` | all-reduce, sum | identity | the tensor |
| `used_by_parts` | identity | all-reduce, *sum* | the tensor |
| `max_over_ranks`, `min_over_ranks` | all-reduce | none | the tensor |
| `gather_sizes` | all-gather | none | W integers |

One convention makes gradients exact: every rank computes the same scalar, and ``backward()`` gives each rank the
gradient of that one scalar by its own tensors. So a sum's backward is the identity; an all-reduce there, as in
``torch.distributed.nn.all_reduce``, would leave the loss right and make the gradients W times too large.

In a world with ``nodes`` large gathers and sums go by node (by_node.py): more calls, fewer bytes between nodes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmlscale.distributed.by_node import gather_by_node, scatter_sum_by_node, sum_by_node
from dmlscale.distributed.world import World

# Of a whole tensor in bytes. Below, the number of calls counts and not what they send.
SMALLEST_BY_NODE = 2**17


def gather_sizes(size: int, world: World, device: torch.device) -> list[int]:
    """The local sizes of all ranks, in rank order."""
    if world.num_ranks == 1:
        return [size]
    mine = torch.tensor([size], dtype=torch.int64, device=device)
    sizes = mine.new_empty(world.num_ranks)
    dist.all_gather_into_tensor(sizes, mine, group=world.group)
    return [int(n) for n in sizes.tolist()]


def collective_device(world: World) -> torch.device:
    """Where tensors must be for the group's collectives: this rank's GPU for NCCL, else the CPU."""
    is_nccl = world.num_ranks > 1 and dist.get_backend(world.group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")


def gather_rows(local: Tensor, sizes: list[int], world: World) -> Tensor:
    """All ranks' rows, in rank order: (b, ...) -> (B, ...). Differentiable; ranks may hold different numbers.

    Args:
        local: (b, ...) this rank's rows.
        sizes: the b of every rank, from `gather_sizes`.
        world: the ranks.
    """
    if world.num_ranks == 1:
        return local
    gathered: Tensor = _GatherRows.apply(local, sizes, world)
    return gathered


def sum_over_ranks(local: Tensor, world: World) -> Tensor:
    """Sum over ranks, the same on each; its gradient is each rank's own."""
    if world.num_ranks == 1:
        return local
    summed: Tensor = _SumOverRanks.apply(local, world)
    return summed


def used_by_parts(same: Tensor, world: World) -> Tensor:
    """A tensor that all ranks hold alike, where each uses it for its own part of the work only.

    Each rank's gradient is then a part of the whole; their sum is what the tensor's makers must get.
    """
    if world.num_ranks == 1 or not same.requires_grad:
        return same
    shared: Tensor = _UsedByParts.apply(same, world)
    return shared


def max_over_ranks(local: Tensor, world: World) -> Tensor:
    """Elementwise maximum over ranks, without gradient."""
    return _extreme(local, world, dist.ReduceOp.MAX)


def min_over_ranks(local: Tensor, world: World) -> Tensor:
    """Elementwise minimum over ranks, without gradient."""
    return _extreme(local, world, dist.ReduceOp.MIN)


def _extreme(local: Tensor, world: World, op: dist.ReduceOp.RedOpType) -> Tensor:
    result = local.detach().clone()
    if world.num_ranks > 1:
        dist.all_reduce(result, op, group=world.group)
    return result


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    padded = rows.new_zeros((length, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded


def _summed(local: Tensor, world: World) -> Tensor:
    total = local.clone(memory_format=torch.contiguous_format)
    if world.nodes is not None and total.nbytes >= SMALLEST_BY_NODE:
        sum_by_node(total, world.nodes)
    else:
        dist.all_reduce(total, group=world.group)
    return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int], world: World) -> Tensor:
        ctx.sizes, ctx.world = sizes, world
        num_bytes = sum(sizes) * local.shape[1:].numel() * local.element_size()
        ctx.by_node = world.nodes is not None and world.nodes.even and num_bytes >= SMALLEST_BY_NODE
        if ctx.by_node:
            assert world.nodes is not None
            return gather_by_node(local, sizes, world.nodes)
        longest = max(sizes)
        padded = local.new_empty((world.num_ranks * longest, *local.shape[1:]))
        dist.all_gather_into_tensor(padded, _padded(local, longest), group=world.group)
        if min(sizes) == longest:
            return padded
        return torch.cat([padded[r * longest : r * longest + n] for r, n in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        sizes, world, gradient = ctx.sizes, ctx.world, gradients[0]
        if ctx.by_node:
            return scatter_sum_by_node(gradient, sizes, world.nodes), None, None
        longest = max(sizes)
        if min(sizes) < longest:
            gradient = torch.cat([_padded(part, longest) for part in gradient.split(sizes)])
        mine = gradient.new_empty((longest, *gradient.shape[1:]))
        dist.reduce_scatter_tensor(mine, gradient.contiguous(), group=world.group)
        return mine[: sizes[world.rank]], None, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, world: World) -> Tensor:
        return _summed(local, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _UsedByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, same: Tensor, world: World) -> Tensor:
        ctx.world = world
        return same.view_as(same)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _summed(gradients[0], ctx.world), None
