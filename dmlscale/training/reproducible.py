"""Gradients with the same bits at any number of ranks.

Rounding depends on who adds what to whom, and training amplifies it: a run at three ranks leaves that at one after
some twenty steps. Three things keep them together: each canonical stream passes through the network by itself, so its
numbers do not know which rank it is on; the loss is computed in float64, so that what is rounded back to float32 does
not feel the order of its sums; and the streams' gradients are added exactly (distributed/exact_sum.py).

The price: smaller batches in the network and a gradient all-reduce of twice the size that does not overlap.
Ranks must have the same number of threads, which decides how a convolution adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dmlscale.distributed.collectives import sum_over_ranks
from dmlscale.distributed.exact_sum import exact_sum
from dmlscale.distributed.world import World
from dmlscale.training.passes import Forward, Part

LossOf = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
Pull = tuple[Tensor, Tensor]  # embeddings with their graph, gradient by them


def backward_by_stream(
    model: nn.Module, forward: Forward, parts: Sequence[Sequence[Part]], loss_of: LossOf, world: World
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the global batch, with the gradient of every parameter in its ``grad``.

    Args:
        model: not wrapped for data parallelism: its gradients are summed here.
        forward: images of a part -> embeddings.
        parts: of each stream this rank serves.
        loss_of: this rank's embeddings -> loss and terms.
        world: the ranks.

    Returns:
        () loss, and terms by name.

    Communication: that of the losses, one all-reduce of two scalars and one of the gradient in float64.
    """
    embeddings = [[forward(part) for part in stream] for stream in parts]
    loss, terms, upstream = loss_in_float64(embeddings, loss_of)
    add_exactly(model, (zip(e, g, strict=True) for e, g in zip(embeddings, upstream, strict=True)), world)
    return loss, terms


def loss_in_float64(
    embeddings: Sequence[Sequence[Tensor]], loss_of: LossOf
) -> tuple[Tensor, dict[str, Tensor], list[list[Tensor]]]:
    """Loss, terms, and the gradient by each part's embeddings; banks get theirs."""
    flat = [part for stream in embeddings for part in stream]
    leaf = torch.cat([part.detach() for part in flat]).double().requires_grad_()
    loss, terms = loss_of(leaf)
    loss.backward()
    assert leaf.grad is not None
    pieces = iter(leaf.grad.to(flat[0].dtype).split([len(part) for part in flat]))
    upstream = [[next(pieces) for _ in stream] for stream in embeddings]
    return loss.detach().float(), {name: value.float() for name, value in terms.items()}, upstream


def add_exactly(model: nn.Module, streams: Iterable[Iterable[Pull]], world: World) -> None:
    """Puts the gradient of the model's parameters, summed over all ranks' streams, into their ``grad``.

    Parts of one stream are added in their order, which is the same at any number of ranks; streams exactly.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = []
    for stream in streams:
        total: Tensor | None = None
        for embeddings, gradient in stream:
            found = torch.autograd.grad(embeddings, parameters, gradient, allow_unused=True, materialize_grads=True)
            piece = torch.cat([g.reshape(-1) for g in found])
            total = piece if total is None else total.add_(piece)
        assert total is not None
        flat.append(total)
    count = sum_over_ranks(torch.tensor(float(len(flat)), device=flat[0].device), world)
    summed = exact_sum(flat, int(count), world)
    for parameter, piece in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
        # In the parameter's own memory order: the fused optimizer walks both side by side.
        parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))
