"""A reusable pool of gloo processes: started once, it runs any importable function at W = 1 .. 4."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dmlscale.distributed.world import World

MOST_RANKS = 4
Task = Callable[..., Any]


class GlooPool:
    """``run(W, function, *args)`` calls ``function(world, *args)`` on ranks 0 .. W-1 and returns all results."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(MOST_RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._folder.name, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, num_ranks: int, function: Task, *args: Any) -> list[Any]:
        """Results in rank order; the first rank's error is raised with its traceback."""
        task = pickle.dumps((num_ranks, function, args))  # plain: torch's own way shares each tensor by a file
        for pipe in self._pipes[:num_ranks]:
            pipe.send_bytes(task)
        answers = [self._answer(rank) for rank in range(num_ranks)]
        for rank, (_, error) in enumerate(answers):
            if error is not None:
                raise RuntimeError(f"rank {rank} of {num_ranks}:\n{error}")
        return [result for result, _ in answers]

    def _answer(self, rank: int) -> tuple[Any, str | None]:
        # A rank that died would otherwise be waited for until the test's time limit.
        ready = wait([self._pipes[rank], self._processes[rank].sentinel], timeout=120)
        if self._pipes[rank] not in ready:
            raise RuntimeError(f"rank {rank} of the pool died or gave no answer in 120 s")
        answer: tuple[Any, str | None] = pickle.loads(self._pipes[rank].recv_bytes())
        return answer

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(10)
        self._folder.cleanup()


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = Path(folder) / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=MOST_RANKS)
    groups: dict[int, Any] = {n: dist.new_group(list(range(n))) for n in range(1, MOST_RANKS + 1)}
    while (message := pickle.loads(pipe.recv_bytes())) is not None:
        num_ranks, function, args = message
        try:
            world = World(rank, num_ranks, groups[num_ranks])
            answer = pickle.dumps((function(world, *args), None))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        pipe.send_bytes(answer)
    dist.destroy_process_group()
