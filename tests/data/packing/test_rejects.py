"""Samples that cannot be packed are left out and listed; those that are packed twice are listed too."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Recipe, TrainStream
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.reader import Reader
from dmlscale.data.sources import Item
from dmlscale.data.transforms import find_transform
from tests.data.listed import MISSING, Listed, item, picture

ALONE = PackOptions(num_processes=1)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def bitmap() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "bmp")
    return file.getvalue()


GOOD = (item("good1", "a"), item("good2", "b"), item("good3", "b", "test"))
MISSING_ITEM = item("gone", "a")._replace(ref=MISSING)
EMPTY_ITEM = item("hollow", "a", parts=[b""])
BAD = {
    "gone": (MISSING_ITEM, "No such file or directory"),
    "hollow": (EMPTY_ITEM, "the file is empty"),
    "text": (item("text", "a", parts=[b"no picture"]), "is no picture in a format that Pillow knows"),
    "short": (item("short", "a", parts=[picture("short")[:70]]), ""),
    "two": (item("two", "a", parts=[picture("x"), picture("y")]), "has 2 files, must have one"),
    "good1": (item("good1", "b", "test", parts=[picture("another")]), "its key comes twice: the first sample is kept"),
}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_cannot_be_packed_is_listed_with_the_reason(tmp_path: Path, num_processes: int) -> None:
    source = Listed((*GOOD, *(listed for listed, _ in BAD.values())))
    summary = pack(source, tmp_path, PackOptions(num_processes=num_processes))
    rejects = {row["key"]: row for row in rows_of(tmp_path / "rejects.csv")}
    assert set(rejects) == set(BAD)
    for key, (listed, reason) in BAD.items():
        assert reason in rejects[key]["reason"]
        assert rejects[key]["reason"]
        shown = (rejects[key]["split"], rejects[key]["class_name"], rejects[key]["source"])
        assert shown == (listed.split, listed.class_name, listed.ref)
    index = Index.load(tmp_path)
    assert sorted(index.columns.keys.to_pylist()) == ["good1", "good2", "good3"]
    first = index.columns.keys.to_pylist().index("good1")
    assert Reader(index, find_decoder("image")).read(first) == [picture("good1")]
    assert sum(summary.rejects.values()) == len(BAD)
    assert json.loads((tmp_path / "dataset.json").read_text())["rejects"] == summary.rejects
    assert summary.num_rejects == len(BAD)
    assert re.search(rf"rejected: {len(BAD)} .*rejects\.csv", str(summary))


def test_a_wrong_extension_is_no_reject(tmp_path: Path) -> None:
    summary = pack(Listed((item("a", parts=[bitmap()]), item("b", extension="jpeg"))), tmp_path, ALONE)
    assert not summary.rejects
    assert Reader(Index.load(tmp_path), find_decoder("image")).decoded(0).shape[0] == 3


@pytest.mark.parametrize("key", ["gone", "hollow", "text"])
def test_strict_names_the_sample_and_leaves_no_dataset(tmp_path: Path, key: str) -> None:
    listed, reason = BAD[key]
    source = Listed((*GOOD, listed))
    with pytest.raises(DataError, match=rf"sample '{key}' \(.*\): .*{reason}.*repair or remove it, or pack without"):
        pack(source, tmp_path, replace(ALONE, strict=True))
    assert not (tmp_path / "index.arrow").exists()
    repaired = replace(source, listed=(*GOOD, item(key)))
    assert not pack(repaired, tmp_path, replace(ALONE, strict=True)).rejects


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (BAD["good1"][0], r"sample 'good1' \(.*\): its key comes twice: the first sample is kept; repair or remove it"),
        (item("odd")._replace(ref="row 7", defect="has no label"), r"sample 'odd' \(row 7\): has no label; repair"),
    ],
)
def test_strict_also_sees_what_the_list_alone_tells(tmp_path: Path, bad: Item, message: str) -> None:
    source = Listed((*GOOD, bad))
    assert pack(source, tmp_path / "all", ALONE).num_rejects == 1
    with pytest.raises(DataError, match=message):
        pack(source, tmp_path / "strict", replace(ALONE, strict=True))
    assert not list((tmp_path / "strict").iterdir())


def test_strict_also_sees_the_rejects_of_shards_that_are_finished(tmp_path: Path) -> None:
    def stop(count: int, _: int) -> None:
        if count > 32:
            raise KeyboardInterrupt

    bad = tuple(item(f"bad{n}", parts=[b"no picture"]) for n in range(32))
    source = Listed((*bad, *(item(str(n)) for n in range(64))))
    options = PackOptions(shard_size_bytes=1, num_processes=1)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path, options, progress=stop)
    with pytest.raises(DataError, match="pack without strict"):
        pack(source, tmp_path, replace(options, strict=True))
    assert pack(source, tmp_path, options).rejects == {"is no picture in a format that Pillow knows": 32}


def test_without_check_only_what_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    source = Listed((*GOOD, *(BAD[key][0] for key in ("gone", "hollow", "text"))))
    pack(source, tmp_path, replace(ALONE, check=False))
    assert [row["key"] for row in rows_of(tmp_path / "rejects.csv")] == ["gone", "hollow"]
    assert "text" in Index.load(tmp_path).columns.keys.to_pylist()


def test_nothing_but_rejects_is_an_error_that_a_repair_ends(tmp_path: Path) -> None:
    source = Listed((MISSING_ITEM, EMPTY_ITEM, EMPTY_ITEM._replace(key="hollow2")))
    with pytest.raises(DataError, match=r"none of the 3 listed samples can be packed: 2 x the file is empty; 1 x No"):
        pack(source, tmp_path, ALONE)
    assert not list(tmp_path.iterdir())  # what is listed may stay the same when files are repaired


def shrunk() -> tuple[Item, ...]:
    """Class b has no sample left, class c one, class a three."""
    broken = tuple(item(f"b{n}", "b", parts=[b"broken"]) for n in range(3))
    return (*(item(f"a{n}", "a") for n in range(3)), *broken, item("c0", "c"), item("d0", "d", "test"))


def test_a_class_without_samples_keeps_its_label_and_can_be_trained_around(tmp_path: Path) -> None:
    summary = pack(Listed(shrunk()), tmp_path, ALONE)
    assert summary.num_empty_classes == 1
    assert "1 classes have no sample left" in str(summary)
    assert summary.splits["train"].num_single == 1
    index = Index.load(tmp_path)
    assert list(index.class_names) == ["a", "b", "c", "d"]
    assert index.num_classes == 3
    train = index.split("train")
    assert train.class_rows.counts.tolist() == [3, 0, 1, 0]
    plans = EpochPlanner(train.class_rows, Sampling(2, 2, 2), seed=0)
    recipe = Recipe(find_decoder("image", channels=1), find_transform("standardize"))
    with TrainStream(train, plans, recipe, seed=0) as stream:
        batches = [next(stream)[1] for _ in range(plans.num_steps(0))]
    ids = np.concatenate([batch.ids.numpy() for batch in batches])
    assert np.array_equal(np.sort(ids), train.row_ids)
    with pytest.raises(DataError, match="classes_per_batch=3, but there are 2 classes"):
        EpochPlanner(train.class_rows, Sampling(3, 1, 1), seed=0)


def test_a_split_without_samples_left_is_clear(tmp_path: Path) -> None:
    pack(Listed((item("1", "a", parts=[b"broken"]), item("2", "b", "test"))), tmp_path, ALONE)
    train = Index.load(tmp_path).split("train")
    assert len(train) == 0
    with pytest.raises(DataError, match="the split to train on has no samples"):
        EpochPlanner(train.class_rows, Sampling(1, 1, 1), seed=0)


def test_the_same_content_twice_is_listed_with_its_splits(tmp_path: Path) -> None:
    same, other = [picture("same")], [picture("other")]
    listed = (
        item("a", "x", parts=same),
        item("b", "x", parts=other),
        item("c", "y", parts=same),
        item("d", "y", "test", parts=same),
        item("e", "y", "test", parts=[picture("alone")]),
    )
    summary = pack(Listed(listed), tmp_path, ALONE)
    assert (summary.num_duplicates, summary.num_duplicates_across_splits) == (2, 1)
    assert "same content as an earlier sample: 2, 1 of them in another split than the first" in str(summary)
    index = Index.load(tmp_path)
    first = next(key for key in index.columns.keys.to_pylist() if key in "ac")
    later = "c" if first == "a" else "a"
    assert {tuple(row.values()) for row in rows_of(tmp_path / "duplicates.csv")} == {
        (later, "train", first, "train"),
        ("d", "test", first, "train"),
    }
    assert len(index) == 5  # they are all packed


def test_views_are_the_same_content_where_all_files_are(tmp_path: Path) -> None:
    left, right = picture("left"), picture("right")
    listed = (item("a", parts=[left, right]), item("b", parts=[right, left]), item("c", parts=[left, right]))
    assert pack(Listed(listed, "views"), tmp_path, ALONE).num_duplicates == 1
