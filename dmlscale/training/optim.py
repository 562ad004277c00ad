"""Parameter groups, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from dmlscale.distributed.collectives import sum_over_ranks
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective

Schedule = Callable[[int], float]  # step -> factor of each group's peak learning rate


def optimizer(
    embedder: Embedder,
    objective: Objective,
    *,
    name: Literal["adamw", "sgd"],
    backbone_lr: float,
    head_lr: float,
    bank_lr: float,
    weight_decay: float,
    bank_weight_decay: float = 0.0,
    momentum: float = 0.9,
    eps: float = 1e-8,
) -> Optimizer:
    """One optimizer with the groups "backbone", "head" and "bank"; biases and norms are not decayed.

    Args:
        embedder: whose backbone and head are trained.
        objective: whose class banks are trained.
        name: "adamw" or "sgd" (with Nesterov momentum).
        backbone_lr: peak learning rate of the backbone.
        head_lr: of the embedding head.
        bank_lr: of proxies and centers; the papers give them 10 to 100 times the backbone's.
        weight_decay: of backbone and head.
        bank_weight_decay: of proxies and centers.
        momentum: of SGD.
        eps: of AdamW.
    """
    groups = []
    for part, module, lr, decay in (
        ("backbone", embedder.backbone, backbone_lr, weight_decay),
        ("head", embedder.head, head_lr, weight_decay),
        ("bank", objective, bank_lr, bank_weight_decay),
    ):
        for decayed in (True, False):
            parameters = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == decayed]
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "name": part,
                        "lr": lr,
                        "peak_lr": lr,
                        "weight_decay": decay if decayed else 0.0,
                    }
                )
    if name == "adamw":
        return AdamW(groups, eps=eps, fused=True)  # one sweep over each parameter instead of ten
    return SGD(groups, momentum=momentum, nesterov=momentum > 0)


def schedule(
    kind: Literal["constant", "cosine", "step"],
    *,
    total_steps: int,
    warmup_steps: int = 0,
    step_every: int = 0,
    step_factor: float = 0.5,
    floor: float = 0.0,
) -> Schedule:
    """A pure function of the step, so that a resumed run needs no schedule state.

    Args:
        kind: "cosine" falls to ``floor``; "step" multiplies by ``step_factor`` every ``step_every`` steps.
        total_steps: length of the run.
        warmup_steps: linear rise from zero first.
        step_every: in steps.
        step_factor: at each of them.
        floor: smallest factor of "cosine".
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if kind == "cosine":
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if kind == "step" and step_every > 0:
            return float(step_factor ** ((step - warmup_steps) // step_every))
        return 1.0

    return factor


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Scales every group's peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def clip_gradients(embedder: nn.Module, objective: Objective, max_norm: float, world: World) -> None:
    """Clips the norm of the whole gradient: the embedder's, equal on all ranks, and all ranks' banks together.

    Communication: one all-reduce of a scalar if there is a bank.
    """
    shared = [p.grad for p in embedder.parameters() if p.grad is not None]
    sharded = [p.grad for p in objective.parameters() if p.grad is not None]
    square = torch.stack([g.double().square().sum() for g in shared]).sum()
    if objective.banks():
        local = torch.stack([g.double().square().sum() for g in sharded]).sum()
        square = square + sum_over_ranks(local, world)
    factor = (max_norm / (square.sqrt() + 1e-6)).clamp_max(1.0)
    for gradient in shared + sharded:
        gradient.mul_(factor.to(gradient.dtype))
