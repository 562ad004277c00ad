from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.manifest import Manifest
from tests.data.sources.tables import listed, write_table


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["path", "label", "split", "key"])
def test_a_row_that_lacks_a_value_is_rejected_with_its_number(tmp_path: Path, column: str, suffix: str) -> None:
    columns = {"path": ["1.jpg", "2.jpg"], "label": ["a", "b"], "split": ["train"] * 2, "key": ["k1", "k.2"]}
    columns[column] = ["" if suffix == "csv" else None, columns[column][1]]  # type: ignore[list-item]
    write_table(tmp_path / f"list.{suffix}", columns)
    (tmp_path / "2.jpg").write_bytes(b"two")
    opened, items = listed(Manifest(str(tmp_path / f"list.{suffix}")), tmp_path)
    where = "line 2" if suffix == "csv" else r"row 0 \(from 0\)"
    assert items[0].defect == f"its row has no {column}"  # without the number, so that equal reasons can be counted
    assert re.search(rf"list\.{suffix}, {where}$", items[0].ref)
    assert items[1].key == "k_2"
    assert not items[1].defect
    assert opened.load(items[1].ref) == [b"two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list\.csv is empty: its first line must name the columns"),
        (b"path,label\n", r"list\.csv lists no sample"),
        (b"path,label\n1,a\n2\n", r"list\.csv, line 3, has 1 values, the header has 2"),
        (b"path,label\n1,a\n2,b,c\n", r"list\.csv, line 3, has 3 values, the header has 2"),
        (b"path,label\n1,a\n2,\xff\n", r"list\.csv, line 3, is not UTF-8: save the file as UTF-8"),
        (b'path,label\n1,a\n2,"b\n', r"list\.csv, line 3, is no CSV"),
        (b"path,name\n1,a\n", r"list\.csv has no column 'label' \(it has: path, name\)"),
        (b"file,label\n1,a\n", r"no column 'path' or 'bytes' \(it has: file, label\): give path_column"),
        (b"bytes,label\n1,a\n", r"is CSV, which cannot hold files"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        listed(Manifest(str(tmp_path / "list.csv")), tmp_path)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"path,label\n" + bytes(range(48, 58)) * 99)[:-9])
    with pytest.raises(DataError, match=r"list\.csv\.gz is damaged"):
        listed(Manifest(str(tmp_path / "list.csv.gz")), tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["1"], "label": [0.5]}, "column 'label' of .* has the type double, must be text or whole numbers"),
        ({"bytes": ["1"], "label": ["a"]}, "column 'bytes' of .* has the type string, must be binary"),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "lists no sample"),
    ],
)
def test_bad_columns_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_table(tmp_path / "list.parquet", columns)
    with pytest.raises(DataError, match=message):
        listed(Manifest(str(tmp_path / "list.parquet")), tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_tables_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list.{suffix}"
    write_table(path, {"bytes": [b"x" * 1000] * 50, "label": ["a"] * 50})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"list\.{suffix} cannot be read"):
        listed(Manifest(str(path)), tmp_path)


def test_every_part_must_have_the_columns(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write_table(tmp_path / "parts" / "0.parquet", {"path": ["1"], "label": ["a"], "split": ["train"]})
    write_table(tmp_path / "parts" / "1.parquet", {"path": ["1"], "label": ["a"]})
    with pytest.raises(DataError, match=r"1\.parquet has no column 'split' \(it has: path, label\)"):
        Manifest(str(tmp_path / "parts")).open(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.csv"}, r"there is no .*nowhere\.csv"),
        ({"path": "."}, "no .parquet, .pq, .arrow, .feather file in the folder"),
        ({"path": "list.txt"}, r"list\.txt must end in one of \.csv, \.tsv, \.parquet"),
        ({"path": "x.csv", "train_fraction": 1.5}, r"train_fraction=1\.5, must be 0 to 1"),
        ({"path": "x.csv", "input": "views"}, "input='views', must be one of image, array, audio"),
        ({"path": "x.csv", "path_column": "a", "bytes_column": "b"}, "give path_column or bytes_column, not both"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        Manifest(**options).open(tmp_path / "scratch")
