"""Parameter groups, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, SparseAdam

from dmlscale.distributed.collectives import sum_over_ranks
from dmlscale.distributed.fully_sharded import held_here, sum_over_shards
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective
from dmlscale.training.optimizers import Optimizers

Schedule = Callable[[int], float]  # step -> factor of each group's peak learning rate


@dataclass(frozen=True)
class BankRates:
    """Learning rate and weight decay of one term's bank; None takes those of all banks."""

    lr: float | None = None
    weight_decay: float | None = None


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
    banks: Sequence[BankRates] = (),
    momentum: float = 0.9,
    eps: float = 1e-8,
) -> Optimizers:
    """Groups "backbone", "head" and one for each term's bank; biases and norms are not decayed.

    The bank's group is "bank", or "bank_<term>" where several terms have one. A bank whose classes are sampled
    has a sparse gradient: "adamw" is then `torch.optim.SparseAdam` for it and "sgd" has no momentum, so that rows
    which were not looked at keep their values and their state; neither decays its weights.

    Args:
        embedder: whose backbone and head are trained.
        objective: whose class banks are trained.
        name: "adamw" or "sgd" (with Nesterov momentum).
        backbone_lr: peak learning rate of the backbone.
        head_lr: of the embedding head.
        bank_lr: of proxies and centers; the papers give them 10 to 100 times the backbone's.
        weight_decay: of backbone and head.
        bank_weight_decay: of proxies and centers.
        banks: what differs from term to term, one for each, or empty.
        momentum: of SGD.
        eps: of AdamW.
    """
    dense = [
        _group(part, module, lr, weight_decay if decayed else 0.0, decayed)
        for part, module, lr in (("backbone", embedder.backbone, backbone_lr), ("head", embedder.head, head_lr))
        for decayed in (True, False)
    ]
    sparse: list[dict[str, Any]] = []
    several = len(objective.banks()) > 1
    for n, (term, loss) in enumerate(zip(objective.names(), objective.losses(), strict=True)):
        rates = banks[n] if banks else BankRates()
        lr = bank_lr if rates.lr is None else rates.lr
        decay = bank_weight_decay if rates.weight_decay is None else rates.weight_decay
        group = _group(f"bank_{term}" if several else "bank", loss, lr, decay, True)
        (dense if loss.class_sampling is None else sparse).append(group)
    dense, sparse = ([group for group in groups if group["params"]] for groups in (dense, sparse))
    return Optimizers(_optimizers(name, dense, sparse, momentum, eps))


def _group(name: str, module: nn.Module, lr: float, decay: float, decayed: bool) -> dict[str, Any]:
    parameters = [p for p in module.parameters() if p.requires_grad and (p.ndim > 1) == decayed]
    return {"params": parameters, "name": name, "lr": lr, "peak_lr": lr, "weight_decay": decay}


def _optimizers(
    name: Literal["adamw", "sgd"], dense: list[Any], sparse: list[Any], momentum: float, eps: float
) -> list[Optimizer]:
    if name == "adamw":
        # Fused: one sweep over each parameter instead of ten.
        parts: list[Optimizer] = [AdamW(dense, eps=eps, fused=True)]
        return [*parts, SparseAdam(sparse, eps=eps)] if sparse else parts
    parts = [SGD(dense, momentum=momentum, nesterov=momentum > 0)]
    return [*parts, SGD([group | {"weight_decay": 0.0} for group in sparse])] if sparse else parts


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


def set_learning_rates(optimizer: Optimizers, factor: float) -> None:
    """Scales every group's peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def clip_gradients(embedder: nn.Module, objective: Objective, max_norm: float, world: World) -> Tensor:
    """Clips the norm of the whole gradient: the embedder's, equal on all ranks or in shards, and all ranks' banks.

    Returns:
        () float64 the norm before, the same on all ranks. Where it is not finite, a number of the gradient is not, on
        some rank; the gradient is then left as it is.

    Communication: one all-reduce of a scalar if there is a bank, and one if the embedder is in shards.
    """
    with_gradient = [p for p in embedder.parameters() if p.grad is not None]
    shared = [_values(p) for p in with_gradient]
    sharded = [_values(p) for p in objective.parameters() if p.grad is not None]
    square = sum_over_shards(torch.stack([g.double().square().sum() for g in shared]).sum(), with_gradient[0])
    if objective.banks():
        nothing = square.new_zeros(())
        local = torch.stack([nothing, *(g.double().square().sum() for g in sharded)]).sum()
        square = square + sum_over_ranks(local, world)
    norm = square.sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
    factor = torch.where(torch.isfinite(norm), factor, torch.ones_like(factor))
    for gradient in shared + sharded:
        gradient.mul_(factor.to(gradient.dtype))
    return norm


def _values(parameter: nn.Parameter) -> Tensor:
    """The numbers of a gradient, sharing its memory."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return held_here(gradient)
    parameter.grad = gradient.coalesce()
    values: Tensor = parameter.grad.values()
    return values
