"""How fast the links of a ring of processes are, one at a time, and whether a sum over all of them is right.

Needs torch alone, so that it can be sent to a machine as it is.
"""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

_PINGS = 20
_FIRST_BYTES = 2**20
_MOST_BYTES = 2**26
_SECONDS = 0.2  # that a link is measured for, so that a slow one takes no minutes
_ROUNDS = 3


def measure_ring(
    rank: int, num_ranks: int, address: str, backend: str, seconds: float, device: str = "cpu"
) -> dict[str, float]:
    """Joins a process group, measures as `measure_links`, and leaves it. There must be no group yet.

    Args:
        rank: of this process.
        num_ranks: of the ring, at least 2.
        address: of rank 0, "host:port"; the port is free there.
        backend: "gloo" or "nccl".
        seconds: after which an operation that waits for another rank is given up.
        device: "cpu", or "cuda:0" with nccl.

    Raises:
        RuntimeError: another rank was not reached in time, or a sum is wrong.
    """
    dist.init_process_group(
        backend, init_method=f"tcp://{address}", rank=rank, world_size=num_ranks, timeout=timedelta(seconds=seconds)
    )
    try:
        return measure_links(rank, num_ranks, torch.device(device))
    finally:
        dist.destroy_process_group()


def measure_links(
    rank: int, num_ranks: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> dict[str, float]:
    """Measures the link from each rank to the next, that of the last to rank 0, and the sum over all.

    No two links are used at the same time: a rank sends once it has received.

    Args:
        rank: of this process.
        num_ranks: of the group, at least 2.
        device: of what is sent.
        group: None is the default one.

    Returns:
        latency_s: half the time of a message to the next rank and back. bytes_per_s: of the link to it.
        sum_bytes_per_s: bytes of a tensor by the time that its sum over all ranks takes.

    Raises:
        RuntimeError: a sum is wrong.
    """
    link = _Link(rank, num_ranks, device, group)
    link.sum_of(_FIRST_BYTES)  # the first one connects all ranks
    if rank == 0:
        sent = link.send()
        link.receive()
    else:
        link.receive()
        sent = link.send()
    size = min(_MOST_BYTES, max(_FIRST_BYTES, int(link.slowest(sent["bytes_per_s"]) * _SECONDS)))
    return {**sent, "sum_bytes_per_s": size / link.sum_of(size)}


class _Link:
    """One rank's ends of the links before and after it."""

    def __init__(self, rank: int, num_ranks: int, device: torch.device, group: dist.ProcessGroup | None) -> None:
        self._rank, self._num_ranks, self._device, self._group = rank, num_ranks, device, group
        self._before, self._after = (rank - 1) % num_ranks, (rank + 1) % num_ranks

    def send(self) -> dict[str, float]:
        """Measures the link to the next rank."""
        ping = torch.zeros(1, device=self._device)
        self._receive(ping, self._after)  # it is ready
        started = time.perf_counter()
        for _ in range(_PINGS):
            self._there_and_back(ping)
        latency = (time.perf_counter() - started) / _PINGS / 2
        speed, size = 0.0, _FIRST_BYTES
        for _ in range(_ROUNDS):
            self._send(torch.tensor([size], device=self._device), self._after)
            payload = torch.zeros(size, dtype=torch.uint8, device=self._device)
            started = time.perf_counter()
            self._send(payload, self._after)
            self._receive(ping, self._after)
            self._finish()
            speed = max(speed, size / (time.perf_counter() - started))
            size = min(_MOST_BYTES, max(_FIRST_BYTES, int(speed * _SECONDS)))
        return {"latency_s": latency, "bytes_per_s": speed}

    def receive(self) -> None:
        """The other end of `send`."""
        ping = torch.zeros(1, device=self._device)
        self._send(ping, self._before)
        for _ in range(_PINGS):
            self._receive(ping, self._before)
            self._send(ping, self._before)
        for _ in range(_ROUNDS):
            size = torch.zeros(1, dtype=torch.int64, device=self._device)
            self._receive(size, self._before)
            self._receive(torch.empty(int(size), dtype=torch.uint8, device=self._device), self._before)
            self._send(ping, self._before)
        self._finish()

    def sum_of(self, size: int) -> float:
        """Seconds that adding up a tensor of ``size`` bytes takes; checks what comes out."""
        values = torch.full((size // 4,), float(self._rank + 1), device=self._device)
        dist.barrier(self._group)
        started = time.perf_counter()
        dist.all_reduce(values, group=self._group)
        self._finish()
        seconds = time.perf_counter() - started
        expected = self._num_ranks * (self._num_ranks + 1) / 2
        if not bool((values == expected).all()):
            raise RuntimeError(f"a sum over all ranks is {values[0].item()} where it should be {expected}")
        return seconds

    def slowest(self, speed: float) -> float:
        """The smallest of all ranks' speeds."""
        value = torch.tensor(speed, dtype=torch.float64, device=self._device)
        dist.all_reduce(value, dist.ReduceOp.MIN, group=self._group)
        return float(value)

    def _there_and_back(self, ping: torch.Tensor) -> None:
        self._send(ping, self._after)
        self._receive(ping, self._after)
        self._finish()

    def _send(self, tensor: torch.Tensor, rank: int) -> None:
        dist.send(tensor, group=self._group, group_dst=rank)

    def _receive(self, tensor: torch.Tensor, rank: int) -> None:
        dist.recv(tensor, group=self._group, group_src=rank)

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
