"""Gradients with the same bits at any number of ranks.

Rounding depends on who adds what to whom, and training amplifies it: a run at three ranks leaves that at one after
some twenty steps. Three things keep them together: each canonical stream passes through the network by itself, so its
numbers do not know which rank it is on; the loss is computed in float64, so that what is rounded back to float32 does
not feel the order of its sums; and the streams' gradients are added exactly (distributed/exact_sum.py).

The price: smaller batches in the network and a gradient all-reduce of twice the size that does not overlap.
Ranks must have the same number of threads, which decides how a convolution adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmlscale.distributed.collectives import sum_over_ranks
from dmlscale.distributed.exact_sum import exact_sum
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective


def backward_by_stream(
    model: nn.Module, objective: Objective, embeddings: Sequence[Tensor], labels: Tensor, world: World
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the global batch, with the gradient of every parameter in its ``grad``.

    Args:
        model: not wrapped for data parallelism: its gradients are summed here.
        objective: the losses.
        embeddings: (b_s, d) of each stream this rank serves.
        labels: (b,) of all of them, in the same order.
        world: the ranks.

    Returns:
        () loss, and terms by name.

    Communication: that of the losses, one all-reduce of two scalars and one of the gradient in float64.
    """
    leaf = torch.cat([part.detach() for part in embeddings]).double().requires_grad_()
    loss, terms = objective(leaf, labels)
    loss.backward()
    assert leaf.grad is not None
    upstream = leaf.grad.to(embeddings[0].dtype).split([len(part) for part in embeddings])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = []
    for part, gradient in zip(embeddings, upstream, strict=True):
        found = torch.autograd.grad(part, parameters, gradient, allow_unused=True, materialize_grads=True)
        flat.append(torch.cat([g.reshape(-1) for g in found]))
    count = sum_over_ranks(torch.tensor(float(len(flat)), device=loss.device), world)
    total = exact_sum(flat, int(count), world)
    for parameter, piece in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        # In the parameter's own memory order: the fused optimizer walks both side by side.
        parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))
    return loss.detach().float(), {name: value.float() for name, value in terms.items()}
