"""Steps whose loss or gradient is not finite: how they are found, undone and described.

A step is looked at before the optimizer's. What the forward pass has moved by then (running statistics, cross-batch
memories) goes back to where it was, so a skipped step leaves nothing behind: the run is the one that never had it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from dmlscale.data.types import Batch
from dmlscale.distributed import collectives
from dmlscale.distributed.fully_sharded import held_here, is_cut
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective


class NotFiniteError(ArithmeticError):
    """The loss or a gradient of a step is not finite; on all ranks alike, and only gradients have changed.

    Args:
        loss: () of the global batch.
        terms: of the loss, () each by name.
        embeddings: (b, d) of this rank's samples, in the order of its batch.
    """

    def __init__(self, loss: Tensor, terms: dict[str, Tensor], embeddings: Tensor) -> None:
        super().__init__("the loss or a gradient is not finite: the step was not made")
        self.loss, self.terms, self.embeddings = loss, terms, embeddings


class KeptBuffers:
    """Copies of a model's buffers, for a step that has to be undone.

    Args:
        model: on its device; its buffers are filled in place from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        by_kind: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in model.buffers():
            by_kind[buffer.dtype].append(buffer)
        # One copy for all of a kind: a copy for each of a hundred norms would take as long to ask for as a layer.
        self._pairs = [(buffers, [torch.empty_like(b) for b in buffers]) for buffers in by_kind.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Takes the buffers as they are now."""
        for buffers, copies in self._pairs:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def bring_back(self) -> None:
        """Makes the buffers what they were when they were kept."""
        for buffers, copies in self._pairs:
            torch._foreach_copy_(buffers, copies)


def is_finite(loss: Tensor, model: nn.Module, objective: Objective, world: World) -> bool:
    """Whether the loss and all ranks' gradients are finite; the same on every rank.

    Args:
        loss: () of the global batch, the same on every rank.
        model: its gradients are summed over ranks, or in shards.
        objective: each rank has the gradients of its part of the banks.
        world: the ranks.

    Communication: an all-reduce of a scalar, if there are banks or shards; else all ranks have the same numbers. The
    result is fetched from the device.
    """
    gradients = [_values(p) for p in (*model.parameters(), *objective.parameters()) if p.grad is not None]
    differ = bool(objective.banks()) or any(is_cut(p) for p in model.parameters())
    asked = world if differ else World()
    # One quick pass. A norm may overflow where no number does, so what looks broken is looked at again.
    norms = torch._foreach_norm([g for g in gradients if g.numel()])
    if not _on_any_rank(~torch.isfinite(torch.stack([loss.float(), *(n.float() for n in norms)])).all(), asked):
        return True
    broken = torch.stack([_broken(numbers) for numbers in (loss, *gradients)]).any()
    return not _on_any_rank(broken, asked)


@dataclass(frozen=True)
class SkippedStep:
    """What is known of a step that was not made; the same on all ranks.

    Args:
        step: its number, from 1 on.
        epoch: of its batch, or the round with offline mining.
        step_of_epoch: of its batch.
        loss: of the global batch.
        terms: of the loss by name, if there are several.
        gradients: names of the parameters whose gradient is not finite on some rank.
        parameters: names of those that are themselves not finite, so that no later step can be.
        ids: (B,) int64 row in the index of each sample of the global batch, rank after rank.
        ranks: (B,) int64 which rank had it.
        broken_inputs: (B,) bool whether its input is not finite.
        broken_embeddings: (B,) bool whether its embedding is not finite; with batch normalisation by local statistics
            one broken sample breaks those of its whole rank.
    """

    step: int
    epoch: int
    step_of_epoch: int
    loss: float
    terms: dict[str, float]
    gradients: tuple[str, ...]
    parameters: tuple[str, ...]
    ids: Tensor
    ranks: Tensor
    broken_inputs: Tensor
    broken_embeddings: Tensor


def describe(
    error: NotFiniteError,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    place: tuple[int, int, int],
    world: World,
) -> SkippedStep:
    """Finds out what is not finite in a step; all ranks call this together.

    Args:
        error: of the step.
        model: still with the gradients of the step.
        objective: so too.
        batch: of this rank.
        place: number of the step from 1 on, epoch and step in the epoch.
        world: the ranks.

    Communication: two all-gathers of a few numbers for each sample, one all-reduce of two for each parameter.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    named = {f"model.{name}": p for name, p in inner.named_parameters()}
    named |= {f"objective.{name}": p for name, p in objective.named_parameters()}
    broken = torch.stack([_broken(held_here(p)) for p in named.values()] + list(map(_broken_gradient, named.values())))
    broken = collectives.max_over_ranks(broken.float(), world).bool().cpu()
    flags = [_broken_rows(rows).long() for rows in (batch.images, error.embeddings)]
    local = torch.stack([batch.ids, torch.full_like(batch.ids, world.rank), *flags], 1)
    sizes = collectives.gather_sizes(len(local), world, local.device)
    rows, ranks, inputs, embeddings = collectives.gather_rows(local, sizes, world).cpu().unbind(1)
    return SkippedStep(
        *place,
        loss=float(error.loss),
        terms={name: float(value) for name, value in error.terms.items()},
        gradients=tuple(compress(named, broken[len(named) :])),
        parameters=tuple(compress(named, broken[: len(named)])),
        ids=rows,
        ranks=ranks,
        broken_inputs=inputs.bool(),
        broken_embeddings=embeddings.bool(),
    )


def _on_any_rank(flag: Tensor, world: World) -> bool:
    return bool(collectives.max_over_ranks(flag.float(), world))


def _values(parameter: nn.Parameter) -> Tensor:
    """The numbers of its gradient that this rank holds."""
    gradient = parameter.grad
    assert gradient is not None
    # Uncoalesced, two infinities may lie in one place; both are seen.
    return gradient._values() if gradient.is_sparse else held_here(gradient)


def _broken_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros((), dtype=torch.bool, device=parameter.device)
    return _broken(_values(parameter))


def _broken(numbers: Tensor) -> Tensor:
    return ~torch.isfinite(numbers).all()


def _broken_rows(rows: Tensor) -> Tensor:
    """(n, ...) -> (n,) whether any number of a row is not finite."""
    return ~torch.isfinite(rows).flatten(1).all(1) if rows.numel() else rows.new_zeros(len(rows), dtype=torch.bool)
