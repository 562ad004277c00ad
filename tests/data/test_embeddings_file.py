"""Embeddings come back from their file as they were, and a file that is none is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.embeddings_file import (
    FORMAT_VERSION,
    ROWS_PER_GROUP,
    EmbeddingsWriter,
    Provenance,
    read_embeddings,
)
from dmlscale.data.errors import DataError

MADE = Provenance("small at step 20", "ab12", "runs/small", "cosine", "data/glyphs", "image")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    rows=st.lists(st.tuples(TEXTS, st.none() | TEXTS, st.none() | TEXTS), min_size=1, max_size=40),
    dim=st.integers(1, 9),
    size=st.integers(1, 7),
)
@settings(deadline=None, max_examples=30)
def test_what_is_written_is_read(
    rows: list[tuple[str, str | None, str | None]],
    dim: int,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("embeddings") / "new" / "e.parquet"
    vectors = np.random.default_rng(0).normal(size=(len(rows), dim)).astype(np.float32)
    with EmbeddingsWriter(path, dim, MADE) as writer:
        for start in range(0, len(rows), size):
            ids, labels, splits = zip(*rows[start : start + size], strict=True)
            writer.append(ids, labels, splits, vectors[start : start + size])
        assert not path.exists()
        writer.publish()
    read = read_embeddings(path)
    assert [tuple(row.values()) for row in read.names.to_pylist()] == rows
    assert np.array_equal(read.vectors, vectors)
    assert read.provenance == MADE
    assert list(path.parent.iterdir()) == [path]
    # As any other reader of Parquet sees it.
    table = pq.read_table(path)
    assert table.schema.names == ["id", "label", "split", "embedding"]
    assert table.schema.field("embedding").type.list_size == dim
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), np.float32), vectors)


def test_rows_are_written_in_groups_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    num_rows = 2 * ROWS_PER_GROUP + 100
    vectors = np.arange(2 * num_rows, dtype=np.float32).reshape(-1, 2)
    with EmbeddingsWriter(path, 2, MADE) as writer:
        for start in range(0, num_rows, 1_000):
            part = vectors[start : start + 1_000]
            writer.append([str(start)] * len(part), [None] * len(part), ["a"] * len(part), part)
        writer.publish()
    metadata = pq.ParquetFile(path).metadata
    assert max(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)) <= ROWS_PER_GROUP
    assert np.array_equal(read_embeddings(path).vectors, vectors)


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    path.write_bytes(b"old")
    with EmbeddingsWriter(path, 1, MADE) as writer:
        writer.append(["a"], [None], [None], np.ones((1, 1), np.float32))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[1, 2], [np.nan, 0]], np.float32), "embedding of 'b' holds NaN"),
        (np.ones((2, 3), np.float32), r"vectors \(2, 3\), must be \(2, 2\)"),
        (np.ones((1, 2), np.float32), r"must be \(2, 2\)"),
    ],
)
def test_broken_vectors_are_not_written(vectors: np.ndarray, message: str, tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path / "e.parquet", 2, MADE) as writer, pytest.raises(DataError, match=message):
        writer.append(["a", "b"], [None, None], [None, None], vectors)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*e\.parquet"):
        EmbeddingsWriter(tmp_path / "file" / "e.parquet", 2, MADE)
    (tmp_path / "folder.parquet").mkdir()
    with EmbeddingsWriter(tmp_path / "folder.parquet", 1, MADE) as writer:
        writer.append(["a"], [None], [None], np.ones((1, 1), np.float32))
        with pytest.raises(DataError, match=r"cannot write .*folder\.parquet"):
            writer.publish()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def table_of(**changed: pa.Array) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    columns = {"id": pa.array(["a", "b"]), "label": pa.array(["x", None]), "split": pa.array(["t", "t"])}
    table = pa.table(columns | {"embedding": vectors} | changed)
    return table.replace_schema_metadata({"dmlscale": json.dumps({"format_version": FORMAT_VERSION, **asdict(MADE)})})


def told(table: pa.Table, **changed: object) -> pa.Table:
    values = json.loads(table.schema.metadata[b"dmlscale"]) | changed
    return table.replace_schema_metadata({"dmlscale": json.dumps(values)})


NAN = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, np.inf, 4.0], pa.float32()), 2)
DOUBLES = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0]), 2)
LISTS = pa.list_(pa.float32(), 2)
BROKEN: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no metadata": (lambda: table_of().replace_schema_metadata(None), "does not tell which model"),
    "other metadata": (lambda: table_of().replace_schema_metadata({"dmlscale": "[1]"}), "does not tell which model"),
    "a field too many": (lambda: told(table_of(), more=1), "does not tell which model"),
    "a number for a text": (lambda: told(table_of(), model=3), "model=3, must be a text"),
    "another metric": (lambda: told(table_of(), metric="manhattan"), "metric='manhattan'"),
    "a later format": (lambda: told(table_of(), format_version=2), "format_version 2, this dmlscale reads 1"),
    "no id": (lambda: table_of().drop_columns(["id"]), "column 'id' is missing"),
    "ids of numbers": (lambda: table_of(id=pa.array([1, 2])), "column 'id' is int64, must be text"),
    "no embedding": (lambda: table_of().drop_columns(["embedding"]), "column 'embedding' is missing"),
    "lists": (lambda: table_of(embedding=pa.array([[1.0], [2.0, 3.0]])), "column 'embedding' is list<"),
    "doubles": (lambda: table_of(embedding=DOUBLES), "must be a fixed_size_list of float"),
    "infinity": (lambda: table_of(embedding=NAN), "the embedding of row 1 holds NaN or infinity"),
    "no vector": (lambda: table_of(embedding=pa.array([[1.0, 2.0], None], LISTS)), "is damaged|have holes"),
    "a hole": (lambda: table_of(embedding=pa.array([[1.0, 2.0], [None, 4.0]], LISTS)), "have holes"),
    "no names": (lambda: table_of(id=pa.array(["a", None])), "row 1 has no id; embed again"),
    "ids of bytes": (lambda: table_of(id=pa.array([b"a", b"\xff"]).view(pa.string())), "names are no text in UTF-8"),
    "classes of bytes": (lambda: table_of(label=pa.array([b"\xfe", None]).view(pa.string())), "no text in UTF-8"),
    "nested metadata": (
        lambda: table_of().replace_schema_metadata({"dmlscale": "[" * 200_000}),
        "does not tell which model",
    ),
    "no rows": (lambda: table_of().slice(0, 0), "holds no embeddings"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_of_another_form_is_refused(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    pq.write_table(make(), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=message):
        read_embeddings(tmp_path / "e.parquet")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    with pytest.raises(DataError, match=r"there is no .*: make one with `dmlscale embed`"):
        read_embeddings(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is no Parquet file"):
        read_embeddings(path)
    pq.write_table(table_of(), path)
    whole = bytearray(path.read_bytes())
    whole[4:60] = bytes(56)  # the first pages
    path.write_bytes(whole)
    with pytest.raises(DataError, match="is damaged"):
        read_embeddings(path)


_READ = """
import re, sys
from pathlib import Path
from dmlscale.data.embeddings_file import read_embeddings
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
vectors = read_embeddings(Path(sys.argv[1])).vectors
print((peak() - before) * 1024 / vectors.nbytes)
"""


def test_reading_takes_little_more_than_the_vectors(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    vectors = np.random.default_rng(0).normal(size=(ROWS_PER_GROUP, 512)).astype(np.float32)
    with EmbeddingsWriter(path, 512, MADE) as writer:
        for _ in range(16):  # 268 MB in all
            writer.append([""] * len(vectors), [None] * len(vectors), [None] * len(vectors), vectors)
        writer.publish()
    done = subprocess.run([sys.executable, "-c", _READ, str(path)], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 2.1  # 2.6 if what has been read is kept
