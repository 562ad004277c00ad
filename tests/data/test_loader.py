"""Batches of a training stream and of an evaluation: the same samples and pixels, however they are shared and read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.inputs import InputKind
from dmlscale.data.loader import Position, Recipe, TrainStream, eval_batches
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.transforms import find_transform
from dmlscale.data.types import Batch

STREAMS = 4
SMALL = Sampling(4, 3, STREAMS)
RECIPE = Recipe(find_decoder("image", channels=1), find_transform("standardize_shift"))
PLAIN = Recipe(find_decoder("image", channels=1), find_transform("standardize"))
SAMPLINGS = [
    Sampling(8, 3, STREAMS),
    Sampling(4, 4, STREAMS, window_shards=2),
    Sampling(8, 3, STREAMS, "balanced"),
    Sampling(4, 2, STREAMS, "by_frequency", max_samples_per_class=8),
    Sampling(8, 3, 2, "hierarchical", super_classes_per_batch=2),
    Sampling(8, 3, 2, "all_positives"),
]
quick = settings(deadline=None, max_examples=12)


def plans_of(index: Index, sampling: Sampling) -> EpochPlanner:
    return EpochPlanner(
        index.class_rows, sampling, seed=11, super_classes=index.super_classes()[0], shards=index.shard_rows
    )


def stream_of(index: Index, sampling: Sampling = SMALL, recipe: Recipe = RECIPE, **options: Any) -> TrainStream:
    return TrainStream(index, plans_of(index, sampling), recipe, seed=11, **options)


def take(index: Index, count: int, *args: Any, **options: Any) -> list[tuple[Position, Batch]]:
    with stream_of(index, *args, **options) as stream:
        return list(islice(stream, count))


def assert_same(left: list[tuple[Position, Batch]], right: list[tuple[Position, Batch]]) -> None:
    assert [position for position, _ in left] == [position for position, _ in right]
    for (_, a), (_, b) in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
        assert list(a.stream_sizes.items()) == list(b.stream_sizes.items())


@pytest.fixture(scope="session")
def mixed_index(mixed: Path) -> Index:
    return Index.load(mixed).split("train")


def test_batch_holds_the_samples_it_names(train_index: Index) -> None:
    for _, batch in take(train_index, 5):
        assert batch.images.shape == (len(batch.ids), 1, 32, 32)
        assert np.array_equal(batch.labels.numpy(), train_index.columns.labels[batch.ids.numpy()])
        assert batch.labels.dtype == batch.ids.dtype == torch.int64


def test_epoch_has_every_sample_once(train_index: Index) -> None:
    num_steps = plans_of(train_index, SMALL).num_steps(0)
    batches = take(train_index, 2 * num_steps)
    for epoch in (batches[:num_steps], batches[num_steps:]):
        ids = torch.cat([batch.ids for _, batch in epoch]).numpy()
        assert np.array_equal(np.sort(ids), train_index.row_ids)
    assert batches[num_steps - 1][0] == Position(1, 0)


@quick
@given(sampling=st.sampled_from(SAMPLINGS), num_ranks=st.integers(1, 4), num_workers=st.integers(0, 4))
def test_an_epoch_at_any_number_of_ranks_and_threads(
    mixed_index: Index, sampling: Sampling, num_ranks: int, num_workers: int
) -> None:
    """No sample twice, none forgotten where the sampling takes all, the planned global batches, and the same pixels."""
    num_ranks = min(num_ranks, sampling.num_streams)
    plans = plans_of(mixed_index, sampling)
    num_steps = plans.num_steps(0)
    alone = take(mixed_index, num_steps, sampling)
    parts = [
        take(mixed_index, num_steps, sampling, rank=rank, num_ranks=num_ranks, num_workers=num_workers)
        for rank in range(num_ranks)
    ]
    seen = []
    for step, (position, whole) in enumerate(alone):
        shares = [part[step][1] for part in parts]
        assert all(part[step][0] == position for part in parts)
        ids = torch.cat([share.ids for share in shares])
        assert torch.equal(ids.sort().values, torch.from_numpy(np.sort(plans.plan(0).batch(step))))
        pixels = torch.cat([share.images for share in shares])
        assert torch.equal(pixels[ids.argsort(stable=True)], whole.images[whole.ids.argsort(stable=True)])
        for rank, share in enumerate(shares):
            of_streams = {n: plans.plan(0).sub_batch(n, step) for n in range(rank, sampling.num_streams, num_ranks)}
            assert share.stream_sizes == {stream: len(rows) for stream, rows in of_streams.items()}
            assert np.array_equal(share.ids.numpy(), np.concatenate(list(of_streams.values())))
        seen.append(ids.numpy())
    rows, times = np.unique(np.concatenate(seen), return_counts=True)
    if sampling.name not in ("balanced", "by_frequency"):  # these repeat small classes in an epoch
        assert times.max() == 1
        assert np.array_equal(rows, mixed_index.row_ids)


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_threads_do_not_change_anything(train_index: Index, num_workers: int) -> None:
    assert_same(take(train_index, 20), take(train_index, 20, num_workers=num_workers))
    assert_same(take(train_index, 20), take(train_index, 20, num_workers=num_workers, cache_bytes=0))


@quick
@given(sampling=st.sampled_from(SAMPLINGS), stop=st.integers(0, 40), num_ranks=st.integers(1, 2))
def test_continued_stream_equals_the_uninterrupted_one(
    mixed_index: Index, sampling: Sampling, stop: int, num_ranks: int
) -> None:
    ranks: dict[str, Any] = {"rank": num_ranks - 1, "num_ranks": num_ranks}
    with stream_of(mixed_index, sampling, **ranks) as stream:
        before = list(islice(stream, stop))
        state = stream.state_dict()
        after = list(islice(stream, 3))
    assert state == (before[-1][0]._asdict() if before else {"epoch": 0, "step": 0})
    assert_same(after, take(mixed_index, 3, sampling, start=(state["epoch"], state["step"]), **ranks))
    with stream_of(mixed_index, sampling, num_workers=2, **ranks) as other:
        next(other)
        other.load_state_dict(state)
        assert_same(after, list(islice(other, 3)))


@pytest.mark.parametrize("sampling", SAMPLINGS[:3])
def test_continuing_at_another_number_of_ranks_keeps_the_global_batches(mixed_index: Index, sampling: Sampling) -> None:
    whole = [set(batch.ids.tolist()) for _, batch in take(mixed_index, 8, sampling)]
    with stream_of(mixed_index, sampling, num_ranks=4) as stream:
        list(islice(stream, 5))
        state = stream.state_dict()
    start = (state["epoch"], state["step"])
    parts = [take(mixed_index, 3, sampling, rank=rank, num_ranks=3, start=start) for rank in range(3)]
    for step in range(3):
        assert set().union(*(part[step][1].ids.tolist() for part in parts)) == whole[5 + step]


def test_global_ids_tell_the_whole_batch(train_index: Index) -> None:
    _, batch = take(train_index, 1)[0]
    with stream_of(train_index, rank=1, num_ranks=2) as stream:
        assert np.array_equal(np.sort(stream.global_ids(Position(0, 0))), np.sort(batch.ids.numpy()))


@dataclass(frozen=True)
class Broken:
    inputs: ClassVar[tuple[InputKind, ...]] = ("image",)

    def __call__(
        self, images: Sequence[torch.Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int
    ) -> torch.Tensor:
        raise DataError("broken recipe")


def test_error_in_a_thread_reaches_the_consumer(train_index: Index) -> None:
    with stream_of(train_index, recipe=Recipe(RECIPE.decoder, Broken()), num_workers=2) as stream:
        for _ in range(2):  # the second time too: an error is not the end of the stream
            with pytest.raises(DataError, match="broken"):
                next(stream)


def test_close_ends_the_threads(train_index: Index) -> None:
    before = set(threading.enumerate())
    stream = stream_of(train_index, num_workers=3)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    stream.close()
    stream.close()
    assert not any(thread.is_alive() for thread in started)


def test_bad_options_are_errors_before_anything_is_read(train_index: Index) -> None:
    with pytest.raises(DataError, match="classes_per_batch=16, but there are 12 classes"):
        stream_of(train_index, Sampling(16, 3, STREAMS))
    with pytest.raises(DataError, match="5 workers share num_streams=4"):
        stream_of(train_index, num_ranks=5)
    with pytest.raises(DataError, match="cannot start at epoch 0, step 999"):
        stream_of(train_index, start=(0, 999))
    with pytest.raises(DataError, match="cannot start at epoch -1, step 0"):
        stream_of(train_index, start=(-1, 0))
    with pytest.raises(DataError, match="batch_size=0, must be at least 1"):
        next(eval_batches(train_index, PLAIN, batch_size=0))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_evaluation_visits_every_row_once_in_order(train_index: Index, num_ranks: int, num_workers: int) -> None:
    batches = [
        batch
        for rank in range(num_ranks)
        for batch in eval_batches(
            train_index, PLAIN, batch_size=10, rank=rank, num_ranks=num_ranks, num_workers=num_workers
        )
    ]
    assert np.array_equal(torch.cat([batch.ids for batch in batches]).numpy(), train_index.row_ids)
    assert max(len(batch.ids) for batch in batches) <= 10


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_evaluation_batches_are_the_same_for_any_number_of_ranks(train_index: Index, num_ranks: int) -> None:
    def batches(ranks: int) -> list[Batch]:
        shares = (eval_batches(train_index, PLAIN, batch_size=10, rank=r, num_ranks=ranks) for r in range(ranks))
        return [batch for share in shares for batch in share]

    for one, many in zip(batches(1), batches(num_ranks), strict=True):
        assert torch.equal(one.ids, many.ids)
        assert torch.equal(one.images, many.images)


def test_more_ranks_than_batches_leave_some_without(train_index: Index) -> None:
    few = train_index.take(np.arange(2))
    shares = [eval_batches(few, PLAIN, batch_size=1, rank=rank, num_ranks=5) for rank in range(5)]
    assert sorted(sum(len(batch.ids) for batch in share) for share in shares) == [0, 0, 0, 1, 1]


def test_an_evaluation_that_is_left_early_ends_its_threads(train_index: Index) -> None:
    before = set(threading.enumerate())
    batches = eval_batches(train_index, PLAIN, batch_size=4, num_workers=3)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    assert not any(thread.is_alive() for thread in started)
