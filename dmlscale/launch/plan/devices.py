"""What a device can do. Figures are the makers' data sheets; nothing of them was measured here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dmlscale.launch.errors import LaunchError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device of a node.

    Args:
        name: of the command line.
        memory: bytes.
        half_flops: floating-point operations a second in bf16, dense.
        full_flops: in float32, on plain units: losses use no TF32.
        bandwidth: bytes a second to and from memory.
        local_link: bytes a second that a device sends within its node, one direction.
        far_link: bytes a second that a device sends between nodes, one direction.
        latency_local: seconds of a message within a node.
        latency_far: seconds of a message between nodes.
        source: where the figures come from.
        overhead: bytes that libraries take.
    """

    name: str
    memory: float
    half_flops: float
    full_flops: float
    bandwidth: float
    local_link: float
    far_link: float
    latency_local: float
    latency_far: float
    source: str
    overhead: float

    @property
    def is_gpu(self) -> bool:
        """Whether it is one."""
        return self.name != "cpu"


def _gpu(name: str, memory: float, half: float, full: float, bandwidth: float, nvlink: float, source: str) -> Device:
    # A network card of 400 Gb/s for each GPU, as in NVIDIA's DGX H100 and H200; 200 Gb/s in the DGX A100.
    far = 25e9 if name == "a100" else 50e9
    return Device(name, memory, half, full, bandwidth, nvlink, far, 5e-6, 15e-6, source, overhead=1.5 * GIB)


_GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", 80e9, 989e12, 67e12, 3.35e12, 450e9, "NVIDIA H100 SXM data sheet (2023); DGX H100 for links"),
        _gpu("h200", 141e9, 989e12, 67e12, 4.8e12, 450e9, "NVIDIA H200 SXM data sheet (2024); DGX H200 for links"),
        _gpu("a100", 80e9, 312e12, 19.5e12, 2.039e12, 300e9, "NVIDIA A100 80GB SXM data sheet; DGX A100 for links"),
    )
}
NAMES = (*_GPUS, "cpu")
# What kernels and gloo keep beside tensors: fitted once to the runs of benchmarks/plan.py, where it is up to 32 MB.
_CPU_OVERHEAD = 10e6


def find_device(name: str, num_ranks: int) -> Device:
    """A device by its name; the CPU is this machine's, measured for a second and shared by all ranks.

    Raises:
        LaunchError: no such device.
    """
    if name == "cpu":
        return _this_cpu(num_ranks)
    if name not in _GPUS:
        raise LaunchError(f"--device {name}: known are {', '.join(NAMES)}")
    return _GPUS[name]


def _this_cpu(num_ranks: int) -> Device:
    """One thread of this machine, which takes its share of the memory; ranks beyond the cores share them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = min(1.0, len(os.sched_getaffinity(0)) / num_ranks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flops, bandwidth = _matrix_rate(), _copy_rate()
    finally:
        torch.set_num_threads(threads)
    return Device(
        "cpu",
        memory / num_ranks,
        half_flops=flops * share,
        full_flops=flops * share,
        bandwidth=bandwidth * share,
        local_link=1e9,
        far_link=1.25e9,
        latency_local=1e-4,
        latency_far=1e-4,
        source="one thread of this machine: a matrix product and a copy, measured; gloo over loopback 1 GB/s, assumed",
        overhead=_CPU_OVERHEAD,
    )


def _matrix_rate(size: int = 768) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _fastest(lambda: a @ b)


def _copy_rate(numbers: int = 2**24) -> float:
    source, target = torch.ones(numbers), torch.empty(numbers)
    return 2 * 4 * numbers / _fastest(lambda: target.copy_(source))


def _fastest(action: Callable[[], object], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()  # of one thread: other work on the machine disturbs it little
        action()
        times.append(time.process_time() - start)
    return min(times)
