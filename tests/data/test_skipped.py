"""Samples that are lost: skipped, counted, and without effect on the others."""

from __future__ import annotations

import logging
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Recipe, TrainStream, eval_batches
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.reader import LossKind, LostSampleError
from dmlscale.data.skipped import KINDS, Skipped
from dmlscale.data.transforms import find_transform
from dmlscale.data.types import Batch

SAMPLING = Sampling(8, 3, 4)
RECIPE = Recipe(find_decoder("image", channels=1), find_transform("standardize_shift"))


def error(kind: LossKind = "cut off", text: str = "it is gone") -> LostSampleError:
    return LostSampleError(kind, text)


def test_counts_each_sample_once_and_tells_each_once() -> None:
    skipped = Skipped(10)
    cut_off, undecodable = KINDS.index("cut off"), KINDS.index("cannot be decoded")
    for row_id, kind in [(3, cut_off), (3, cut_off), (5, undecodable)]:
        skipped.add(row_id, error(KINDS[kind]))
    assert len(skipped) == 2
    assert skipped.take_new() == [(3, cut_off), (5, undecodable)]
    skipped.add(7, error(KINDS[cut_off]))
    skipped.add(5, error(KINDS[undecodable]))
    assert skipped.take_new() == [(7, cut_off)]
    assert skipped.take_new() == []
    assert len(skipped) == 3


def test_more_than_the_limit_is_an_error_each_time() -> None:
    skipped = Skipped(2)
    skipped.add(1, error())
    skipped.add(2, error())
    for _ in range(2):  # who catches it and asks again gets it again
        with pytest.raises(DataError, match=r"3 samples .* data\.max_skipped allows \(2 on this .*: it is lost"):
            skipped.add(9, error(text="it is lost"))


def test_warnings_become_rare(caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped(10**6)
    with caplog.at_level(logging.WARNING, "dmlscale.data"):
        for row_id in range(1000):
            skipped.add(row_id, error())
            skipped.add(row_id, error())
    told = [int(record.getMessage().split()[1]) for record in caplog.records if record.name.startswith("dmlscale")]
    assert told == [1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 256, 512]


@pytest.fixture
def copy(mixed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed, tmp_path / "copy"))


def epoch_of(index: Index, num_ranks: int = 1, rank: int = 0, num_workers: int = 0) -> tuple[list[Batch], int]:
    """The batches of the first epoch, and how many samples were skipped."""
    plans = EpochPlanner(index.class_rows, SAMPLING, seed=2)
    options: dict[str, Any] = {
        "rank": rank,
        "num_ranks": num_ranks,
        "num_workers": num_workers,
        "max_skipped": len(index),
    }
    with TrainStream(index, plans, RECIPE, seed=2, **options) as stream:
        batches = [batch for _, batch in islice(stream, plans.num_steps(0))]
        return batches, len(stream.skipped)


def assert_rest_is_unchanged(damaged: Index, whole: Index, lost: set[int], num_ranks: int, num_workers: int) -> None:
    for rank in range(num_ranks):
        found, num_skipped = epoch_of(damaged, num_ranks, rank, num_workers)
        num_lost = 0
        for batch, expected in zip(found, epoch_of(whole, num_ranks, rank)[0], strict=True):
            keep = [n for n, row_id in enumerate(expected.ids.tolist()) if row_id not in lost]
            assert torch.equal(batch.ids, expected.ids[keep])
            assert torch.equal(batch.labels, expected.labels[keep])
            assert torch.equal(batch.images, expected.images[keep])
            stream_of_sample = np.repeat(list(expected.stream_sizes), list(expected.stream_sizes.values()))[keep]
            streams, sizes = np.unique(stream_of_sample, return_counts=True)
            assert batch.stream_sizes == dict(zip(streams.tolist(), sizes.tolist(), strict=True))
            num_lost += len(expected.ids) - len(keep)
        assert num_lost <= num_skipped <= len(lost)  # it reads ahead into the next epoch
        assert num_skipped == len(lost) or num_ranks > 1


@settings(deadline=None, max_examples=10)
@given(
    positions=st.sets(st.integers(0, 239), min_size=1, max_size=40),
    num_ranks=st.sampled_from([1, 3]),
    num_workers=st.integers(0, 2),
    data=st.data(),
)
def test_flipped_bytes_lose_their_samples_and_no_others(
    mixed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    positions: set[int],
    num_ranks: int,
    num_workers: int,
    data: st.DataObject,
) -> None:
    copy = Path(shutil.copytree(mixed, tmp_path_factory.mktemp("flipped") / "copy"))
    index = Index.load(copy).split("train")
    lost = set(index.row_ids[sorted(positions)].tolist())
    for row_id in lost:
        columns = index.columns
        with (copy / index.shards.names[columns.shards[row_id]]).open("r+b") as shard:
            place = int(columns.offsets[row_id]) + data.draw(st.integers(0, int(columns.sizes[row_id]) - 1))
            (old,) = os.pread(shard.fileno(), 1, place)
            os.pwrite(shard.fileno(), bytes([old ^ data.draw(st.integers(1, 255))]), place)
    assert_rest_is_unchanged(index, Index.load(mixed).split("train"), lost, num_ranks, num_workers)
    shutil.rmtree(copy)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_shard_loses_what_is_behind_the_cut(copy: Path, mixed: Path, damage: str) -> None:
    index = Index.load(copy).split("train")
    columns, shard = index.columns, copy / index.shards.names[2]
    cut = {"missing": 0, "empty": 0, "truncated": int(columns.offsets[index.shards.first_rows[2] + 20]) + 5}[damage]
    if damage == "missing":
        shard.unlink()
    else:
        os.truncate(shard, cut)
    rows = np.flatnonzero(columns.shards == 2)
    lost = set(rows[columns.offsets[rows] + columns.sizes[rows] > cut].tolist())
    assert len(lost) == (12 if damage == "truncated" else 32)
    assert_rest_is_unchanged(index, Index.load(mixed).split("train"), lost, num_ranks=2, num_workers=2)


def test_the_limit_stops_the_stream_with_one_clear_error(copy: Path) -> None:
    index = Index.load(copy).split("train")
    (copy / index.shards.names[0]).unlink()
    plans = EpochPlanner(index.class_rows, SAMPLING, seed=2)
    with TrainStream(index, plans, RECIPE, seed=2, num_workers=2, max_skipped=3) as stream:
        for _ in range(2):  # also if the caller goes on
            with pytest.raises(DataError, match=r"samples cannot be read, more than data\.max_skipped allows \(3 on"):
                list(stream)
    with (
        TrainStream(index, plans, RECIPE, seed=2) as strict,
        pytest.raises(DataError, match=r"1 samples cannot be read.*train-000000\.tar is missing: restore it"),
    ):
        list(strict)


def test_a_batch_without_any_sample_is_one_clear_error(copy: Path) -> None:
    index = Index.load(copy).split("train")
    for name in index.shards.names:
        os.truncate(copy / name, 0)
    plans = EpochPlanner(index.class_rows, SAMPLING, seed=2)
    with (
        TrainStream(index, plans, RECIPE, seed=2, max_skipped=10**6) as stream,
        pytest.raises(DataError, match=r"none of 64 samples tried can be read"),
    ):
        list(stream)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_evaluation_goes_on_without_them(copy: Path, num_ranks: int) -> None:
    index = Index.load(copy).split("train")
    (copy / index.shards.names[1]).unlink()
    lost = set(np.flatnonzero(index.columns.shards == 1).tolist())
    shares = [
        eval_batches(index, RECIPE, batch_size=7, rank=rank, num_ranks=num_ranks, max_skipped=len(lost))
        for rank in range(num_ranks)
    ]
    seen = [row_id for share in shares for batch in share for row_id in batch.ids.tolist()]
    assert seen == [row_id for row_id in index.row_ids.tolist() if row_id not in lost]
    with pytest.raises(DataError, match=r"32 samples cannot be read, more than data\.max_skipped"):
        list(eval_batches(index, RECIPE, batch_size=7, max_skipped=len(lost) - 1))
