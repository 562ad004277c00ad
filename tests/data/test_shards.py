from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.reader import Reader
from dmlscale.data.shards import ensure_packed, pack
from dmlscale.data.sources import SourceItem
from dmlscale.data.sources.glyphs import Glyphs
from dmlscale.data.spool import Spool


@dataclass(frozen=True)
class Listed:
    """A source that yields given items."""

    listed: tuple[SourceItem, ...]
    num_items: int | None = None

    def items(self) -> Iterator[SourceItem]:
        yield from self.listed


def item(key: str, class_name: str = "a", split: str = "train") -> SourceItem:
    return SourceItem(key, key.encode() * 3, "png", class_name, split)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_item_comes_back_with_its_label_and_split(packed: Path, small_source: Glyphs) -> None:
    index = Index.load(packed)
    reader = Reader(index, channels=1)
    items = {i.key: i for i in small_source.items()}
    assert len(index) == len(items)
    for row_id in range(len(index)):
        original = items[index.key(row_id)]
        assert bytes(reader.read(row_id)) == original.data
        assert index.class_names[index.labels[row_id]] == original.class_name
        assert index.splits[index.columns.splits[row_id]] == original.split


def test_webdataset_reads_the_shards(packed: Path) -> None:
    index = Index.load(packed)
    reader = Reader(index, channels=1)
    assert len(index.shard_names) > 2
    shards = [str(packed / name) for name in index.shard_names]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=True))
    assert [sample["__key__"] for sample in samples] == index.columns.keys.to_pylist()
    for row_id, sample in enumerate(samples):
        assert sample["png"] == bytes(reader.read(row_id))
        assert int(sample["cls"]) == index.labels[row_id]


def test_two_packs_are_the_same_bytes(packed: Path, small_source: Glyphs, tmp_path: Path) -> None:
    pack(small_source, tmp_path, shard_size_bytes=150_000)
    assert files_of(tmp_path) == files_of(packed)


def test_train_classes_get_the_first_labels(tmp_path: Path) -> None:
    listed = (
        item("1", "z"),
        item("2", "b", "test"),
        item("3", "a", "test"),
        item("4", "z", "test"),
        item("5", "m"),
    )
    summary = pack(Listed(listed), tmp_path)
    index = Index.load(tmp_path)
    assert index.class_names == ("m", "z", "a", "b")
    assert index.num_classes == index.split("test").num_classes == 2
    assert summary.num_samples == {"train": 2, "test": 3}
    assert summary.num_classes == {"train": 2, "test": 3}
    assert "train: 2 samples, 2 classes" in str(summary)


def test_shards_hold_short_runs_in_mixed_order(packed: Path) -> None:
    labels = Index.load(packed).split("train").labels
    run_lengths = np.diff(np.flatnonzero(np.diff(labels, prepend=-1, append=-1)))
    assert run_lengths.max() <= 8  # two runs of one class may meet
    assert np.median(run_lengths) == 4
    assert len(np.unique(labels[:40])) >= 5


def test_packed_set_is_reused_and_other_options_are_refused(tmp_path: Path) -> None:
    source = Listed((item("1"), item("2")))
    assert not ensure_packed(source, tmp_path).is_reused
    before = files_of(tmp_path)
    again = ensure_packed(source, tmp_path)
    assert again.is_reused
    assert "found" in str(again)
    assert files_of(tmp_path) == before
    with pytest.raises(DataError, match=r"packed with packing\.run_length=4, now asked for 2"):
        ensure_packed(source, tmp_path, run_length=2)
    with pytest.raises(DataError, match="holds a dataset already"):
        pack(source, tmp_path)


def test_interrupted_pack_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    source = Listed((item("1"), item("2")))
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())
    counts: list[int] = []
    pack(source, tmp_path, progress=counts.append)
    assert counts == [1, 2]


def test_leftovers_of_a_killed_pack_are_removed_but_not_those_of_a_running_one(tmp_path: Path) -> None:
    for name in (".packing-dead", ".packing-alive"):
        (tmp_path / name).mkdir()
    Spool.create(tmp_path / ".packing-dead" / "spool").__exit__()
    with Spool.create(tmp_path / ".packing-alive" / "spool"):
        pack(Listed((item("1"),)), tmp_path)
    assert not (tmp_path / ".packing-dead").exists()
    assert (tmp_path / ".packing-alive").exists()


def test_folder_cut_off_while_moving_is_packed_again(tmp_path: Path) -> None:
    source = Listed((item("1"), item("2", split="test")))
    pack(source, tmp_path, shard_size_bytes=1)
    whole = files_of(tmp_path)
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(DataError, match="no dataset"):
        Index.load(tmp_path)
    assert not ensure_packed(source, tmp_path, shard_size_bytes=1).is_reused
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ((item("1"), item("1")), "key '1' comes twice"),
        ((item("a.b"),), "has a dot"),
        ((), "yields nothing"),
        ((SourceItem("1", b"", "png", "a", "train"),), "sample '1' has no bytes"),
    ],
)
def test_bad_items_are_named(listed: tuple[SourceItem, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        pack(Listed(listed), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_unwritable_folder_is_an_error_before_any_item_is_read(tmp_path: Path) -> None:
    class Untouched(Listed):
        def items(self) -> Iterator[SourceItem]:
            raise AssertionError("the source was read")

    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(DataError, match=f"cannot write to {blocker}"):
        pack(Untouched(()), blocker / "sub")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(DataError, match="Permission denied"):
            pack(Untouched(()), tmp_path / "locked")


def test_bad_packing_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run_length=0"):
        pack(Listed((item("1"),)), tmp_path, run_length=0)


def test_description_tells_source_and_counts(packed: Path) -> None:
    description = json.loads((packed / "dataset.json").read_text())
    assert description["source"] == "glyphs"
    assert description["options"]["limit_classes"] == 12
    assert "num_processes" not in description["options"]
    assert description["num_classes"] == {"train": 12, "test": 12}
    assert description["num_classes_total"] == 24
