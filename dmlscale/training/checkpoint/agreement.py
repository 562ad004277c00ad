"""Ranks that fail together: where one alone raised an error, the others would wait for it without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dmlscale.distributed.collectives import collective_device, gather_rows, gather_sizes, max_over_ranks
from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError

Result = TypeVar("Result")


def gather_texts(text: str, world: World) -> list[str]:
    """What each rank says, in rank order, the same on all of them.

    Communication: all-gather of one integer and, unless all are silent, of the longest text W times.
    """
    said = _as_tensor(text, world)
    sizes = gather_sizes(len(said), world, said.device)
    if not any(sizes):
        return [""] * world.num_ranks
    return [_as_text(part) for part in gather_rows(said, sizes, world).split(sizes)]


def text_of_rank_0(text: str, world: World) -> str:
    """What rank 0 says, on every rank; it may be long.

    Communication: all-gather of one integer, all-reduce of the text.
    """
    said = _as_tensor(text if world.rank == 0 else "", world)
    length = gather_sizes(len(said), world, said.device)[0]
    return _as_text(max_over_ranks(said if world.rank == 0 else said.new_zeros(length), world))


def _as_tensor(text: str, world: World) -> Tensor:
    # Names of files that are no UTF-8 have surrogates in them.
    content = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).copy()
    return torch.from_numpy(content).to(collective_device(world))


def _as_text(said: Tensor) -> str:
    return said.cpu().numpy().tobytes().decode(errors="surrogatepass")


def together(do: Callable[[], Result], world: World) -> Result:
    """What ``do`` returns on this rank, if it returns on all of them.

    Raises:
        CheckpointError: it raised one, or an OSError, on some rank: that of the lowest such rank, on all ranks.
    """
    results: list[Result] = []
    failure = ""
    try:
        results.append(do())
    except (CheckpointError, OSError) as error:
        failure = str(error) or type(error).__name__
    for said in gather_texts(failure, world):
        if said:
            raise CheckpointError(said)
    (result,) = results  # it has failed nowhere
    return result
