"""The way of one batch: images -> embeddings -> global loss -> gradients -> new parameters. Read this first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.training.accumulate import backward_in_two_passes
from dmlscale.training.nonfinite import KeptBuffers, NotFiniteError, is_finite
from dmlscale.training.objective import Objective
from dmlscale.training.optim import Schedule, clip_gradients, set_learning_rates
from dmlscale.training.optimizers import Optimizers
from dmlscale.training.passes import Part, draw_from, parts_of
from dmlscale.training.reproducible import backward_by_stream


@dataclass
class Trainee:
    """What a step changes, and the rules of the change."""

    model: nn.Module  # sums its gradients over ranks (distributed/wrap.py, fully_sharded.py), unless reproducible does
    objective: Objective
    optimizer: Optimizers
    schedule: Schedule
    world: World
    clip_norm: float | None = None
    half_precision: bool = False  # bf16 in the backbone; losses are always computed in fp32 at least
    seed: int = 0  # of dropout and the like
    reproducible: bool = False  # the same bits at any number of ranks: training/reproducible.py
    micro_batch: int | None = None  # most samples in the network at a time: training/accumulate.py
    kept: KeptBuffers = field(init=False)  # of the model before the step

    def __post_init__(self) -> None:
        self.kept = KeptBuffers(self.model)


def train_step(
    trainee: Trainee, batch: Batch, step: int, embedded: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimizer step on this rank's part of the global batch.

    Args:
        trainee: what is trained.
        batch: this rank's samples.
        step: number of steps done before.
        embedded: called when this rank has asked for its embeddings, before it waits for those of others.

    Returns:
        () the loss of the global batch, the same on every rank and not yet fetched from the device; terms by name.

    Raises:
        NotFiniteError: the loss or a gradient is not finite, on all ranks alike. Parameters, optimizer, buffers, banks
            and memories are then as they were before.

    Communication: that of the losses; the sum of the model's gradient; that of `clip_gradients` or of `is_finite`.
    """
    trainee.kept.keep()
    undo = trainee.objective.undoer()
    set_learning_rates(trainee.optimizer, trainee.schedule(step))
    trainee.optimizer.zero_grad()
    # Reproducible: a stream's samples go through the network together, whichever rank they are on.
    groups = batch.stream_sizes if trainee.reproducible else {trainee.world.rank: len(batch.images)}
    parts = parts_of(batch.images, groups, (trainee.seed, step), trainee.micro_batch)

    def forward(part: Part) -> Tensor:
        draw_from(part)
        with torch.autocast(part.images.device.type, torch.bfloat16, enabled=trainee.half_precision):
            embeddings: Tensor = trainee.model(part.images)  # (m, d)
        return embeddings

    seen: list[Tensor] = []

    def loss_of(embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        embedded()
        seen.append(embeddings.detach())
        return trainee.objective(embeddings, batch.labels, batch.ids, step)  # () over all ranks' samples

    if trainee.micro_batch is not None:
        loss, terms = backward_in_two_passes(
            trainee.model, forward, parts, loss_of, trainee.world, reproducible=trainee.reproducible
        )
    elif trainee.reproducible:
        loss, terms = backward_by_stream(trainee.model, forward, parts, loss_of, trainee.world)
    else:
        loss, terms = loss_of(forward(parts[0][0]))
        loss.backward()
    if not _can_step(trainee, loss):
        undo()
        trainee.kept.bring_back()
        raise NotFiniteError(loss.detach(), terms, seen[0])
    trainee.optimizer.step()
    trainee.objective.step_banks()
    return loss.detach(), terms


def _can_step(trainee: Trainee, loss: Tensor) -> bool:
    """Clips, and tells whether all is finite. On a GPU this waits for the backward pass, once a step."""
    if trainee.clip_norm is None:
        return is_finite(loss.detach(), trainee.model, trainee.objective, trainee.world)
    norm = clip_gradients(trainee.model, trainee.objective, trainee.clip_norm, trainee.world)  # tells it as well
    return bool(torch.isfinite(loss.detach()) & torch.isfinite(norm))
