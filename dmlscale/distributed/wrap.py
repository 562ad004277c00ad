"""Data parallelism that sums: the one place where gradients of the backbone meet."""

# No `from __future__ import annotations` here: DDP checks the annotations of a communication hook at run time.
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dmlscale.distributed.world import World

# torch 2.15 renamed the option.
_NEW_NAME = "forward_sync_buffers"
_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
_BUFFER_SYNC = _NEW_NAME if _NEW_NAME in _OPTIONS else "broadcast_buffers"


def data_parallel(model: nn.Module, world: World) -> nn.Module:
    """The model, its gradients summed over ranks.

    The loss is one global scalar and each rank's backward pass holds its own part of that scalar's gradient, so the
    parts are summed, not averaged as torch's DDP does by itself.

    Communication: one all-reduce of each gradient bucket per backward pass, overlapped with it.
    """
    if world.num_ranks == 1:
        return model
    device = next(model.parameters()).device
    # Running statistics are brought together when they are needed (`average_buffers`), not before every step.
    options: dict[str, Any] = {_BUFFER_SYNC: False}
    wrapped = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        process_group=world.group,
        gradient_as_bucket_view=True,
        **options,
    )
    wrapped.register_comm_hook(world.group, _summed)
    return wrapped


def _summed(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


@torch.no_grad()
def average_buffers(model: nn.Module, world: World) -> None:
    """Makes floating-point buffers (running statistics) the same on all ranks; does nothing for one rank."""
    if world.num_ranks == 1:
        return
    for module in model.modules():
        # A frozen module is the same everywhere already, and an average would round it.
        for buffer in module.buffers(recurse=False) if module.training else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer, group=world.group)
                buffer /= world.num_ranks
