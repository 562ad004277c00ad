"""Ranks under a watchdog, each a process of its own that does what a test asks."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dmlscale.distributed.beats import Limits
from dmlscale.distributed.heartbeats import Hub
from dmlscale.distributed.world import World
from dmlscale.launch.recovery.attempt import begin_attempt
from dmlscale.launch.recovery.watchdog import Watch

Behaviour = Callable[[Watch, World, Path], None]
FAR_STEP = 20


@dataclass
class Ranks:
    """Processes of one process group.

    Args:
        folder: of theirs.
        processes: in rank order.
    """

    folder: Path
    processes: list[BaseProcess] = field(default_factory=list)

    def exit_codes(self, ranks: list[int], *, within: float) -> list[int | None]:
        """Of these ranks, waited for together; None for one that still runs."""
        deadline = time.monotonic() + within
        for rank in ranks:
            self.processes[rank].join(max(0.0, deadline - time.monotonic()))
        return [self.processes[rank].exitcode for rank in ranks]

    def signal(self, rank: int, number: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait_for(self, name: str) -> None:
        """Until each rank has written ``<name>.<rank>``."""
        deadline = time.monotonic() + 60
        while not all((self.folder / f"{name}.{rank}").exists() for rank in range(len(self.processes))):
            assert time.monotonic() < deadline, f"not all ranks came to {name}"
            assert all(process.is_alive() for process in self.processes)
            time.sleep(0.01)

    def note(self, rank: int) -> dict[str, Any]:
        """What a rank's watchdog wrote."""
        found: dict[str, Any] = json.loads((self.folder / "attempts" / f"000001.rank_{rank}.json").read_text())
        return found

    def has_note(self, rank: int) -> bool:
        return (self.folder / "attempts" / f"000001.rank_{rank}.json").exists()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def here(folder: Path, name: str, world: World) -> None:
    """Tells the test that this rank came to a place."""
    (folder / f"{name}.{world.rank}").touch()


def steps_without_end(watch: Watch, world: World, folder: Path) -> None:
    """Collectives, one a step."""
    is_far = False
    for step in range(1_000_000):
        watch.at(step, "data")
        watch.at(step, "step")
        dist.all_reduce(torch.ones(1))
        if step >= FAR_STEP and not is_far and (world.rank or _heard_of_all(watch, world)):
            is_far = True
            here(folder, "training", world)
        time.sleep(0.002)


def _heard_of_all(watch: Watch, world: World) -> bool:
    """Whether rank 0 knows of all that they have come far."""
    beats = dict(watch._side._beats) if isinstance(watch._side, Hub) else {}
    return sum(beat.step >= FAR_STEP for beat in beats.values()) == world.num_ranks


@contextmanager
def ended_by_its_watch() -> Iterator[None]:
    """A collective that raises, since another rank has ended first, waits: its own watch must have time to end it."""
    try:
        yield
    except RuntimeError:
        time.sleep(60)
        raise


def start(folder: Path, num_ranks: int, behaviour: Behaviour, limits: Limits, *, restartable: bool = True) -> Ranks:
    """Starts ranks that do what ``behaviour`` says, which must be importable."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.launch.recovery.watched"])
    ranks = Ranks(folder)
    for rank in range(num_ranks):
        process = context.Process(target=serve, args=(rank, num_ranks, folder, behaviour, limits, restartable))
        process.start()
        ranks.processes.append(process)
    return ranks


def serve(rank: int, num_ranks: int, folder: Path, behaviour: Behaviour, limits: Limits, restartable: bool) -> None:
    torch.set_num_threads(1)
    if "MASTER_ADDR" not in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
    world = World.current()
    attempt = begin_attempt(folder / "attempts", world, torch.device("cpu"))

    def tell(line: str) -> None:
        with (folder / f"told.{rank}").open("a") as file:
            file.write(line + "\n")

    with Watch(attempt, world, torch.device("cpu"), limits, restartable=restartable, tell=tell) as watch:
        behaviour(watch, world, folder)


if __name__ == "__main__":
    number, total, place, timeout_s = sys.argv[1:]
    serve(int(number), int(total), Path(place), steps_without_end, Limits(float(timeout_s), 60), True)
