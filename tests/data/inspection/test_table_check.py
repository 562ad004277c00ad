"""Tables that do not fit the shards, or each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.data.index import Index
from dmlscale.data.inspection import table_check
from dmlscale.data.inspection.overview import look_at
from dmlscale.data.inspection.table_check import key_hashes
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from tests.data.damage import change_table, found, place
from tests.data.listed import Listed, item


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_swapped_labels_in_the_index(copy: Path) -> None:
    index = Index.load(copy)
    labels = index.columns.labels.copy()
    other = int(np.flatnonzero(labels[: index.shards.first_rows[1]] != labels[0])[0])
    labels[[0, other]] = labels[[other, 0]]
    change_table(copy, "index.arrow", {"label": labels})
    tables, version, *problems = found(copy)
    assert tables[0] == "index.arrow"
    assert "by_class" in tables[2]
    assert version[0] == "dataset.json"
    assert version[2].startswith("version is ")
    assert problems == [
        (*place(index, row)[:2], f"its .cls says '{labels[swapped]}', the index says label {labels[row]}")
        for row, swapped in ((0, other), (other, 0))
    ]


def test_keys_that_come_twice(copy: Path) -> None:
    index = Index.load(copy)
    keys = index.columns.keys.to_pylist()
    renamed, keys[7] = keys[7], keys[2]
    change_table(copy, "index.arrow", {"key": keys})
    twice, *names = found(copy)
    assert twice == ("index.arrow", keys[2], "the key comes twice: in rows 2 and 7")
    assert (index.shards.names[0], keys[2], f"its member in the shard has the name '{renamed}.png'") in names


def test_samples_that_are_not_where_the_index_says(copy: Path) -> None:
    index = Index.load(copy)
    offsets, sizes = index.columns.offsets.copy(), index.columns.sizes.copy()
    offsets[4] += 512
    sizes[5] -= 1
    offsets[6] = index.shards.sizes[0]
    change_table(copy, "index.arrow", {"offset": offsets, "size": sizes})
    problems = found(copy)
    key = index.key
    assert ("index.arrow", key(6), "row 6: its offset and size lead outside its shard") in problems
    for expected in (
        (key(4), f"no file begins at its offset {offsets[4]:,}"),
        (key(5), f"has {sizes[5] + 1:,} bytes, the index says {sizes[5]:,}"),
        (key(6), f"no file begins at its offset {offsets[6]:,}"),
    ):
        assert (index.shards.names[0], *expected) in problems


@pytest.mark.parametrize("wrong", ["swapped", "twice"])
def test_a_wrong_order_by_class(copy: Path, wrong: str) -> None:
    by_class = Index.load(copy).columns.by_class.copy()
    by_class[[20, 21]] = by_class[[21, 20]] if wrong == "swapped" else by_class[20]
    change_table(copy, "index.arrow", {"by_class": by_class})
    for quick in (False, True):
        ((table, _, what),) = found(copy, quick=quick)
        assert table == "index.arrow"
        assert what == "row 21: column 'by_class' does not list the rows by split and class"


def test_codes_that_lead_nowhere_end_the_comparison(copy: Path) -> None:
    index = Index.load(copy)
    codes = index.columns.extensions.copy()
    codes[30:40] = 5
    change_table(copy, "index.arrow", {"extension": codes})
    what = "row 30: its entry in column 'extension' leads outside the 1 names; so are 9 other rows"
    assert found(copy) == [("index.arrow", index.key(30), what)]


def test_a_description_and_names_that_do_not_fit(copy: Path) -> None:
    index = Index.load(copy)
    description = json.loads((copy / "dataset.json").read_text())
    num_samples = description["splits"]["train"]["num_samples"]
    description["splits"]["train"]["num_samples"] = num_samples + 1
    description["num_train_classes"] = 3
    (copy / "dataset.json").write_text(json.dumps(description))
    change_table(copy, "classes.arrow", {"name": [index.class_names[0], *index.class_names[:-1]]})
    problems = found(copy, quick=True)
    assert problems[0] == ("classes.arrow", "", f"the name {index.class_names[0]!r} comes 2 times")
    assert [problem[0] for problem in problems[1:]] == ["dataset.json"] * 3
    for word, (_, _, what) in zip(("splits is", "num_train_classes is 3", "version is"), problems[1:], strict=True):
        assert what.startswith(word)


def describe(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_train_classes": 11}, "num_train_classes is 11, but 'train' has samples of label 11"),
        ({"num_train_classes": 13}, "num_train_classes is 13, but 'train' has no sample of label 12"),
        ({"num_train_classes": 99}, "num_train_classes is 99, must be 0 to 24"),
        ({"num_duplicates_across_splits": 3}, "num_duplicates_across_splits is 3, the tables say 0"),
        ({"content_hash": "x"}, "content_hash is 'x', but '"),
        ({"version": "x"}, "version is 'x', but '"),
    ],
)
def test_a_changed_description(copy: Path, change: dict[str, object], what: str) -> None:
    describe(copy, **change)
    ((where, _, found_what),) = found(copy, quick=True)
    assert where == "dataset.json"
    assert found_what.startswith(what)


def test_names_of_classes_that_were_exchanged(copy: Path) -> None:
    """Each sample then has another class by name, and nothing else differs."""
    names = list(Index.load(copy).class_names)
    names[2], names[3] = names[3], names[2]
    change_table(copy, "classes.arrow", {"name": names})
    order, version = found(copy, quick=True)
    assert order[2].startswith("the names are not sorted")
    assert version[2].startswith("version is")


def test_files_beside_the_tables(copy: Path) -> None:
    (copy / "rejects.csv").write_text("key,split,class_name,source,reason\na,train,b,c,d\n")
    (copy / "duplicates.csv").unlink()
    (copy / "train-000099.tar").write_bytes(b"left over")
    rejects, duplicates, shard = found(copy, quick=True)
    assert rejects == ("rejects.csv", "", "has 1 rows, num_rejects of dataset.json is 0")
    assert duplicates[0] == "duplicates.csv"
    assert "cannot be read" in duplicates[2]
    assert shard == ("train-000099.tar", "", "lies beside the dataset, and the index does not list it")


def test_an_overview_of_a_dataset_with_an_empty_split_tells_of_the_others(tmp_path: Path) -> None:
    listed = (item("1", "a", parts=[b"broken"]), item("2", "b", "test"), item("3", "b", "query"))
    pack(Listed(listed), tmp_path, PackOptions(num_processes=1))
    overview = look_at(Index.load(tmp_path))
    assert [(set(overlap.splits), overlap.num_shared) for overlap in overview.overlaps] == [({"query", "test"}, 1)]


@given(st.lists(st.text(max_size=5), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 40))
def test_hashes_tell_keys_apart(keys: list[str], skipped: int, block: int) -> None:
    """Also of a part of a column, whose buffers begin before it, and in blocks of any size."""
    column = pa.array([key.encode("utf-8", "replace").decode() for key in keys], pa.large_string())[skipped:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_check, "_KEY_BYTES", block)
        hashes = key_hashes(column).tolist()
    assert hashes == key_hashes(column).tolist()
    of_key: dict[str, set[int]] = {}
    for key, number in zip(column.to_pylist(), hashes, strict=True):
        of_key.setdefault(key, set()).add(number)
    assert all(len(numbers) == 1 for numbers in of_key.values())
    assert len(set(hashes)) == len(of_key)
