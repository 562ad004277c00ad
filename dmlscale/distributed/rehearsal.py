"""Ranks that are not there: one process learns what a step sends before any worker is started."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dmlscale.distributed.world import World

Collective = Literal["all_gather", "reduce_scatter", "all_reduce"]


class Call(NamedTuple):
    """One collective.

    Args:
        collective: which.
        shape: of the rank's own part of an all-gather or a reduce-scatter; of the whole tensor of an all-reduce.
        dtype: of its elements.
    """

    collective: Collective
    shape: tuple[int, ...]
    dtype: torch.dtype


class RehearsalGroup(dist.ProcessGroup):
    """A process group of which this process is rank 0, and all others would do exactly what it does.

    So a gather repeats this rank's rows, a sum multiplies, and a maximum is this rank's own. Every collective of
    `dmlscale.distributed.collectives` is noted in `calls`; others fail.

    Args:
        num_ranks: how many there seem to be.
    """

    def __init__(self, num_ranks: int) -> None:
        super().__init__(0, num_ranks)
        self.calls: list[Call] = []
        self._num_ranks = num_ranks

    @property
    def world(self) -> World:
        """This rank in the group."""
        return World(0, self._num_ranks, self)

    def allreduce(  # type: ignore[override]  # torch's stub has three overloads; torch itself calls this one
        self, tensors: list[Tensor], options: Any = None
    ) -> _Done:
        """A sum or an extreme over ranks that all hold the same."""
        self._note("all_reduce", tensors[0])
        if options is None or options.reduceOp == dist.ReduceOp.SUM:
            tensors[0].mul_(self._num_ranks)
        return _Done()

    def all_gather_single(self, output: Tensor, mine: Tensor, options: Any = None) -> _Done:
        """The same rows from every rank."""
        self._note("all_gather", mine)
        output.view(self._num_ranks, -1).copy_(mine.reshape(1, -1).expand(self._num_ranks, -1))
        return _Done()

    def reduce_scatter_single(self, mine: Tensor, whole: Tensor, options: Any = None) -> _Done:
        """What every rank has for this one, summed."""
        self._note("reduce_scatter", mine)
        mine.copy_(whole[: len(mine)]).mul_(self._num_ranks)
        return _Done()

    # The names before torch 2.15.
    _allgather_base = all_gather_single  # type: ignore[assignment]  # the stub names the arguments otherwise
    _reduce_scatter_base = reduce_scatter_single  # type: ignore[assignment]  # the same

    def _note(self, collective: Collective, tensor: Tensor) -> None:
        self.calls.append(Call(collective, tuple(tensor.shape), tensor.dtype))


class _Done(dist.Work):
    """A collective that has nothing to wait for."""

    def wait(self, timeout: Any = None) -> bool:
        """At once."""
        return True


def rehearse_with(module: torch.nn.Module, world: World) -> None:
    """Puts a `GlobalLoss` or an objective that was made for one rank into another world.

    Its bank then holds all the classes that this rank would hold of a bank ``world.num_ranks`` times as large.
    """
    for part in module.modules():
        if isinstance(getattr(part, "world", None), World):
            part.world = world  # type: ignore[assignment]  # nn.Module declares its attributes as tensors or modules
