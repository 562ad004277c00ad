"""Data parallelism that sums: the one place where gradients of the backbone meet."""

# No `from __future__ import annotations` here: DDP checks the annotations of a communication hook at run time.
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dmlscale.distributed.by_node import sum_by_node
from dmlscale.distributed.node_groups import NodeGroups
from dmlscale.distributed.world import World

# torch 2.15 renamed the option.
_NEW_NAME = "forward_sync_buffers"
_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
_BUFFER_SYNC = _NEW_NAME if _NEW_NAME in _OPTIONS else "broadcast_buffers"


def data_parallel(model: nn.Module, world: World, by_node: bool = False, node: str | None = None) -> nn.Module:
    """The model, its gradients summed over ranks.

    The loss is one global scalar and each rank's backward pass holds its own part of that scalar's gradient, so the
    parts are summed, not averaged as torch's DDP does by itself.

    Args:
        model: on its device; every rank has the same.
        world: the ranks.
        by_node: sum within each node first, then between nodes, which sends less over the links between them.
        node: see `NodeGroups.of`.

    Communication: one sum of each gradient bucket per backward pass, overlapped with it: an all-reduce, or by node
    that of `sum_by_node`.
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
    groups = NodeGroups.of(world, node) if by_node else None
    if groups is not None and groups.useful:
        wrapped.register_comm_hook(_SumsByNode(groups.again(world), device), _summed_by_node)
    else:
        wrapped.register_comm_hook(world.group, _summed)
    return wrapped


def _summed(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


class _SumsByNode:
    """Sums of buckets that go on beside the backward pass, one after the other in the order they were asked for."""

    def __init__(self, groups: NodeGroups, device: torch.device) -> None:
        self._groups = groups
        # On a GPU a collective only waits in its stream. On the CPU it waits in its thread: three in a row need one.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "sums_by_node") if self._stream is None else None

    def start(self, tensor: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """Sums a tensor in place; the future's value is that tensor."""
        result: torch.futures.Future[torch.Tensor]
        if self._thread is not None:
            result = torch.futures.Future()
            self._thread.submit(self._sum, tensor, result)
            return result
        assert self._stream is not None
        result = torch.futures.Future(devices=[tensor.device])
        self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._stream):
            self._sum(tensor, result)
        return result

    def _sum(self, tensor: torch.Tensor, result: torch.futures.Future[torch.Tensor]) -> None:
        try:
            sum_by_node(tensor, self._groups)
        except Exception as error:
            result.set_exception(error)  # type: ignore[arg-type]  # torch declares a value here, and takes an error
        else:
            result.set_result(tensor)


def _summed_by_node(sums: _SumsByNode, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    return sums.start(bucket.buffer())


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
