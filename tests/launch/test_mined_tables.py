from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.distributed.world import World
from dmlscale.launch.mined_tables import TableStore
from dmlscale.training import checkpoint
from dmlscale.training.state import Record


def table_of(seed: int) -> NeighborTable:
    rng = np.random.default_rng(seed)
    return NeighborTable(rng.integers(0, 20, (20, 3)), rng.integers(-1, 20, 20))


def write_checkpoint(folder: Path, step: int, round_number: int) -> None:
    record = Record(step, {"epoch": round_number, "step": 1}, 1, {}, {})
    checkpoint.save(folder / "checkpoints", {"weight": torch.zeros(1)}, record, World(), keep=100)


def rounds_of(folder: Path) -> set[int]:
    """Those in which the checkpoints in a folder were written."""
    return {checkpoint.read_record(path).position["epoch"] for path in checkpoint.list_checkpoints(folder)}


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(tmp_path / "mined", lambda: rounds_of(tmp_path / "checkpoints"))


def test_what_is_written_is_read(store: TableStore) -> None:
    store.write(7, table_of(7))
    found = store.read(7, 20, 3)
    assert found is not None
    assert np.array_equal(found.nearest_negatives, table_of(7).nearest_negatives)
    assert np.array_equal(found.farthest_positive, table_of(7).farthest_positive)
    assert found.nearest_negatives.dtype == found.farthest_positive.dtype == np.int64


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "other samples", "other candidates"])
def test_what_does_not_fit_is_not_there(store: TableStore, damage: str) -> None:
    store.write(7, table_of(7))
    path = store.path(7)
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no table")
    elif damage in ("empty", "truncated"):
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
    assert store.read(7, 21 if damage == "other samples" else 20, 4 if damage == "other candidates" else 3) is None


def test_the_newest_and_those_that_checkpoints_need_are_kept(store: TableStore, tmp_path: Path) -> None:
    store.write(0, table_of(0))
    (tmp_path / "mined" / "round_00000009.partial").touch()  # of a run that was killed
    write_checkpoint(tmp_path, 10, 1)
    for number in range(1, 6):
        store.write(number, table_of(number))
    write_checkpoint(tmp_path, 50, 5)
    store.write(6, table_of(6))
    store.write(7, table_of(7))
    assert sorted(path.name for path in (tmp_path / "mined").iterdir()) == [
        f"round_{number:08d}.npz" for number in (1, 5, 7)
    ]


def test_a_checkpoint_that_cannot_be_read_may_need_any_table(store: TableStore, tmp_path: Path) -> None:
    for number in (1, 2):
        write_checkpoint(tmp_path, 10 * number, number)
        store.write(number, table_of(number))
    (tmp_path / "checkpoints" / "step_00000010" / "record.json").write_text("{")
    store.write(3, table_of(3))
    assert all(store.path(number).is_file() for number in (1, 2, 3))
