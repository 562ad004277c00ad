"""The parts of a checkpoint: what each rank writes, and what makes a checkpoint of it."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.manifest import RECORD_FILE, Manifest, parse_manifest, stored_file
from dmlscale.training.checkpoint.piece_file import write_pieces
from dmlscale.training.checkpoint.pieces import Piece
from dmlscale.training.checkpoint.retention import METRICS_FILE
from dmlscale.training.checkpoint.store import Store
from dmlscale.training.state import Record


def write_part(store: Store, name: str, pieces: Sequence[Piece], world: World, attempt: int) -> None:
    """Writes what this rank has to write, and then a note that it is there.

    Raises:
        OSError, CheckpointError: it cannot be written; what was written of it is gone again.
    """
    stem = _stem(attempt, world.rank, world.num_ranks)
    file = f"{stem}.safetensors"
    path = store.stage(name) / file
    try:
        stored = write_pieces(path, pieces)
        store.deliver(name, file)
        store.put(name, f"{stem}.json", json.dumps(dataclasses.asdict(stored)))
    except BaseException:
        path.unlink(missing_ok=True)  # a full disk has room for others' notes then
        raise


def commit(
    store: Store,
    name: str,
    record: Record,
    world: World,
    attempt: int,
    *,
    is_current: Callable[[], bool],
    is_abandoned: threading.Event,
    timeout_s: float = 600.0,
) -> int:
    """Waits for the parts of all ranks and makes a checkpoint of them. For rank 0.

    Args:
        store: of the checkpoints.
        name: of this one.
        record: where the run stands.
        world: the ranks that write it.
        attempt: whose parts.
        is_current: whether no later start of the run's workers has begun.
        is_abandoned: set when a part will not come.
        timeout_s: for how long parts are waited for.

    Returns:
        Bytes of all parts.

    Raises:
        CheckpointError: a part did not come, or a later start has begun.
        OSError: the record cannot be written.
    """
    notes = [f"{_stem(attempt, rank, world.num_ranks)}.json" for rank in range(world.num_ranks)]
    texts: list[str] = []
    deadline = time.monotonic() + timeout_s
    while len(texts) < len(notes) and not is_abandoned.is_set():
        # One after the other: looking for those of 64 ranks at a time would keep the storage and this process busy.
        if (text := store.get(name, notes[len(texts)])) is not None:
            texts.append(text)
            continue
        if time.monotonic() > deadline:
            there = store.files(name)
            raise CheckpointError(_did_not_come(store, [r for r, n in enumerate(notes) if n not in there], timeout_s))
        is_abandoned.wait(store.look_every_s)
    if is_abandoned.is_set():
        raise CheckpointError("another rank could not write its part")
    files = tuple(stored_file(json.loads(text)) for text in texts)
    if not is_current():
        raise CheckpointError("a later start of this run's workers has begun: this one writes no more checkpoints")
    store.put(name, RECORD_FILE, Manifest(record, files).to_json())
    return sum(file.size for file in files)


def tidy(store: Store, name: str) -> None:
    """Removes what no checkpoint needs: notes and parts of earlier starts beside a new one, and partial checkpoints."""
    manifest = parse_manifest(store.get(name, RECORD_FILE) or "", name)
    for file in set(store.files(name)) - {RECORD_FILE, METRICS_FILE, *(file.name for file in manifest.files)}:
        store.remove_file(name, file)
    for partial in store.partial():
        store.remove(partial)


def discard(store: Store, name: str, attempt: int) -> None:
    """Removes what a start has written of a checkpoint that was not completed, so that its space is free again."""
    record = store.get(name, RECORD_FILE)
    if record is None:
        store.remove(name)
        return
    # An earlier start's, which this one was to replace; or this one's, if only the answer to its writing was lost.
    needed = {file.name for file in parse_manifest(record, name).files}
    for file in store.files(name):
        if file.startswith(_start_of(attempt)) and file not in needed:
            store.remove_file(name, file)


def _did_not_come(store: Store, ranks: Sequence[int], timeout_s: float) -> str:
    named = ", ".join(map(str, ranks))
    return (
        f"the parts of rank(s) {named} did not come to {store.place} within {timeout_s:g} s: "
        "do all workers see the same folder?"
    )


def _start_of(attempt: int) -> str:
    return f"attempt-{attempt:04d}_"


def _stem(attempt: int, rank: int, num_ranks: int) -> str:
    return f"{_start_of(attempt)}rank-{rank:05d}-of-{num_ranks:05d}"
