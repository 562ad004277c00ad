from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.sources import SOURCES, Item
from dmlscale.data.sources.manifest import Manifest
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip
from tests.data.sources.tables import listed, write_csv, write_table

ROWS: dict[str, list[Any]] = {
    "path": ["a/1.jpg", "a/2.x.PNG", "b/3"],
    "label": ["cat", "dog", "cat"],
    "split": ["train", "test", "train"],
    "super_class": ["pet", "pet", "pet"],
}


FORMATS = ["csv", "tsv", "parquet", "arrow", "feather"]


def test_registry_finds_it() -> None:
    assert SOURCES["manifest"] is Manifest


@pytest.mark.parametrize("suffix", FORMATS)
def test_paths_in_every_format(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"list.{suffix}", ROWS)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"one")
    opened, items = listed(Manifest(str(tmp_path / f"list.{suffix}")), tmp_path / "scratch")
    assert items == [
        Item("a/1", "cat", "train", f"{tmp_path}/a/1.jpg", "jpg", "pet"),
        Item("a/2_x", "dog", "test", f"{tmp_path}/a/2.x.PNG", "png", "pet"),
        Item("b/3", "cat", "train", f"{tmp_path}/b/3", "jpg", "pet"),
    ]
    assert opened.load(items[0].ref) == [b"one"]
    with pytest.raises(FileNotFoundError):
        opened.load(items[1].ref)
    assert not (tmp_path / "scratch").exists()


def test_compressed_csv_with_a_mark_quotes_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufefflabel,path\n"a, ""b""",x.jpg\n\n"two\nlines",y.jpg\n'
    with gzip.open(tmp_path / "list.csv.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    _, items = listed(Manifest(str(tmp_path / "list.csv.gz")), tmp_path)
    assert [(item.key, item.class_name) for item in items] == [("x", 'a, "b"'), ("y", "two\nlines")]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_files_in_a_column_come_back_in_any_order(tmp_path: Path, suffix: str) -> None:
    files = [None if row == 3 else b"%d" % row * (row * 99 + 1) for row in range(7)]
    (tmp_path / "parts" / "more").mkdir(parents=True)
    for part, name in enumerate([f"0.0.{suffix}", f"more/1.{suffix}"]):
        rows = slice(part * 4, part * 4 + 4)
        write_table(tmp_path / "parts" / name, {"bytes": files[rows], "label": list(range(7))[rows]})
    (tmp_path / "parts" / f"_hidden.{suffix}").write_bytes(b"no table")
    source = Manifest(str(tmp_path / "parts"), extension="webp")
    opened, items = listed(source, tmp_path / "scratch")
    assert [item.key for item in items][2:6] == ["0_0/00000002", "0_0/00000003", "more/1/00000000", "more/1/00000001"]
    assert [item.class_name for item in items] == [str(row) for row in range(7)]
    assert {item.extension for item in items} == {"webp"}
    for row in (6, 0, 4, 2, 5, 1):
        assert opened.load(items[row].ref) == [files[row]]
    with pytest.raises(ValueError, match=r"^its row has no bytes$"):
        opened.load(items[3].ref)
    # Only what has no places to jump to is written anew, once.
    unpacked = sorted((tmp_path / "scratch").glob("*")) if (tmp_path / "scratch").exists() else []
    assert len(unpacked) == (0 if suffix == "arrow" else 2)
    times = [path.stat().st_mtime_ns for path in unpacked]
    assert source.open(tmp_path / "scratch").load(items[6].ref) == [files[6]]
    assert [path.stat().st_mtime_ns for path in unpacked] == times


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    files = official.pictures([f"images/{number}.jpg" for number in range(8)])
    columns: dict[str, list[Any]] = {"label": [number % 3 for number in range(8)], "super_class": ["all"] * 8}
    if suffix == "csv":
        official.write_folder(files, tmp_path / "data")
        columns["path"] = ["images/gone.jpg", *list(files)[1:]]
    else:
        columns["bytes"] = [None, *list(files.values())[1:]]
    (tmp_path / "data").mkdir(exist_ok=True)
    write_table(tmp_path / "data" / f"list.{suffix}", columns)
    source = Manifest(str(tmp_path / "data" / f"list.{suffix}"), train_fraction=1)
    index = assert_round_trip(source, tmp_path, unreadable=["images/gone" if suffix == "csv" else "00000000"])
    assert len(index) == 7


def test_rows_without_a_label_are_no_class_to_train_on(tmp_path: Path) -> None:
    files = official.pictures(["1.jpg", "2.jpg", "3.jpg"])
    official.write_folder(files, tmp_path / "data")
    write_csv(tmp_path / "data" / "list.csv", {"path": files, "label": ["", "a", "b"], "split": ["train"] * 3})
    index = assert_round_trip(Manifest(str(tmp_path / "data" / "list.csv")), tmp_path, unreadable=["1"])
    assert tuple(index.class_names)[: index.num_classes] == ("a", "b")


def test_unpacking_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    write_table(tmp_path / "list.parquet", {"bytes": [b"1", b"2"], "label": ["a", "b"]})
    source = Manifest(str(tmp_path / "list.parquet"))
    source.open(tmp_path / "scratch")
    [unpacked] = (tmp_path / "scratch").iterdir()
    unpacked.with_name(f"{unpacked.name}.partial").write_bytes(unpacked.read_bytes()[:50])
    unpacked.unlink()
    opened, items = listed(source, tmp_path / "scratch")
    assert [opened.load(item.ref) for item in items] == [[b"1"], [b"2"]]
    assert list((tmp_path / "scratch").iterdir()) == [unpacked]


def test_a_large_table_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    schema = pa.schema([("bytes", pa.binary()), ("label", pa.string())])
    with pq.ParquetWriter(tmp_path / "list.parquet", schema, compression="none") as writer:
        for group in range(64):
            rows = {"bytes": [bytes([group]) * 10_000] * 100, "label": [f"class {group}"] * 100}
            writer.write_table(pa.table(rows, schema=schema))
    pool = pa.proxy_memory_pool(usual := pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        _, items = listed(Manifest(str(tmp_path / "list.parquet")), tmp_path / "scratch")
    finally:
        pa.set_memory_pool(usual)
    assert len(items) == 6400
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").iterdir()) > 64_000_000
    assert 0 < pool.max_memory() < 20_000_000


def test_a_changed_table_is_unpacked_anew(tmp_path: Path) -> None:
    for data in (b"old", b"newer"):
        write_table(tmp_path / "list.parquet", {"bytes": [data], "label": ["a"]})
        opened, [item] = listed(Manifest(str(tmp_path / "list.parquet")), tmp_path / "scratch")
        assert opened.load(item.ref) == [data]


def test_files_in_a_struct_as_hugging_face_has_them(tmp_path: Path) -> None:
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}]
    write_table(tmp_path / "x.parquet", {"image": images, "label": pa.array(["a", "b"]).dictionary_encode()})
    source = Manifest(str(tmp_path / "x.parquet"), bytes_column="image.bytes", key_column="image.path")
    opened, items = listed(source, tmp_path / "scratch")
    assert [(item.key, item.class_name) for item in items] == [("1_png", "a"), ("00000001", "b")]
    assert opened.load(items[0].ref) == [b"one"]
    assert not items[0].defect
    assert items[1].defect == "its row has no key"
    assert re.search(r"x\.parquet, row 1 \(from 0\)$", items[1].ref)


def test_urls_and_roots(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/dir/a.jpg", b"remote")
    paths = ["a.jpg", "memory://bucket/dir/a.jpg", "https://h.invalid/x/a.b.png?sig=1.5", "/abs/a.0001"]
    write_csv(tmp_path / "list.csv", {"path": paths, "label": "wxyz"})
    opened, items = listed(Manifest(str(tmp_path / "list.csv"), root="memory://bucket/dir/"), tmp_path)
    assert [item.key for item in items] == ["a", "bucket/dir/a", "h_invalid/x/a_b", "abs/a"]
    assert [item.extension for item in items] == ["jpg", "jpg", "png", "jpg"]
    assert [opened.load(item.ref) for item in items[:2]] == [[b"remote"]] * 2
    assert items[3].ref == "/abs/a.0001"
    with pytest.raises((OSError, ValueError)):
        opened.load("memory://bucket/none.jpg")
    with pytest.raises((OSError, ValueError), match="nosuchprotocol"):
        opened.load("nosuchprotocol://x")


@settings(max_examples=20, deadline=None)
@given(num_classes=st.integers(1, 30), fraction=st.floats(0, 1), seed=st.integers(0, 5))
def test_without_splits_classes_are_dealt_by_their_names(
    tmp_path_factory: pytest.TempPathFactory, num_classes: int, fraction: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("hash")
    labels = [f"class {row % num_classes}" for row in range(2 * num_classes)]
    source = Manifest(str(folder / "list.csv"), train_fraction=fraction, seed=seed)
    split_of: dict[str, str] = {}
    for part in (labels, labels[: num_classes // 2 + 1]):
        write_csv(folder / "list.csv", {"path": range(len(part)), "label": part})
        for item in source.open(folder).items():
            assert split_of.setdefault(item.class_name, item.split) == item.split
    assert fraction not in (0, 1) or set(split_of.values()) == {"train" if fraction else "test"}


def test_the_share_of_training_classes_is_about_as_asked(tmp_path: Path) -> None:
    write_csv(tmp_path / "list.csv", {"path": range(2000), "label": range(2000)})
    counts = []
    for seed in (0, 1):
        _, items = listed(Manifest(str(tmp_path / "list.csv"), train_fraction=0.3, seed=seed), tmp_path)
        counts.append({item.class_name for item in items if item.split == "train"})
    assert all(500 < len(count) < 700 for count in counts)
    assert counts[0] != counts[1]
