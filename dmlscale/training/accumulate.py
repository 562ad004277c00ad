"""Two passes: a global batch larger than the memory that its activations would take.

The first pass embeds the batch part by part and keeps the embeddings alone. The loss, with all its collectives, runs
once on all of them. The second pass embeds each part again and pulls the gradient back through it. The gradient is that
of one pass, for a second forward pass as the price. (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", GradCache.)

Layers that look at the whole batch (batch normalisation with local statistics) see the parts instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from dmlscale.distributed.collectives import max_over_ranks
from dmlscale.distributed.fully_sharded import needs_all_ranks
from dmlscale.distributed.world import World
from dmlscale.models.checkpointing import buffers_kept
from dmlscale.training.passes import Forward, Part
from dmlscale.training.reproducible import LossOf, Pull, add_exactly, loss_in_float64


def backward_in_two_passes(
    model: nn.Module,
    forward: Forward,
    parts: Sequence[Sequence[Part]],
    loss_of: LossOf,
    world: World,
    *,
    reproducible: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the global batch, with the gradient of every parameter in its ``grad``.

    Args:
        model: wrapped for data parallelism, unless ``reproducible``.
        forward: images of a part -> embeddings; the same for the same part, also with dropout.
        parts: of each stream this rank serves, or of its whole batch.
        loss_of: this rank's embeddings -> loss and terms.
        world: the ranks; they may have different numbers of parts.
        reproducible: the same bits at any number of ranks; see `reproducible`.

    Returns:
        () loss, and terms by name.

    Communication: that of the losses once; gradients of the model once, after the last part. Of a model in shards
    both passes of each part fetch it, and its gradients are summed after each part: kept until the last one, they
    would be whole on every rank. Where passes are collectives (`needs_all_ranks`), ranks with fewer parts add empty
    ones.
    """
    if needs_all_ranks(model):
        parts = [_as_many_everywhere([part for group in parts for part in group], world)]
    with torch.no_grad(), buffers_kept(model):
        embeddings = [[forward(part) for part in group] for group in parts]
    if reproducible:
        loss, terms, upstream = loss_in_float64(embeddings, loss_of)
        add_exactly(model, _second_pass(forward, parts, upstream), world)
        return loss, terms
    flat = [part for group in embeddings for part in group]
    leaf = torch.cat(flat)
    leaf = (leaf.float() if leaf.dtype in (torch.float16, torch.bfloat16) else leaf).requires_grad_()
    loss, terms = loss_of(leaf)
    loss.backward()
    assert leaf.grad is not None
    pieces = leaf.grad.split([len(part) for part in flat])
    last = len(flat) - 1
    for n, (part, gradient) in enumerate(zip((p for group in parts for p in group), pieces, strict=True)):
        with nullcontext() if n == last else _not_yet(model):
            again = forward(part)
            again.backward(gradient.to(again.dtype))
    return loss, terms


def _second_pass(
    forward: Forward, parts: Sequence[Sequence[Part]], upstream: Sequence[Sequence[Tensor]]
) -> Iterator[Iterator[Pull]]:
    for group, gradients in zip(parts, upstream, strict=True):
        yield ((forward(part), gradient) for part, gradient in zip(group, gradients, strict=True))


@contextmanager
def _not_yet(model: nn.Module) -> Iterator[None]:
    """Gradients stay on this rank, to be summed with those of the last part."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def _as_many_everywhere(parts: Sequence[Part], world: World) -> list[Part]:
    """The parts, and empty ones where other ranks have more."""
    last = parts[-1]
    most = max_over_ranks(torch.tensor(len(parts), device=last.images.device), world)
    return [*parts, *[last._replace(images=last.images[:0])] * (int(most) - len(parts))]
