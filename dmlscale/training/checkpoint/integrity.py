"""Whether a checkpoint is whole: every byte is read, by all ranks together."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts, text_of_rank_0, together
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import list_checkpoints, manifest_of, record_text
from dmlscale.training.checkpoint.manifest import RECORD_FILE
from dmlscale.training.checkpoint.piece_file import StoredFile, digest, problem_of

_VISIBLE_WITHIN_S = 30.0  # on shared storage, after another machine has seen it; NFS keeps what it knew for so long
_MOST_THREADS = 4

Say = Callable[..., None]


def verify(path: Path) -> list[str]:
    """What of a checkpoint is damaged, "file: what"; nothing if it is whole. Reads every byte of it."""
    return damage_for_all(path, World())


def newest_for_all(
    folder: Path, world: World, say: Say, damage_met: Callable[[Path], Sequence[str]] = lambda path: ()
) -> Path | None:
    """The newest checkpoint that is whole, the same on every rank; None where there are no checkpoints.

    Every byte of it is read, each file by one rank: with SHA-256 at 1.9 GB/s a thread 10 GB by 8 ranks take a second,
    or as long as the storage takes to give them.

    Args:
        folder: of the run's checkpoints.
        world: the ranks; all of them call this.
        say: called as ``say(fault=text)`` of each damaged checkpoint that is passed over.
        damage_met: called with one that is whole, to read it; returns what of it was damaged meanwhile, the same on
            every rank.

    Raises:
        CheckpointError: there are checkpoints, but none is whole: nothing begins again from step 0 unasked. Or
            ``damage_met`` finds one damaged that is whole.
    """
    # On shared storage ranks may see a new folder at different times: rank 0's view counts.
    found = together(lambda: list_checkpoints(folder) if world.rank == 0 else [], world)
    names = text_of_rank_0("\n".join(path.name for path in reversed(found)), world).split()

    def damage_of(name: str) -> Sequence[str]:
        path = folder / name
        if damage := damage_for_all(path, world):
            return damage
        met = damage_met(path)
        if met and not damage_for_all(path, world):
            # A machine that has lost the storage for a moment, say. What is passed over may be removed.
            raise CheckpointError(f"{path} is whole, but a worker could not read it ({'; '.join(met)}): start again")
        return met

    newest = first_whole(str(folder), names, damage_of, say)
    return None if newest is None else folder / newest


def first_whole(place: str, names: Sequence[str], damage_of: Callable[[str], Sequence[str]], say: Say) -> str | None:
    """The first of some checkpoints that is whole; None if there are none.

    Args:
        place: where they are.
        names: of the checkpoints, the newest first, the same on every rank.
        damage_of: what of one is damaged, the same on every rank.
        say: called as ``say(fault=text)`` of each damaged one that is passed over.

    Raises:
        CheckpointError: there are some, but none is whole.
    """
    problems = []
    for name, before in zip_longest(names, names[1:]):
        damage = damage_of(name)
        if not damage:
            return name
        problems.append(f"checkpoint {name} is damaged ({'; '.join(damage)})")
        if before is not None:
            say(fault=f"{problems[-1]}: going back to {before}")
    if problems:
        raise CheckpointError(
            f"no checkpoint in {place} is whole: {', '.join(problems)}. Restore one of them; to begin again from step "
            f"0, move {place} away"
        )
    return None


def damage_for_all(path: Path, world: World) -> list[str]:
    """As `verify`, with each file read by one rank only; the same on every rank, which then all see the same record.

    Communication: all-reduce of the record's text, all-gather of what is damaged.
    """
    text, seen = _first_look(path) if world.rank == 0 else ("", [])
    text, seen = json.loads(text_of_rank_0(json.dumps([text, seen]), world))
    if seen:
        return list(seen)
    files = manifest_of(path, text, RECORD_FILE).files[world.rank :: world.num_ranks]
    # Rank 0 has seen them all: what another one misses is not there yet.
    deadline = time.monotonic() + (0.0 if world.rank == 0 else _VISIBLE_WITHIN_S)
    damage = _damage_of(path, files, deadline)
    if world.rank and not _sees(path, text, deadline):
        damage.append(f"{RECORD_FILE}: rank {world.rank} sees another one than rank 0")
    return [line for said in gather_texts("\n".join(damage), world) for line in said.splitlines()]


def _sees(path: Path, text: str, deadline: float) -> bool:
    """Whether the record here is, or becomes, this one."""
    while True:
        try:
            if record_text(path) == text:
                return True
        except CheckpointError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _first_look(path: Path) -> tuple[str, list[str]]:
    """The record's text, and what is damaged as far as the file system tells."""
    try:
        text = record_text(path)
    except CheckpointError as error:
        return "", [str(error)]
    try:
        files = manifest_of(path, text, RECORD_FILE).files
    except CheckpointError as error:
        return "", [str(error)]
    problems = {file.name: problem_of(path / file.name, file) for file in files}
    return text, [f"{name}: {problem}" for name, problem in problems.items() if problem is not None]


def _damage_of(path: Path, files: Sequence[StoredFile], deadline: float) -> list[str]:
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:  # hashing and reading let other threads run
        problems = list(pool.map(partial(_problem_inside, path, deadline=deadline), files))
    return [f"{file.name}: {problem}" for file, problem in zip(files, problems, strict=True) if problem is not None]


def _problem_inside(path: Path, file: StoredFile, deadline: float) -> str | None:
    while (problem := problem_of(path / file.name, file)) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        if problem is None and digest(path / file.name) != file.sha256:
            problem = "its digest does not match"
    except OSError as error:
        problem = error.strerror or str(error)
    return problem
