"""A reusable pool of gloo processes: started once, it runs any importable function at W = 1 .. 4."""

from __future__ import annotations

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dmlscale.distributed.world import World

MOST_RANKS = 4
LONGEST_S = 240.0  # for the answer of a rank, on a machine that has much else to do
Task = Callable[..., Any]


class GlooPool:
    """``run(W, function, *args)`` calls ``function(world, *args)`` on ranks 0 .. W-1 and returns all results.

    After a run that did not end in order (a rank that died or hangs, a test that was stopped at its time limit) the
    processes are ended, and the next run has new ones: nothing of one run, such as an answer that nobody has read or
    a rank that still waits in a collective, can reach the next.
    """

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._start()

    def run(self, num_ranks: int, function: Task, *args: Any) -> list[Any]:
        """Results in rank order; the first rank's error is raised with its traceback."""
        task = pickle.dumps((num_ranks, function, args))  # plain: torch's own way shares each tensor by a file
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes[:num_ranks]:
                pipe.send_bytes(task)
            answers = [self._answer(rank) for rank in range(num_ranks)]
        except BaseException:  # also the one that ends a test that takes too long
            self._kill()
            raise
        for rank, (_, error) in enumerate(answers):
            if error is not None:
                raise RuntimeError(f"rank {rank} of {num_ranks}:\n{error}")
        return [result for result, _ in answers]

    def _answer(self, rank: int) -> tuple[Any, str | None]:
        # A rank that died would otherwise be waited for until the test's time limit.
        ready = wait([self._pipes[rank], self._processes[rank].sentinel], timeout=LONGEST_S)
        if self._pipes[rank] not in ready:
            raise RuntimeError(f"rank {rank} of the pool died or gave no answer in {LONGEST_S:.0f} s")
        try:
            message = self._pipes[rank].recv_bytes()
        except EOFError:  # the pipe of a process that died is ready too
            raise RuntimeError(f"rank {rank} of the pool died") from None
        answer: tuple[Any, str | None] = pickle.loads(message)
        return answer

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with suppress(OSError):  # it died since the last run
                pipe.send_bytes(pickle.dumps(None))
        for process in self._processes:
            process.join(10)
        self._kill()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # a rendezvous file serves one start only
        context = mp.get_context("spawn")
        for rank in range(MOST_RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._folder.name, theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes.append(ours)
            self._processes.append(process)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            process.join()
            pipe.close()
        self._pipes, self._processes = [], []
        self._folder.cleanup()


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = Path(folder) / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=MOST_RANKS)
    groups: dict[int, Any] = {n: dist.new_group(list(range(n))) for n in range(1, MOST_RANKS + 1)}
    while (message := pickle.loads(pipe.recv_bytes())) is not None:
        num_ranks, function, args = message
        torch.set_num_threads(1)  # each time: a training in here may have taken all cores
        try:
            world = World(rank, num_ranks, groups[num_ranks])
            answer = pickle.dumps((function(world, *args), None))
        except BaseException:  # `pytest.raises` where nothing is raised ends with one that is no `Exception`
            answer = pickle.dumps((None, traceback.format_exc()))
        pipe.send_bytes(answer)
    dist.destroy_process_group()
