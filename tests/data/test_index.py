from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.index_writer import write_table
from dmlscale.data.planning.class_rows import ClassRows

Change = Callable[[pa.RecordBatch], pa.RecordBatch]


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed set that a test may spoil."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def rewrite(folder: Path, change: Change, name: str = "index.arrow") -> None:
    with pa.OSFile(str(folder / name)) as file:
        batch = change(pa.ipc.open_file(file).get_batch(0))
    write_table(folder / name, batch)


def replaced(batch: pa.RecordBatch, name: str, change: Callable[[np.ndarray], Any]) -> pa.RecordBatch:
    values = change(batch.column(name).to_numpy().copy())
    position = batch.schema.get_field_index(name)
    columns = batch.columns
    columns[position] = pa.array(values)
    fields = [pa.field(field.name, column.type) for field, column in zip(batch.schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def with_first(value: Any) -> Callable[[np.ndarray], Any]:
    def change(values: np.ndarray) -> np.ndarray:
        values[0] = value
        return values

    return change


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
    assert list(index.class_names[:2]) == [index.class_names[0], index.class_names[1]]
    assert np.array_equal(test.take(np.array([0, 1])).row_ids, test.row_ids[[0, 1]])
    assert np.array_equal(test.row_ids_between(3, 7), test.row_ids[3:7])


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_view_of_any_rows_knows_labels_classes_and_shards(mixed: Path, data: st.DataObject) -> None:
    index = Index.load(mixed)
    view = index.split(data.draw(st.sampled_from(["train", "test"])))
    if data.draw(st.booleans()):
        positions = data.draw(st.sets(st.integers(0, len(view) - 1), min_size=1))
        view = view.take(np.array(sorted(positions)))
    assert np.array_equal(view.labels, index.labels[view.row_ids])
    expected = ClassRows.from_labels(view.labels, view.row_ids)
    shown = [
        {label: part.tolist() for label, part in enumerate(np.split(rows.rows, rows.starts[1:-1])) if len(part)}
        for rows in (view.class_rows, expected)
    ]
    assert shown[0] == shown[1]
    assert np.array_equal(view.used_shards, np.unique(index.columns.shards[view.row_ids]))
    assert np.array_equal(np.sort(view.shard_rows.rows_of(view.used_shards)), view.row_ids)


def test_a_whole_split_has_its_class_rows_without_a_copy(packed: Path) -> None:
    index = Index.load(packed)
    for split in index.splits:
        assert np.shares_memory(index.split(split).class_rows.rows, index.columns.by_class)
        assert not index.columns.by_class.flags.owndata


def test_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no dataset at {tmp_path}/nowhere .*dmlscale pack"):
        Index.load(tmp_path / "nowhere")


def test_unknown_split_lists_the_others(packed: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'val' .*train, test"):
        Index.load(packed).split("val")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_shard_does_not_hide_the_others(damaged: Path, damage: str) -> None:
    """The index opens; the reader tells which samples are lost (see test_skipped)."""
    shard = damaged / "train-000001.tar"
    if damage == "missing":
        shard.unlink()
    else:
        with shard.open("r+b") as file:
            file.truncate(0 if damage == "empty" else 20_000)
    index = Index.load(damaged)
    index.open_shard(0).close()
    if damage == "missing":
        with pytest.raises(DataError, match=r"train-000001\.tar is missing: restore it"):
            index.open_shard(1)


@settings(deadline=None, max_examples=25)
@given(table=st.sampled_from(["index.arrow", "classes.arrow", "shards.arrow"]), part=st.floats(0, 0.999))
def test_a_cut_off_table_is_named(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, table: str, part: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    for path in packed.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / table).unlink()
    whole = (packed / table).read_bytes()
    (folder / table).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=rf"{table} is damaged or missing .*pack again"):
        Index.load(folder)


@pytest.mark.parametrize("table", ["classes.arrow", "shards.arrow"])
def test_a_missing_table_is_named(damaged: Path, table: str) -> None:
    (damaged / table).unlink()
    with pytest.raises(DataError, match=rf"{table} is damaged or missing"):
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
        (lambda t: t.drop_columns(["offset"]), r"index\.arrow has no column 'offset' \(it has: key, shard"),
        (lambda t: t.slice(0, 0), "must hold one record batch of at least one row"),
        (lambda t: t.slice(0, len(t) - 1), r"do not fit each other|leads outside"),
        (lambda t: replaced(t, "label", with_first(99)), r"label 99 is outside 0\.\.23"),
        (lambda t: replaced(t, "label", with_first(-1)), r"label -1 is outside 0\.\.23"),
        (lambda t: replaced(t, "label", lambda v: pa.array([None, *v[1:]], pa.int32())), "'label' is empty in 1 row"),
        (lambda t: replaced(t, "offset", lambda v: v.astype(str)), "wrong type: 'offset' is"),
        (lambda t: replaced(t, "shard", with_first(1)), r"index\.arrow and shards\.arrow do not fit each other"),
        (lambda t: replaced(t, "by_class", with_first(10**6)), r"'by_class' leads outside its 384 rows"),
        (lambda t: replaced(t, "by_class", with_first(-1)), r"'by_class' leads outside"),
    ],
)
def test_bad_index_is_one_clear_error(damaged: Path, change: Change, message: str) -> None:
    rewrite(damaged, change)
    with pytest.raises(DataError, match=message):
        Index.load(damaged)


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("classes.arrow", lambda t: t.slice(0, 20), r"label 23 is outside 0\.\.19"),
        ("shards.arrow", lambda t: t.slice(0, 2), r"index\.arrow and shards\.arrow do not fit each other"),
        (
            "shards.arrow",
            lambda t: replaced(t, "num_samples", lambda v: [v[0] + 1, v[1] - 1, *v[2:]]),
            "do not fit each other",
        ),
        ("shards.arrow", lambda t: replaced(t, "num_samples", lambda v: [sum(v), *[0] * (len(v) - 1)]), "do not fit"),
        ("shards.arrow", lambda t: t.drop_columns(["size_bytes"]), r"shards\.arrow has no column 'size_bytes'"),
    ],
)
def test_tables_that_do_not_fit_the_index_are_named(damaged: Path, table: str, change: Change, message: str) -> None:
    rewrite(damaged, change, table)
    with pytest.raises(DataError, match=message):
        Index.load(damaged)
