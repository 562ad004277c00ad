"""A backbone in shards: each rank keeps 1/W of every parameter and fetches the rest block by block (FSDP2).

As in `wrap`, gradients are summed over ranks, not averaged: a rank's part of the gradient of the one global loss is
added to those of the others. Every forward and backward pass is a collective, so all ranks must make the same number
of them; a rank without samples passes an empty batch (`Embedder` knows what to do with it).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate

from dmlscale.distributed.node_groups import grouped_by_node, node_mesh
from dmlscale.distributed.world import World


def fully_sharded(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    world: World,
    *,
    half_precision: bool = False,
    by_node: bool = False,
    node: str | None = None,
) -> nn.Module:
    """The model, changed in place: its parameters are DTensors cut over ranks, its gradients are summed over them.

    Make the optimizer afterwards: the parameters are other objects than before. Their names are the same, and so are
    those in a checkpoint.

    Args:
        model: the same on all ranks. It may still be on the CPU: it moves to the GPU part by part. Weights are stored
            row by row, whatever their order was (channels_last).
        blocks: modules within it, none inside another, whose parameters are fetched together; those of no block are
            fetched at the beginning.
        world: the ranks; one rank keeps the whole.
        half_precision: the model runs under bf16 autocast only. Weights that autocast would round (of linear layers
            and convolutions) are then rounded before they are sent; all others, and the sums of gradients, stay in
            float32, so the numbers are those of `wrap`.
        by_node: cut over the ranks of a node, and hold the same on each node: what is fetched stays within the node.
            Without effect where a node has one rank, which would hold the whole.
        node: of this rank, see `node_mesh`.

    Raises:
        ValueError: ``by_node``, and nodes have different numbers of ranks.

    Communication: per block and pass one all-gather of its parameters, again in the backward pass, and one
    reduce-scatter of its gradients.
    """
    if world.num_ranks == 1:
        return model
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP cuts nothing else
    by_node = by_node and grouped_by_node(world, node).nodes is not None
    options: dict[str, Any] = {"mesh": node_mesh(world, node) if by_node else _flat_mesh(world)}
    if half_precision:
        options["mp_policy"] = _rounded_as_autocast_does(model)
    for module in (*blocks, model):
        # The outermost too: what it fetched would else stay, as whole tensors, after a pass without a backward pass.
        fully_shard(module, reshard_after_forward=True, **options)
    for sharded in _sharded_modules(model):
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # else the factor goes through an operation of NCCL alone
    _make_whole_once(model)
    return model


def needs_all_ranks(model: nn.Module) -> bool:
    """Whether each training pass of the model is a collective: it is in shards, or its batch norm is synchronized."""
    return any(isinstance(module, FSDPModule | nn.SyncBatchNorm) for module in model.modules())


def held_here(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; the tensor itself where it is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_cut(tensor: Tensor) -> bool:
    """Whether ranks hold different parts of a tensor."""
    return isinstance(tensor, DTensor)


def sum_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """The sum of a number over the ranks among which a tensor is cut; the number itself where it is not.

    Args:
        value: () of this rank's part.
        like: the tensor.
    """
    if not isinstance(like, DTensor):
        return value
    placements = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    return DTensor.from_local(value, like.device_mesh, placements, run_check=False).full_tensor()


def _flat_mesh(world: World) -> DeviceMesh:
    group = world.group or dist.group.WORLD
    assert group is not None
    return DeviceMesh.from_group(group, "cuda" if dist.get_backend(group) == "nccl" else "cpu")


def _rounded_as_autocast_does(model: nn.Module) -> MixedPrecisionPolicy:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    rounded = {id(layer.weight) for layer in layers}
    options: dict[str, Any] = {"param_dtype_override_fn": lambda p: None if id(p) in rounded else p.dtype}
    if not inspect.signature(MixedPrecisionPolicy).parameters.keys() >= options.keys():
        return MixedPrecisionPolicy()  # an older torch would round all: it sends float32 instead
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False, **options)


def _sharded_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _make_whole_once(model: nn.Module) -> None:
    """The first fetch makes the tensors that all later ones fill: they must not be made in inference mode."""
    for module in _sharded_modules(model):
        module.unshard()
        module.reshard()
