from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.layout import FORMAT_VERSION
from dmlscale.data.loader import Position, Recipe, TrainStream
from dmlscale.data.packing import index_writer
from dmlscale.data.packing.index_writer import IndexWriter, sort_by_class, write_classes, write_shard_table
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.transforms import find_transform

ROWS_PER_SHARD = 100_000


def columns_of(labels: NDArray[np.integer], splits: NDArray[np.integer], first_row: int = 0) -> dict[str, NDArray]:
    """Places that tell the row they belong to."""
    rows = first_row + np.arange(len(labels))
    return {
        "shard": rows // ROWS_PER_SHARD,
        "offset": rows % ROWS_PER_SHARD * 1024 + 512,
        "size": 100 + rows % 7,
        "num_parts": 1 + rows % 3,
        "extension": rows % 2,
        "label": labels,
        "split": splits,
        "content_hash": np.uint64(2**64 - 1) - rows.astype(np.uint64),
    }


def write_dataset(
    folder: Path, labels: NDArray, splits: NDArray, num_classes: int, sizes: Sequence[int] | None = None
) -> Index:
    """A dataset without shards, appended in pieces of the given sizes."""
    names = [f"key{row}" for row in range(len(labels))]
    with IndexWriter(folder, ["train", "test"], ["png", "jpg"]) as writer:
        start = 0
        for size in sizes or [len(labels)]:
            part = slice(start, start + size)
            writer.append(names[part], columns_of(labels[part], splits[part], start))
            start += size
        writer.finish(num_classes)
    write_classes(folder, [f"class{n}" for n in range(num_classes)], [""] * num_classes)
    counts = np.bincount(np.arange(len(labels)) // ROWS_PER_SHARD).tolist()
    write_shard_table(folder, [f"train-{n:06d}.tar" for n in range(len(counts))], [0] * len(counts), counts)
    description = {"format_version": FORMAT_VERSION, "num_train_classes": num_classes, "input": "image"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return Index.load(folder)


@settings(deadline=None, max_examples=40)
@given(
    cells=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    chunk=st.integers(1, 70),
)
def test_what_is_appended_comes_back_mapped(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[int, int]], cuts: list[int], chunk: int
) -> None:
    labels, splits = np.array(cells).T
    ends = sorted(min(cut, len(cells)) for cut in cuts)
    sizes = np.diff([0, *ends, len(cells)]).tolist()  # some may be 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_writer, "CHUNK", chunk)
        index = write_dataset(tmp_path_factory.mktemp("index"), labels, splits, 6, sizes)
    written = columns_of(labels, splits)
    columns: list[tuple[str, NDArray]] = [
        ("shard", index.columns.shards),
        ("offset", index.columns.offsets),
        ("size", index.columns.sizes),
        ("num_parts", index.columns.num_parts),
        ("extension", index.columns.extensions),
        ("label", index.columns.labels),
        ("split", index.columns.splits),
        ("content_hash", index.columns.hashes),
    ]
    for name, found in columns:
        assert np.array_equal(found, written[name])
        assert not found.flags.owndata  # a view of the file
    assert index.columns.keys.to_pylist() == [f"key{row}" for row in range(len(cells))]
    assert np.array_equal(index.columns.by_class, np.lexsort((np.arange(len(cells)), labels, splits)))
    assert not list(index.storage.local_path("").glob("columns*"))


@settings(deadline=None)
@given(
    cells=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=80),
    chunk=st.integers(1, 90),
)
def test_sorting_by_counting_is_sorting(cells: list[tuple[int, int]], chunk: int) -> None:
    splits, labels = np.array(cells, np.int64).reshape(-1, 2).T
    out = np.full(len(cells), -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_writer, "CHUNK", chunk)
        sort_by_class(splits.astype(np.int8), labels.astype(np.int32), 3, 4, out=out)
    assert np.array_equal(out, np.lexsort((np.arange(len(cells)), labels, splits)))


def test_an_error_leaves_no_columns_and_no_index(tmp_path: Path) -> None:
    columns = columns_of(np.zeros(3, np.int32), np.zeros(3, np.int8))
    del columns["label"]
    with pytest.raises(KeyError, match="label"), IndexWriter(tmp_path, ["train"], ["png"]) as writer:
        writer.append(["a", "b", "c"], columns)
    assert not list(tmp_path.iterdir())


def test_an_index_without_rows_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    with IndexWriter(tmp_path, ["train"], ["png"]) as writer:
        writer.finish(0)
    (tmp_path / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION}))
    with pytest.raises(DataError, match="at least one row"):
        Index.load(tmp_path)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 * 10^6 rows of 20,000 classes."""
    folder = tmp_path_factory.mktemp("large")
    labels = np.random.default_rng(0).integers(0, 20_000, 2 * 10**6).astype(np.int32)
    write_dataset(folder, labels, np.zeros(len(labels), np.int8), 20_000)
    return folder


@pytest.mark.parametrize("window_shards", [0, 4])
def test_continuing_after_a_million_samples_takes_no_time(large: Path, window_shards: int) -> None:
    """Nothing before the place is read, decoded or drawn again: there are no shards at all."""
    started = time.process_time()
    index = Index.load(large).split("train")
    opened = time.process_time() - started
    sampling = Sampling(64, 4, 8, window_shards=window_shards)
    plans = EpochPlanner(index.class_rows, sampling, seed=0, shards=index.shard_rows)
    recipe = Recipe(find_decoder("image"), find_transform("standardize"))
    step = 10**6 // sampling.batch_size
    with TrainStream(index, plans, recipe, seed=0) as stream:  # plans the epoch, as one that begins does
        started = time.process_time()
        stream.load_state_dict({"epoch": 0, "step": step})
        ids = stream.global_ids(Position(0, step))
        took = time.process_time() - started
        assert stream.state_dict() == {"epoch": 0, "step": step}
    assert len(ids) > sampling.batch_size / 2
    assert opened < 1
    assert took < 1
