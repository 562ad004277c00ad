"""The way of one batch: images -> embeddings -> global loss -> gradients -> new parameters. Read this first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective
from dmlscale.training.optim import Schedule, clip_gradients, set_learning_rates


@dataclass
class Trainee:
    """What a step changes, and the rules of the change."""

    model: nn.Module  # sums its gradients over ranks: distributed/wrap.py
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    world: World
    clip_norm: float | None = None
    half_precision: bool = False  # bf16 in the backbone; losses are always computed in fp32


def train_step(trainee: Trainee, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimizer step on this rank's part of the global batch.

    Returns:
        () the loss of the global batch, the same on every rank and not yet fetched from the device; terms by name.
    """
    set_learning_rates(trainee.optimizer, trainee.schedule(step))
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=trainee.half_precision):
        embeddings = trainee.model(batch.images)  # (b, d)
    loss, terms = trainee.objective(embeddings, batch.labels)  # () over all ranks' samples
    trainee.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if trainee.clip_norm is not None:
        clip_gradients(trainee.model, trainee.objective, trainee.clip_norm, trainee.world)
    trainee.optimizer.step()
    return loss.detach(), terms
