"""Writing a checkpoint from all ranks together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import list_checkpoints, name_of
from dmlscale.training.checkpoint.manifest import RECORD_FILE, Manifest, stored_file
from dmlscale.training.checkpoint.piece_file import write_pieces
from dmlscale.training.checkpoint.pieces import Piece, pieces_to_write
from dmlscale.training.state import Record


def save(
    folder: Path, tensors: Mapping[str, Tensor], record: Record, world: World, *, keep: int, attempt: int = 0
) -> Path:
    """Writes a checkpoint from all ranks together and returns its path; complete when rank 0's call returns.

    Args:
        folder: of the run's checkpoints.
        tensors: from `state.tensors`.
        record: where the run stands.
        world: the ranks; all of them call this.
        keep: how many of the newest to keep.
        attempt: number of this start of the run's workers; files of another are never mixed with those of this one.
    """
    path = folder / name_of(record.step)
    path.mkdir(parents=True, exist_ok=True)
    write_part(path, pieces_to_write(tensors, world), world, attempt)
    if world.rank == 0:
        commit(path, record, world, attempt)
        for old in list_checkpoints(folder)[:-keep]:
            remove(old)
    return path


def write_part(path: Path, pieces: Sequence[Piece], world: World, attempt: int) -> None:
    """Writes what this rank has to write, and then a note that it is there."""
    stem = _stem(attempt, world.rank, world.num_ranks)
    stored = write_pieces(path / f"{stem}.safetensors", pieces)
    _write_whole(path / f"{stem}.json", json.dumps(dataclasses.asdict(stored)))


def commit(path: Path, record: Record, world: World, attempt: int, *, timeout_s: float = 600.0) -> None:
    """Waits for the parts of all ranks and makes a checkpoint of them. For rank 0.

    Raises:
        CheckpointError: a part did not come in time.
    """
    notes = [path / f"{_stem(attempt, rank, world.num_ranks)}.json" for rank in range(world.num_ranks)]
    deadline = time.monotonic() + timeout_s
    while missing := [note for note in notes if not note.exists()]:
        if time.monotonic() > deadline:
            raise CheckpointError(f"{missing[0]} did not come within {timeout_s:g} s")
        time.sleep(0.01)
    files = tuple(stored_file(json.loads(note.read_text())) for note in notes)
    _write_whole(path / RECORD_FILE, Manifest(record, files).to_json())
    for note in notes:
        note.unlink()


def remove(path: Path) -> None:
    """Removes a checkpoint; its record first, so that it is none from the first moment on."""
    (path / RECORD_FILE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _stem(attempt: int, rank: int, num_ranks: int) -> str:
    return f"attempt-{attempt:04d}_rank-{rank:05d}-of-{num_ranks:05d}"


def _write_whole(path: Path, text: str) -> None:
    """Writes a small file, all of it or nothing."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
