from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed set that a test may spoil."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "index.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def replaced(table: pa.Table, name: str, values: list) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_split_keeps_row_ids_and_labels_of_the_whole(packed: Path) -> None:
    index = Index.load(packed)
    assert index.splits == ("train", "test")
    train, test = index.split("train"), index.split("test")
    assert len(train) + len(test) == len(index)
    assert np.array_equal(np.union1d(train.row_ids, test.row_ids), np.arange(len(index)))
    assert np.array_equal(index.labels[test.row_ids], test.labels)
    assert set(train.labels) == set(range(12))
    assert set(test.labels) == set(range(12, 24))
    assert index.num_classes == test.num_classes == 12
    assert len(index.class_names) == 24
    assert np.array_equal(test.take(np.array([1, 0])).row_ids, test.row_ids[[1, 0]])


def test_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no dataset at {tmp_path}/nowhere .*dmlscale pack"):
        Index.load(tmp_path / "nowhere")


def test_unknown_split_lists_the_others(packed: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'val' .*train, test"):
        Index.load(packed).split("val")


def test_missing_shard(damaged: Path) -> None:
    (damaged / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar is missing"):
        Index.load(damaged)


def test_empty_shard(damaged: Path) -> None:
    (damaged / "test-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"test-000000\.tar is empty \(0 bytes\)"):
        Index.load(damaged)


def test_truncated_shard(damaged: Path) -> None:
    with (damaged / "test-000000.tar").open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(DataError, match=r"test-000000\.tar is truncated \(20000 bytes, the index needs \d+\)"):
        Index.load(damaged)


def test_damaged_index(damaged: Path) -> None:
    (damaged / "index.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"index\.parquet is damaged"):
        Index.load(damaged)


def test_damaged_description(damaged: Path) -> None:
    (damaged / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        Index.load(damaged)
    (damaged / "dataset.json").write_text('{"format_version": 9}')
    with pytest.raises(DataError, match="format_version 9"):
        Index.load(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["offset"]), "no column 'offset'"),
        (lambda t: t.slice(0, 0), "lists no samples"),
        (lambda t: replaced(t, "key", ["same"] * len(t)), "key 'same' is listed more than once"),
        (lambda t: replaced(t, "label", [99, *t["label"].to_pylist()[1:]]), r"label 99 is outside 0\.\."),
        (lambda t: replaced(t, "label", [-1, *t["label"].to_pylist()[1:]]), r"label -1 is outside 0\.\."),
        (lambda t: replaced(t, "class_name", ["x", *t["class_name"].to_pylist()[1:]]), "two class names"),
        (lambda t: replaced(t, "label", [None, *t["label"].to_pylist()[1:]]), "'label' is empty in 1 rows"),
        (lambda t: replaced(t, "offset", ["x"] * len(t)), "wrong type"),
        (lambda t: t.filter(pa.compute.not_equal(t["label"], 3)), r"label 23 is outside 0\.\.22"),
    ],
)
def test_bad_index_is_one_clear_error(damaged: Path, change: Callable, message: str) -> None:
    rewrite(damaged, change)
    with pytest.raises(DataError, match=message):
        Index.load(damaged)


def test_train_labels_must_come_first(damaged: Path) -> None:
    rewrite(damaged, lambda t: replaced(t, "label", [23 - label for label in t["label"].to_pylist()]))
    with pytest.raises(DataError, match="label 0 has no sample in split 'train'"):
        Index.load(damaged)
