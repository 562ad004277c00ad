"""Two ranks that do nothing but write checkpoints, killed at random moments again and again.

python -m tests.training.checkpoint.killed_writers FOLDER KILLS SEED

A process of its own, so that the ranks can be forked from it with all packages imported. Prints how many partial
checkpoints the kills have left. Ends with an error where a start does not find what it must.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.fetching import forget_others
from dmlscale.training.checkpoint.folder import step_of
from dmlscale.training.checkpoint.store import LocalStore
from tests.training.checkpoint.savers import record_of, saver_in, tensors_of

RANKS, KEEP = 2, 2
BEGUN, COMPLETE, WRONG = b"b", b"c", b"w"


def write_until_killed(rank: int, folder: Path, attempt: int, rendezvous: Path, told: int) -> None:
    """What a rank does; ``told`` is a pipe that takes the steps whose checkpoints are begun and complete."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    world = World.current()

    def tell(kind: bytes, step: int) -> None:
        os.write(told, kind + struct.pack("q", step))

    newest = checkpoint.newest_for_all(folder, world, print)
    assert newest is not None
    step = step_of(newest) or 0
    if rank == 0:
        forget_others(LocalStore(folder), newest.name)
        assert len(os.listdir(folder)) == len(checkpoint.list_checkpoints(folder)), "partial ones were not removed"
    dist.barrier()
    saver = saver_in(
        folder, world, keep=KEEP, attempt=attempt, on_saved=lambda saved: tell(COMPLETE, saved.record.step)
    )
    while True:
        step += 1
        assert saver.settle() is None
        if rank == 0:
            tell(BEGUN, step)
        saver.save(tensors_of(step, 2000), record_of(step, world))


def start(folder: Path, attempt: int, told: int) -> list[int]:
    """Forks the ranks."""
    rendezvous, ranks = folder.parent / f"rendezvous-{attempt}", []
    for rank in range(RANKS):
        process = os.fork()
        if process == 0:
            try:
                write_until_killed(rank, folder, attempt, rendezvous, told)
            except AssertionError:
                traceback.print_exc()
                os.write(told, WRONG + bytes(8))
            finally:  # the other rank was killed a moment ago
                os._exit(1)
        ranks.append(process)
    return ranks


def kill_once(folder: Path, attempt: int, moment: random.Random) -> int:
    """Starts the ranks, kills them, and looks at what they left; returns the number of partial checkpoints."""
    read_end, write_end = os.pipe()
    ranks = start(folder, attempt, write_end)
    os.close(write_end)
    said = os.read(read_end, 9)  # the first is begun; empty if the ranks have died
    time.sleep(moment.uniform(0, 0.06))
    moment.shuffle(ranks)
    for process in ranks:
        os.kill(process, signal.SIGKILL)
        time.sleep(moment.choice([0, 0, 0.005]))
    statuses = [os.waitpid(process, 0)[1] for process in ranks]
    assert os.WTERMSIG(statuses[0]) == signal.SIGKILL, "a rank ended by itself"
    while chunk := os.read(read_end, 9 * 1000):
        said += chunk
    os.close(read_end)
    steps = {BEGUN: 0, COMPLETE: 0, WRONG: -1}
    for place in range(0, len(said), 9):
        steps[said[place : place + 1]] = struct.unpack("q", said[place + 1 : place + 9])[0]
    assert steps[WRONG] == -1, "a start has not found what it must"
    there = checkpoint.list_checkpoints(folder)
    assert there, "no checkpoint is left"
    assert [checkpoint.verify(path) for path in there] == [[]] * len(there), "a complete one is damaged"
    newest = step_of(there[-1]) or 0
    assert newest >= steps[COMPLETE], "one that was told to be complete is not there"
    assert steps[BEGUN] - 1 <= newest <= steps[BEGUN], "more was lost than what was being written"
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(newest, 2000).items()}
    checkpoint.load(there[-1], found, World())
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors_of(newest, 2000).items())
    return len(os.listdir(folder)) - len(there)


def main(folder: Path, kills: int, seed: int) -> None:
    checkpoint.save(folder, tensors_of(1, 2000), record_of(1, World()), World(), keep=KEEP)
    moment = random.Random(seed)
    print(sum(kill_once(folder, attempt, moment) for attempt in range(1, kills + 1)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
