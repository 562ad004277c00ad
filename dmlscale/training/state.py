"""What must survive a stop: every tensor by name, and a small record in plain JSON.

The learning rate, the random numbers of a step and the order of samples are pure functions of (config, step), so
the record holds no generator state: only where the run stood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective
from dmlscale.training.optimizers import Optimizers


@dataclass
class Record:
    """Where a run stood when a checkpoint was written.

    Args:
        step: optimizer steps done.
        position: of the data stream, as its ``state_dict()`` gives it.
        num_ranks: W of the run that wrote it; it may be read at any other.
        config: the resolved config.
        tracking: what the tracker needs to continue the same run.
        cost_s: seconds of all workers that the run has taken up to there.
        skipped_steps: of which the loss or gradient was not finite, so far.
    """

    step: int
    position: dict[str, int]
    num_ranks: int
    config: dict[str, Any]
    tracking: dict[str, Any]
    skipped_steps: int = 0
    cost_s: float = 0.0


def tensors(embedder: nn.Module, objective: Objective, optimizer: Optimizers | None, world: World) -> dict[str, Tensor]:
    """Every tensor of a run under its name, sharing memory with the run: saving reads it, loading fills it.

    Class banks, their optimizer state and cross-batch memories are DTensors cut along the global class id or slot, so
    that another number of ranks can load them. So is a model in shards; else it is the same on every rank.
    """
    lengths = _global_lengths(objective)
    shard = _sharder(world)
    found: dict[str, Tensor] = {f"model.{name}": t for name, t in embedder.state_dict().items()}
    for name, tensor in [*objective.named_parameters(), *objective.named_buffers()]:
        found[f"objective.{name}"] = shard(tensor.data, lengths.get(id(tensor)))
    if optimizer is None:
        return found
    for name, parameter in _named_parameters(embedder, objective):
        for key, value in optimizer.state_of(parameter).items():
            length = lengths.get(id(parameter)) if value.shape == parameter.shape else None
            found[f"optimizer.{name}.{key}"] = shard(value, length)
    return found


def _global_lengths(objective: Objective) -> dict[int, int]:
    """Rows over all ranks of each tensor that is cut over them, by its id()."""
    lengths = {id(bank.weight): bank.num_classes for bank in objective.banks()}
    for loss in objective.losses():
        if loss.memory is not None:
            lengths |= {id(t): loss.memory.size for t in (loss.memory.embeddings, loss.memory.labels)}
    return lengths


def _named_parameters(embedder: nn.Module, objective: Objective) -> Iterator[tuple[str, nn.Parameter]]:
    yield from (("model." + name, p) for name, p in embedder.named_parameters() if p.requires_grad)
    yield from (("objective." + name, p) for name, p in objective.named_parameters() if p.requires_grad)


def _sharder(world: World) -> Callable[[Tensor, int | None], Tensor]:
    mesh: DeviceMesh | None = None

    def shard(local: Tensor, length: int | None) -> Tensor:
        nonlocal mesh
        if length is None or world.num_ranks == 1:
            return local
        group = world.group or dist.group.WORLD
        if mesh is None and group is not None:
            mesh = DeviceMesh.from_group(group, local.device.type)
        shape = torch.Size((length, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return shard
