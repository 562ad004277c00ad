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
from torch.optim import Optimizer

from dmlscale.distributed.class_bank import ClassBank
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective


@dataclass
class Record:
    """Where a run stood when a checkpoint was written.

    Args:
        step: optimizer steps done.
        position: of the data stream, as its ``state_dict()`` gives it.
        num_ranks: W of the run that wrote it; it may be read at any other.
        config: the resolved config.
        tracking: what the tracker needs to continue the same run.
    """

    step: int
    position: dict[str, int]
    num_ranks: int
    config: dict[str, Any]
    tracking: dict[str, Any]


def tensors(embedder: nn.Module, objective: Objective, optimizer: Optimizer | None, world: World) -> dict[str, Tensor]:
    """Every tensor of a run under its name, sharing memory with the run: saving reads it, loading fills it.

    Class banks and their optimizer state are DTensors cut along the global class id, so that another number of
    ranks can load them; all others are the same on every rank.
    """
    banks = {id(bank.weight): bank for bank in objective.banks()}
    shard = _sharder(world)
    found: dict[str, Tensor] = {f"model.{name}": t for name, t in embedder.state_dict().items()}
    for name, parameter in objective.named_parameters():
        found[f"objective.{name}"] = shard(parameter.data, banks.get(id(parameter)))
    if optimizer is None:
        return found
    for name, parameter in _named_parameters(embedder, objective):
        for key, value in _optimizer_state(optimizer, parameter).items():
            bank = banks.get(id(parameter)) if value.shape == parameter.shape else None
            found[f"optimizer.{name}.{key}"] = shard(value, bank)
    return found


def _named_parameters(embedder: nn.Module, objective: Objective) -> Iterator[tuple[str, nn.Parameter]]:
    yield from (("model." + name, p) for name, p in embedder.named_parameters() if p.requires_grad)
    yield from (("objective." + name, p) for name, p in objective.named_parameters() if p.requires_grad)


def _optimizer_state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's tensors for a parameter; made, as its first step would, where they are not there yet."""
    state = optimizer.state[parameter]
    if not state:
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        else:
            state["momentum_buffer"] = torch.zeros_like(parameter)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _sharder(world: World) -> Callable[[Tensor, ClassBank | None], Tensor]:
    mesh: DeviceMesh | None = None

    def shard(local: Tensor, bank: ClassBank | None) -> Tensor:
        nonlocal mesh
        if bank is None or world.num_ranks == 1:
            return local
        group = world.group or dist.group.WORLD
        if mesh is None and group is not None:
            mesh = DeviceMesh.from_group(group, local.device.type)
        shape = torch.Size((bank.num_classes, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return shard
