from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.loader import Position, TrainStream, eval_batches
from dmlscale.data.transforms import find_transform
from dmlscale.data.types import Batch

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

STREAMS = 4


def stream_of(index: Index, **options: Any) -> TrainStream:
    defaults: dict[str, Any] = {
        "classes_per_batch": 4,
        "samples_per_class": 3,
        "num_streams": STREAMS,
        "seed": 11,
        "transform": find_transform("standardize_shift"),
        "channels": 1,
    }
    return TrainStream(index, **defaults | options)


def take(index: Index, count: int, **options: Any) -> list[tuple[Position, Batch]]:
    with stream_of(index, **options) as stream:
        return list(islice(stream, count))


def assert_same(left: list[tuple[Position, Batch]], right: list[tuple[Position, Batch]]) -> None:
    assert [position for position, _ in left] == [position for position, _ in right]
    for (_, a), (_, b) in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batch_holds_the_samples_it_names(train_index: Index) -> None:
    for _, batch in take(train_index, 5):
        assert batch.images.shape == (len(batch.ids), 1, 32, 32)
        assert np.array_equal(batch.labels.numpy(), train_index.columns.labels[batch.ids.numpy()])


def test_epoch_has_every_sample_once(train_index: Index) -> None:
    with stream_of(train_index) as stream:
        batches = list(islice(stream, 2 * stream.steps_per_epoch))
    for epoch in (batches[: stream.steps_per_epoch], batches[stream.steps_per_epoch :]):
        ids = torch.cat([batch.ids for _, batch in epoch]).numpy()
        assert np.array_equal(np.sort(ids), train_index.row_ids)
    assert batches[stream.steps_per_epoch - 1][0] == Position(1, 0)


@pytest.mark.parametrize("num_ranks", range(1, STREAMS + 1))
def test_ranks_share_the_same_global_batches_and_pixels(train_index: Index, num_ranks: int) -> None:
    whole = take(train_index, 6)
    parts = [take(train_index, 6, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for step, (position, batch) in enumerate(whole):
        assert all(part[step][0] == position for part in parts)
        ids = torch.cat([part[step][1].ids for part in parts])
        images = torch.cat([part[step][1].images for part in parts])
        assert all(len(part[step][1].ids) for part in parts)
        order, expected = ids.argsort(), batch.ids.argsort()
        assert torch.equal(ids[order], batch.ids[expected])
        assert torch.equal(images[order], batch.images[expected])


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_threads_do_not_change_anything(train_index: Index, num_workers: int) -> None:
    assert_same(take(train_index, 20), take(train_index, 20, num_workers=num_workers))
    assert_same(take(train_index, 20), take(train_index, 20, num_workers=num_workers, cache_bytes=0))


@settings(deadline=None, max_examples=15)
@given(stop=st.integers(0, 40))
def test_continued_stream_equals_the_uninterrupted_one(train_index: Index, stop: int) -> None:
    with stream_of(train_index) as stream:
        before = list(islice(stream, stop))
        state = stream.state_dict()
        after = list(islice(stream, 3))
    assert state == (before[-1][0]._asdict() if before else {"epoch": 0, "step": 0})
    assert_same(after, take(train_index, 3, start=(state["epoch"], state["step"])))
    with stream_of(train_index, num_workers=2) as other:
        next(other)
        other.load_state_dict(state)
        assert_same(after, list(islice(other, 3)))


def test_continuing_at_another_number_of_ranks_keeps_the_global_batches(train_index: Index) -> None:
    whole = [set(batch.ids.tolist()) for _, batch in take(train_index, 8)]
    with stream_of(train_index, num_ranks=4) as stream:
        list(islice(stream, 5))
        state = stream.state_dict()
    start = (state["epoch"], state["step"])
    parts = [take(train_index, 3, rank=rank, num_ranks=3, start=start) for rank in range(3)]
    for step in range(3):
        assert set().union(*(part[step][1].ids.tolist() for part in parts)) == whole[5 + step]


def test_global_ids_tell_the_whole_batch(train_index: Index) -> None:
    _, batch = take(train_index, 1)[0]
    with stream_of(train_index, rank=1, num_ranks=2) as stream:
        assert np.array_equal(np.sort(stream.global_ids(Position(0, 0))), np.sort(batch.ids.numpy()))


def test_error_in_a_thread_reaches_the_consumer(train_index: Index) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise DataError("broken recipe")

    with stream_of(train_index, transform=broken, num_workers=2) as stream:
        for _ in range(2):  # the second time too: an error is not the end of the stream
            with pytest.raises(DataError, match="broken"):
                next(stream)


def test_close_ends_the_threads(train_index: Index) -> None:
    before = threading.active_count()
    stream = stream_of(train_index, num_workers=3)
    next(stream)
    stream.close()
    stream.close()
    assert threading.active_count() == before


def test_bad_options_are_errors_before_anything_is_read(train_index: Index) -> None:
    with pytest.raises(DataError, match="classes_per_batch=16, but there are 12 classes"):
        stream_of(train_index, classes_per_batch=16)
    with pytest.raises(DataError, match="5 workers share num_streams=4"):
        stream_of(train_index, num_ranks=5)
    with pytest.raises(DataError, match="cannot start at epoch 0, step 999"):
        stream_of(train_index, start=(0, 999))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_evaluation_visits_every_row_once_in_order(train_index: Index, num_ranks: int) -> None:
    batches = [
        batch
        for rank in range(num_ranks)
        for batch in eval_batches(
            train_index,
            batch_size=10,
            transform=find_transform("standardize"),
            channels=1,
            rank=rank,
            num_ranks=num_ranks,
        )
    ]
    assert np.array_equal(torch.cat([batch.ids for batch in batches]).numpy(), train_index.row_ids)
    assert max(len(batch.ids) for batch in batches) <= 10


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_evaluation_batches_are_the_same_for_any_number_of_ranks(train_index: Index, num_ranks: int) -> None:
    def batches(ranks: int) -> list[list[int]]:
        options: dict[str, Any] = {
            "batch_size": 10,
            "transform": find_transform("standardize"),
            "channels": 1,
            "num_ranks": ranks,
        }
        return [b.ids.tolist() for rank in range(ranks) for b in eval_batches(train_index, rank=rank, **options)]

    assert batches(num_ranks) == batches(1)


def test_more_ranks_than_batches_leave_some_without(train_index: Index) -> None:
    few = train_index.take(np.arange(2))
    sizes = [
        sum(
            len(batch.ids)
            for batch in eval_batches(
                few, batch_size=1, transform=find_transform("standardize"), channels=1, rank=rank, num_ranks=5
            )
        )
        for rank in range(5)
    ]
    assert sorted(sizes) == [0, 0, 0, 1, 1]
