from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.packing import item_table
from dmlscale.data.packing.item_table import ItemTable, write_items
from dmlscale.data.sources import Item
from tests.data.listed import item

NAMES = st.text("abcé /_-1", min_size=1, max_size=6)


@st.composite
def lists(draw: st.DrawFn) -> list[Item]:
    """Items in any order; keys and classes may repeat."""
    classes = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    items = st.builds(
        Item,
        key=NAMES,
        class_name=st.sampled_from(classes),
        split=st.sampled_from(["train", "test", "a_split"]),
        ref=st.text(max_size=9),
        extension=st.sampled_from(["png", "jpg", "bmp"]),
        super_class=st.just(""),
        defect=st.just(""),
    )
    return draw(st.lists(items, min_size=1, max_size=40))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few items fill several."""
    monkeypatch.setattr(item_table, "_CHUNK", 7)


def written(items: list[Item], folder: Path) -> ItemTable:
    return write_items(iter(items), folder / "items.arrow")


@settings(deadline=None, max_examples=60)
@given(lists())
def test_items_come_back_by_position(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    table = written(items, tmp_path_factory.mktemp("table"))
    assert len(table) == len(items)
    positions = np.random.default_rng(0).permutation(len(items))
    assert table.keys(positions) == [items[n].key for n in positions]
    for position, sample in zip(positions.tolist(), table.samples(positions), strict=True):
        original = items[position]
        assert (sample.position, sample.key, sample.ref, sample.extension) == (
            position, original.key, original.ref, original.extension,
        )  # fmt: skip
        assert table.class_names[sample.label] == original.class_name
        assert table.split_names[table.splits[position]] == original.split


@settings(deadline=None, max_examples=60)
@given(lists())
def test_labels_are_those_of_train_first_and_by_name(
    tmp_path_factory: pytest.TempPathFactory, items: list[Item]
) -> None:
    table = written(items, tmp_path_factory.mktemp("table"))
    in_train = sorted({i.class_name for i in items if i.split == "train"})
    others = sorted({i.class_name for i in items} - set(in_train))
    assert table.class_names == (*in_train, *others)
    assert table.num_train_classes == len(in_train)
    splits = {i.split for i in items}
    assert table.split_names == tuple(sorted(splits, key=lambda name: (name != "train", name)))


@settings(deadline=None, max_examples=60)
@given(lists())
def test_repeated_are_the_keys_that_came_before(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    table = written(items, tmp_path_factory.mktemp("table"))
    keys = [i.key for i in items]
    assert table.repeated.tolist() == [n for n, key in enumerate(keys) if key in keys[:n]]


@settings(deadline=None, max_examples=100)
@given(lists())
def test_keys_that_a_source_makes_are_numbered(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    folder = tmp_path_factory.mktemp("table")
    table = write_items(iter(items), folder / "items.arrow", makes_keys=True)
    pairs = [(i.key, i.ref) for i in items]
    assert table.repeated.tolist() == [n for n, pair in enumerate(pairs) if pair in pairs[:n]]
    kept = np.setdiff1d(np.arange(len(items)), table.repeated)
    keys = table.keys(kept)
    assert len(set(keys)) == len(keys)
    assert [sample.key for sample in table.samples(kept)] == keys
    seen: set[str] = set()
    for position, key in zip(kept.tolist(), keys, strict=True):
        plain = items[position].key
        assert (key == plain) == (plain not in seen)
        assert key == plain or re.fullmatch(rf"{re.escape(plain)}-\d+", key)
        seen.add(plain)


def test_a_number_passes_over_keys_that_are_there(tmp_path: Path) -> None:
    items = [item(key)._replace(ref=str(n)) for n, key in enumerate(["a", "a", "a-2", "a", "b", "a-2"])]
    table = write_items(iter(items), tmp_path / "items.arrow", makes_keys=True)
    assert table.keys(np.arange(6)) == ["a", "a-3", "a-2", "a-4", "b", "a-2-2"]


def test_classes_of_two_super_classes_are_counted(tmp_path: Path) -> None:
    items = [item(str(n), "ab"[n % 2], super_class=s) for n, s in enumerate(["s", "s", "t", "s", ""])]
    table = written(items, tmp_path)
    assert table.num_ambiguous_classes == 1
    assert table.super_classes == ("s", "s")


@settings(deadline=None, max_examples=60)
@given(lists(), st.data())
def test_the_digest_sees_every_change_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, items: list[Item], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("table")
    digest = written(items, folder).digest
    assert written(items, folder).digest == digest
    position = data.draw(st.integers(0, len(items) - 1))
    name = data.draw(st.sampled_from(["key", "class_name", "ref", "super_class"]))
    changed = items[position]._replace(**{name: getattr(items[position], name) + "x"})
    assert written([*items[:position], changed, *items[position + 1 :]], folder).digest != digest
    assert written([*items, item("one more")], folder).digest != digest
    if len(items) > 1:
        assert written(items[:-1], folder).digest != digest


def test_the_digest_knows_where_an_item_ends(tmp_path: Path) -> None:
    first = [item("a", super_class="bc"), item("d")]
    second = [item("a", super_class="b"), item("cd", parts=[b"x"])._replace(ref=first[1].ref)]
    assert written(first, tmp_path).digest != written(second, tmp_path).digest


def test_progress_counts_what_is_listed(tmp_path: Path) -> None:
    counts: list[int] = []
    write_items((item(str(n)) for n in range(20)), tmp_path / "items.arrow", counts.append)
    assert counts == [7, 14, 20]


def test_more_splits_or_extensions_than_an_index_holds_are_an_error(tmp_path: Path) -> None:
    written([item(str(n), split=f"s{n}") for n in range(127)], tmp_path)
    with pytest.raises(DataError, match=r"more than 127 splits or file extensions, e\.g\. s0, s1"):
        written([item(str(n), split=f"s{n}") for n in range(128)], tmp_path)


def test_items_with_a_defect_are_left_out_and_listed(tmp_path: Path) -> None:
    bad = Item("b", "", "train", "row 7", "", defect="has no label")
    table = written([item("a"), bad, item("c")], tmp_path)
    assert table.keys(np.arange(len(table))) == ["a", "c"]
    assert table.defective.read_text().split() == ["b,train,,row", "7,has", "no", "label"]
    assert written([item("a"), item("c")], tmp_path).digest != table.digest
    with pytest.raises(DataError, match="lists no sample that can be packed: the first one has 'has no label'"):
        written([bad], tmp_path)
