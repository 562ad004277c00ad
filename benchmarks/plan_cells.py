"""Real steps for `benchmarks.plan`: peak memory, bytes sent and seconds of a rank, in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Every large piece of memory is mapped by itself and unmapped when it is freed, so resident memory is what is alive.
_MAP_LARGE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Cell:
    """A run to measure.

    Args:
        config: path.
        overrides: key=value each.
        shape: of a sample.
        num_classes: of the banks.
        steps: the first is not timed; memory is the highest of the others, bytes are those of the last.
    """

    config: str
    overrides: tuple[str, ...]
    shape: tuple[int, ...]
    num_classes: int
    steps: int = 3


@dataclass(frozen=True)
class Measured:
    """Of the rank that needed most.

    Args:
        peak: bytes resident above what the process held before it built anything.
        sent: bytes of the whole buffers by collective, in a step.
        seconds: CPU time of a step, the fastest: what others do on the machine disturbs it little, and waiting for
            other ranks is not in it.
    """

    peak: float
    sent: dict[str, int]
    seconds: float


def measure(cell: Cell, num_ranks: int) -> Measured:
    """Runs the cell on gloo ranks of one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plan_cells", json.dumps(asdict(cell))],
            env=os.environ | _MAP_LARGE | shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{cell}: a rank failed")
    ranks = [json.loads(text.splitlines()[-1]) for text in texts]
    return Measured(
        peak=max(rank["peak"] for rank in ranks),
        sent=max((rank["sent"] for rank in ranks), key=lambda sent: sum(sent.values())),
        seconds=max(rank["seconds"] for rank in ranks),
    )


def _rank(cell: Cell) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from benchmarks.plan_counting import counted_bytes
    from dmlscale.config.load import load_config
    from dmlscale.distributed.world import World
    from dmlscale.launch import build
    from dmlscale.training.step import train_step

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world, device = World.current(), torch.device("cpu")
    config = load_config(cell.config, [*cell.overrides, f"resources.workers={world.num_ranks}"])
    _warm_up(world)
    before = _status("VmRSS")
    embedder = build.build_embedder(config)
    objective = build.build_objective(config, cell.num_classes, world)
    trainee = build.build_trainee(config, embedder, objective, world, device)
    trainee.model.train()
    batch = local_batch(world, config, cell)
    train_step(trainee, batch, 0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    times = []
    for step in range(1, cell.steps):
        start = time.process_time()
        with counted_bytes() as found:
            train_step(trainee, batch, step)
        times.append(time.process_time() - start)
    peak = _status("VmHWM") - before
    dist.barrier()
    dist.destroy_process_group()
    return {"peak": peak, "sent": found, "seconds": min(times)}


def local_batch(world: Any, config: Any, cell: Cell) -> Any:
    """A rank's samples: numbers at random, classes spread over the banks."""
    import torch

    from dmlscale.data.types import Batch

    d = config.data
    total = d.classes_per_batch * d.samples_per_class
    each = total // d.num_streams
    labels = torch.arange(total) // d.samples_per_class * max(1, cell.num_classes // d.classes_per_batch)
    streams = range(world.rank, d.num_streams, world.num_ranks)
    rows = torch.cat([torch.arange(s * each, (s + 1) * each) for s in streams])
    images = torch.randn(len(rows), *cell.shape)
    return Batch(images, labels[rows], rows, dict.fromkeys(streams, each))


def _warm_up(world: Any) -> None:
    """Loads what any step loads: kernels, libraries, buffers of gloo."""
    import torch

    from dmlscale.distributed.global_loss import GlobalLoss

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(288, 8)
    )
    for name in ("norm_softmax", "triplet", "proxy_anchor"):
        loss = GlobalLoss(name, num_classes=8, embedding_dim=8)
        optimizer = torch.optim.AdamW([*net.parameters(), *loss.parameters()], fused=True)
        loss(net(torch.randn(8, 3, 8, 8)), torch.arange(8) // 2).backward()
        optimizer.step()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main(arguments: Sequence[str]) -> None:
    """One rank; prints its figures."""
    values = json.loads(arguments[0])
    cell = Cell(**values | {"overrides": tuple(values["overrides"]), "shape": tuple(values["shape"])})
    print(json.dumps(_rank(cell)))


if __name__ == "__main__":
    main(sys.argv[1:])
