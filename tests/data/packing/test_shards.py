"""What packing makes of a source, and when it makes it anew."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import ensure_packed, pack
from dmlscale.data.packing.writing import PackOptions, pack_order
from dmlscale.data.reader import Reader
from dmlscale.data.sources import Item
from dmlscale.data.sources.glyphs import Glyphs
from tests.data.listed import Listed, item, mixed_items

ALONE = PackOptions(num_processes=1)
GREY = find_decoder("image", channels=1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_item_comes_back_with_its_label_and_split(packed: Path, small_source: Glyphs, tmp_path: Path) -> None:
    index = Index.load(packed)
    reader = Reader(index, GREY)
    source = small_source.open(tmp_path)
    items = {i.key: i for i in source.items()}
    assert len(index) == len(items)
    for row_id in range(len(index)):
        original = items[index.key(row_id)]
        assert [bytes(part) for part in reader.read(row_id)] == list(source.load(original.ref))
        assert index.class_names[int(index.labels[row_id])] == original.class_name
        assert index.splits[index.columns.splits[row_id]] == original.split


def test_webdataset_reads_the_shards(packed: Path) -> None:
    index = Index.load(packed)
    reader = Reader(index, GREY)
    assert len(index.shards.names) > 2
    shards = [str(packed / name) for name in index.shards.names]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=True))
    assert [sample["__key__"] for sample in samples] == index.columns.keys.to_pylist()
    for row_id, sample in enumerate(samples):
        assert [sample["png"]] == [bytes(part) for part in reader.read(row_id)]
        assert int(sample["cls"]) == index.labels[row_id]


LONG = "folder/" * 30 + "ähnlich"  # 217 bytes in UTF-8


@pytest.mark.parametrize(
    ("kind", "extension", "samples"),
    [
        ("image", "png", {"a": [b"one"], LONG: [b"two" * 500]}),
        ("views", "jpg", {"o/a": [b"left", b"right" * 300], LONG: [b"x" * 512, b"y", b"z" * 513], "c": [b"one"]}),
        ("views", "png", {"many": [b"%d" % view for view in range(120)]}),
        ("array", "npy", {"v": [b"\0" * 1024]}),
        ("audio", "wav", {"w": [b"RIFF"]}),
    ],
)
def test_every_kind_of_sample_comes_back_and_webdataset_reads_it(
    kind: Any, extension: str, samples: dict[str, list[bytes]], tmp_path: Path
) -> None:
    listed = tuple(item(key, key, parts=parts, extension=extension) for key, parts in samples.items())
    pack(Listed(listed, kind), tmp_path, PackOptions(num_processes=1, check=False))
    index = Index.load(tmp_path)
    reader = Reader(index, find_decoder(kind))
    assert {index.key(row): [bytes(part) for part in reader.read(row)] for row in range(len(index))} == samples
    assert index.extensions == (extension,)
    assert {index.key(row): int(n) for row, n in enumerate(index.columns.num_parts)} == {
        key: len(parts) for key, parts in samples.items()
    }
    for sample in webdataset.WebDataset([str(tmp_path / "train-000000.tar")], shardshuffle=False, empty_check=True):
        parts = samples[sample["__key__"]]
        width = max(2, len(str(len(parts) - 1)))
        names = [extension] if len(parts) == 1 else [f"{n:0{width}d}.{extension}" for n in range(len(parts))]
        assert [sample[name] for name in names] == parts
        assert index.class_names[int(sample["cls"])] == sample["__key__"]
        assert not {name for name in sample if not name.startswith("__")} - {*names, "cls"}


def test_train_classes_get_the_first_labels(tmp_path: Path) -> None:
    listed = (
        item("1", "z"),
        item("2", "b", "test"),
        item("3", "a", "test"),
        item("4", "z", "test"),
        item("5", "m"),
    )
    summary = pack(Listed(listed), tmp_path, ALONE)
    index = Index.load(tmp_path)
    assert list(index.class_names) == ["m", "z", "a", "b"]
    assert index.num_classes == index.split("test").num_classes == 2
    assert summary.num_samples == {"train": 2, "test": 3}
    assert summary.num_classes == {"train": 2, "test": 3}
    assert "train: 2 samples, 2 classes of 1 to 1 samples (median 1, 2 of them with one)" in str(summary)


def test_super_classes_and_classes_in_several_splits(mixed: Path) -> None:
    index = Index.load(mixed)
    counts = {split: Counter(i.class_name for i in mixed_items() if i.split == split) for split in index.splits}
    for split, expected in counts.items():
        view = index.split(split)
        found = Counter(index.class_names[label] for label in view.labels.tolist())
        assert found == expected
        per_class = {index.class_names[n]: int(count) for n, count in enumerate(view.class_rows.counts) if count}
        assert per_class == expected
    codes, names = index.super_classes()
    assert [names[code] for code in codes] == [f"s{int(name[1:]) % 3}" for name in index.class_names]
    assert index.num_classes == 12
    assert list(index.class_names)[12:] == ["c12", "c13"]


def test_a_class_without_super_class_is_one_by_itself(tmp_path: Path) -> None:
    listed = (item("1", "a", super_class="s"), item("2", "b"), item("3", "c"), item("4", "d", super_class="s"))
    pack(Listed(listed), tmp_path, ALONE)
    codes, names = Index.load(tmp_path).super_classes()
    assert [names[code] for code in codes] == ["s", "b", "c", "s"]
    assert len(set(codes.tolist())) == 3


def test_shards_hold_short_runs_in_mixed_order(packed: Path) -> None:
    labels = Index.load(packed).split("train").labels
    run_lengths = np.diff(np.flatnonzero(np.diff(labels, prepend=-1, append=-1)))
    assert run_lengths.max() <= 8  # two runs of one class may meet
    assert np.median(run_lengths) == 4
    assert len(np.unique(labels[:40])) >= 5


def test_order_of_packing_has_every_sample_once() -> None:
    labels = np.random.default_rng(1).integers(0, 9, 500).astype(np.int32)
    order = pack_order(labels, 3, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(500))
    assert not np.array_equal(order, pack_order(labels, 3, np.random.default_rng(1)))


def test_packed_set_is_reused_and_other_options_are_refused(tmp_path: Path) -> None:
    source = Listed((item("1"), item("2")))
    assert not ensure_packed(source, tmp_path, ALONE).is_reused
    before = files_of(tmp_path)
    again = ensure_packed(source, tmp_path, PackOptions(num_processes=2, strict=True))
    assert again.is_reused
    assert "found" in str(again)
    assert again.num_samples == {"train": 2}
    assert files_of(tmp_path) == before
    with pytest.raises(DataError, match=r"packed with packing\.run_length=4, now asked for 2"):
        ensure_packed(source, tmp_path, PackOptions(run_length=2))
    with pytest.raises(DataError, match=r"packed with input='image', now asked for 'views'"):
        ensure_packed(Listed(source.listed, "views"), tmp_path)
    with pytest.raises(DataError, match="holds a dataset already"):
        pack(source, tmp_path)


def test_a_dataset_of_the_old_format_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"format_version": 1}')
    (tmp_path / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"format_version 1, this dmlscale reads 2: delete .* pack the dataset again"):
        ensure_packed(Listed((item("1"),)), tmp_path)


def test_folder_cut_off_while_moving_is_packed_again(tmp_path: Path) -> None:
    source = Listed((item("1"), item("2", split="test")))
    pack(source, tmp_path, ALONE)
    whole = files_of(tmp_path)
    (tmp_path / "index.arrow").unlink()
    with pytest.raises(DataError, match="no dataset"):
        Index.load(tmp_path)
    assert not ensure_packed(source, tmp_path, ALONE).is_reused
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ((item("a.b"),), "key 'a.b' is empty or has a dot"),
        ((item(""),), "key '' is empty"),
        ((item("a\0b"),), r"key 'a\\x00b' has the character 0"),
        ((item("__x__/1"),), "key '__x__/1' has .* a first folder like __this__"),
        ((item("1", class_name=""),), "'1' has no class name"),
        ((item("1", split="a/b"),), "split 'a/b' names files"),
        ((item("1", extension="cls"),), "extension 'cls' must be"),
        ((item("1", extension=""),), "extension '' must be"),
        ((), "lists no sample"),
    ],
)
def test_impossible_items_are_named(listed: tuple[Item, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        pack(Listed(listed), tmp_path / "out", ALONE)
    assert not list((tmp_path / "out").iterdir())


def test_unwritable_folder_is_an_error_before_any_item_is_read(tmp_path: Path) -> None:
    class Untouched(Listed):
        def items(self) -> Iterator[Item]:
            raise AssertionError("the source was read")

    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(DataError, match=f"cannot write to {blocker}"):
        pack(Untouched(()), blocker / "sub")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(DataError, match="Permission denied"):
            pack(Untouched(()), tmp_path / "locked")


@pytest.mark.parametrize("name", ["run_length", "shard_size_bytes", "num_processes"])
def test_bad_packing_options_are_named(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}=0, must be at least 1"):
        replace(ALONE, **{name: 0})  # type: ignore[arg-type]


def test_description_tells_source_and_counts(packed: Path) -> None:
    description = json.loads((packed / "dataset.json").read_text())
    assert description["source"] == "glyphs"
    assert description["input"] == "image"
    assert description["options"]["limit_classes"] == 12
    assert "num_processes" not in description["options"]
    assert description["splits"]["train"]["num_classes"] == description["splits"]["test"]["num_classes"] == 12
    assert description["num_classes"] == 24
    assert description["num_train_classes"] == 12
    assert description["num_shards"] == len(list(packed.glob("*.tar")))
    assert description["rejects"] == {}


def test_datasets_of_the_same_pictures_under_other_names_are_told_apart(tmp_path: Path) -> None:
    """A cache of a dataset far away must not take the tables of one for those of the other."""
    listed = (item("1", "cat"), item("2", "dog"))
    renamed = tuple(i._replace(class_name=f"{i.class_name}s") for i in listed)
    facts = []
    for name, items in [("a", listed), ("b", renamed), ("c", listed)]:
        pack(Listed(items), tmp_path / name, ALONE)
        facts.append(json.loads((tmp_path / name / "dataset.json").read_text()))
    assert facts[0]["content_hash"] == facts[1]["content_hash"]
    assert facts[0]["version"] == facts[2]["version"] != facts[1]["version"]
