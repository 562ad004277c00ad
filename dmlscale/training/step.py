"""The way of one batch: images -> embeddings -> global loss -> gradients -> new parameters. Read this first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective
from dmlscale.training.optim import Schedule, clip_gradients, set_learning_rates
from dmlscale.training.reproducible import backward_by_stream


@dataclass
class Trainee:
    """What a step changes, and the rules of the change."""

    model: nn.Module  # sums its gradients over ranks (distributed/wrap.py), unless reproducible does
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    world: World
    clip_norm: float | None = None
    half_precision: bool = False  # bf16 in the backbone; losses are always computed in fp32 at least
    seed: int = 0  # of dropout and the like
    reproducible: bool = False  # the same bits at any number of ranks: training/reproducible.py


def train_step(
    trainee: Trainee, batch: Batch, step: int, stream_sizes: Mapping[int, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimizer step on this rank's part of the global batch.

    Args:
        trainee: what is trained.
        batch: this rank's samples.
        step: number of steps done before.
        stream_sizes: samples of each canonical stream in the batch, by the stream's number.

    Returns:
        () the loss of the global batch, the same on every rank and not yet fetched from the device; terms by name.
    """
    set_learning_rates(trainee.optimizer, trainee.schedule(step))
    trainee.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=trainee.half_precision):
        if trainee.reproducible:
            # A stream's samples go through the network together, whichever rank they are on.
            embeddings = []
            parts = batch.images.split([*stream_sizes.values()])
            for stream, images in zip(stream_sizes, parts, strict=True):
                _seed(trainee.seed, step, stream)
                embeddings.append(trainee.model(images))
        else:
            _seed(trainee.seed, step, trainee.world.rank)
            embeddings = [trainee.model(batch.images)]  # (b, d)
    if trainee.reproducible:
        loss, terms = backward_by_stream(trainee.model, trainee.objective, embeddings, batch.labels, trainee.world)
    else:
        loss, terms = trainee.objective(embeddings[0], batch.labels)  # () over all ranks' samples
        loss.backward()
    if trainee.clip_norm is not None:
        clip_gradients(trainee.model, trainee.objective, trainee.clip_norm, trainee.world)
    trainee.optimizer.step()
    return loss.detach(), terms


def _seed(*parts: int) -> None:
    """Dropout and the like depend on the step alone, so a resumed run draws the same numbers."""
    torch.manual_seed(hash(parts) % 2**63)
