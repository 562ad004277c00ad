"""As many batches on every rank: for a model of which each pass is a collective."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dmlscale.data.types import Batch
from dmlscale.distributed.collectives import collective_device, max_over_ranks
from dmlscale.distributed.world import World

_MOST_AXES = 8  # of the samples of a batch


def equal_batches(batches: Iterator[Batch], world: World) -> Iterator[Batch]:
    """A rank's batches, and empty ones of the same form until the rank with most has had its last.

    How many there are need not be known before: samples that cannot be read may make a rank's batches fewer.

    Args:
        batches: of this rank, perhaps none.
        world: the ranks; all of them read to the end.

    Communication: per batch one all-reduce of 10 numbers.
    """
    while True:
        batch = next(batches, None)
        form = torch.zeros(2 + _MOST_AXES, dtype=torch.int64)  # is there one, number of axes, their lengths
        if batch is not None:
            shape = batch.images.shape[1:]
            form[: 2 + len(shape)] = torch.tensor([1, len(shape), *shape])
        is_left, num_axes, *shape_of_others = max_over_ranks(form.to(collective_device(world)), world).tolist()
        if not is_left:
            return
        if batch is None:
            none = torch.empty(0, dtype=torch.int64)
            batch = Batch(torch.empty(0, *shape_of_others[:num_axes]), none, none, {})
        yield batch
