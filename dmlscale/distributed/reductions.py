"""Small steps that pair and class blocks share."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.world import World
from dmlscale.losses.block import LOG_OF_NOTHING


def complete_log(shift: Tensor, total: Tensor) -> Tensor:
    """``log(total) + shift``; `LOG_OF_NOTHING` where the total is zero."""
    return torch.where(total == 0, LOG_OF_NOTHING, total.log() + shift)


def counts(values: Tensor, labels: Tensor) -> Tensor:
    """How often each of ``values`` occurs in ``labels``, which is sorted."""
    return torch.searchsorted(labels, values, right=True) - torch.searchsorted(labels, values)


def mean(vector: Tensor, where: Tensor | None, world: World) -> Tensor:
    """Mean over the entries of all ranks, or those where the mask is True -> (); 0 if there are none."""
    if where is not None:
        # Multiplying would turn the infinity of an entry that does not count into nan.
        vector, counted = torch.where(where, vector, 0.0), where.sum()
    else:
        counted = torch.tensor(len(vector), device=vector.device)
    packed = torch.stack([vector.sum(), counted.to(vector.dtype)])
    total, count = collectives.sum_over_ranks(packed, world)
    return total / count.detach().clamp_min(1)
