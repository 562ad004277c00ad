from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning.checks import check_plan
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.planning.windows import ShardRows, WindowedPlan

Case = tuple[ShardRows, Sampling]


def split_rows(shards: ShardRows) -> NDArray[np.int64]:
    return np.arange(len(shards.labels)) if shards.row_ids is None else np.asarray(shards.row_ids)


def class_rows_of(shards: ShardRows) -> ClassRows:
    rows = split_rows(shards)
    return ClassRows.from_labels(shards.labels[rows], rows)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Shards of any size, some without rows of the split, in which classes are mixed or not."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))
    num_rows = sum(sizes)
    labels = np.sort(np.random.default_rng(draw(st.integers(0, 99))).integers(0, 9, num_rows)).astype(np.int32)
    if draw(st.booleans()):
        labels = np.random.default_rng(0).permutation(labels)
    is_in_split = np.random.default_rng(1).random(num_rows) < draw(st.sampled_from([0.5, 1.0]))
    together = range(num_rows // 4, num_rows - num_rows // 5)
    row_ids = draw(st.sampled_from([None, np.flatnonzero(is_in_split), together]))
    shards = ShardRows(np.concatenate(([0], np.cumsum(sizes))), labels, row_ids)
    rows = split_rows(shards)
    assume(len(rows))
    counts = np.bincount(labels[rows])
    sampling = Sampling(
        draw(st.integers(1, int(np.count_nonzero(counts)))),
        draw(st.integers(1, min(5, counts.max()))),
        1,
        window_shards=draw(st.integers(1, 14)),
    )
    return shards, sampling


def planned(shards: ShardRows, sampling: Sampling, epoch: int = 0) -> WindowedPlan:
    plan = EpochPlanner(class_rows_of(shards), sampling, seed=3, shards=shards).plan(epoch)
    assert isinstance(plan, WindowedPlan)
    return plan


@settings(deadline=None)
@given(cases(), st.integers(0, 2))
def test_windows_follow_each_other_and_have_every_sample_once(case: Case, epoch: int) -> None:
    shards, sampling = case
    plan = planned(shards, sampling, epoch)
    windows = [plan.window_of(step) for step in range(plan.num_steps)]
    assert sorted(set(windows)) == list(range(plan.num_windows))
    assert windows == sorted(windows)
    shard_of_row = np.repeat(np.arange(len(shards.starts) - 1), np.diff(shards.starts))
    seen = []
    for step, window in enumerate(windows):
        seen.append(plan.batch(step))
        assert len(seen[-1])
        assert np.isin(shard_of_row[seen[-1]], plan.shards_of_window(window)).all()
    assert np.array_equal(np.sort(np.concatenate(seen)), split_rows(shards))


@settings(deadline=None)
@given(cases())
def test_windows_are_even_and_not_larger_than_asked(case: Case) -> None:
    shards, sampling = case
    plan = planned(shards, sampling)
    sizes = [len(plan.shards_of_window(window)) for window in range(plan.num_windows)]
    assert max(sizes) <= sampling.window_shards
    assert max(sizes) - min(sizes) <= 1
    order = np.concatenate([plan.shards_of_window(window) for window in range(plan.num_windows)])
    assert np.array_equal(np.sort(order), np.flatnonzero(np.diff(shards.bounds)))


@settings(deadline=None)
@given(cases(), st.integers(2, 4))
def test_no_stream_is_ever_empty(case: Case, num_streams: int) -> None:
    shards, sampling = case
    streamed = Sampling(num_streams, sampling.samples_per_class, num_streams, window_shards=sampling.window_shards)
    try:
        plan = planned(shards, streamed)
    except DataError:
        assume(False)
    for step in range(plan.num_steps):
        parts = plan.sub_batches(range(num_streams), step)
        assert min(map(len, parts)) >= 1
        assert np.array_equal(np.concatenate(parts), plan.batch(step))


@settings(deadline=None)
@given(cases(), st.data())
def test_any_batch_can_be_had_without_those_before_it(case: Case, data: st.DataObject) -> None:
    in_order = [batch for plan in [planned(*case)] for batch in map(plan.batch, range(plan.num_steps))]
    step = data.draw(st.integers(0, len(in_order) - 1))
    assert np.array_equal(planned(*case).batch(step), in_order[step])


def large(num_rows: int) -> ShardRows:
    labels = np.random.default_rng(0).integers(0, num_rows // 20, num_rows // 4).repeat(4).astype(np.int32)
    return ShardRows(np.linspace(0, num_rows, 41).astype(np.int64), labels)


def test_shards_are_in_other_windows_in_other_epochs() -> None:
    shards, sampling = large(4000), Sampling(16, 4, 4, window_shards=4)
    first, again, second = (planned(shards, sampling, epoch) for epoch in (0, 0, 1))
    assert first.shards_of_window(0).tolist() == again.shards_of_window(0).tolist()
    assert set(first.shards_of_window(0).tolist()) != set(second.shards_of_window(0).tolist())
    assert np.array_equal(first.batch(5), again.batch(5))


def test_the_planner_advances_by_the_steps_of_each_epoch() -> None:
    shards, sampling = large(4000), Sampling(16, 3, 4, window_shards=4)
    planner = EpochPlanner(class_rows_of(shards), sampling, seed=0, shards=shards)
    lengths = [planner.num_steps(epoch) for epoch in range(6)]
    assert len(set(lengths)) > 1
    for epoch, length in enumerate(lengths):
        assert planner.after(epoch, length - 2) == (epoch, length - 1)
        assert planner.after(epoch, length - 1) == (epoch + 1, 0)


def test_a_place_in_a_million_samples_is_found_in_a_second() -> None:
    shards, sampling = large(1_000_000), Sampling(64, 4, 32, window_shards=4)
    class_rows = class_rows_of(shards)
    start = time.process_time()
    plan = EpochPlanner(class_rows, sampling, seed=0, shards=shards).plan(3)
    assert len(plan.batch(plan.num_steps * 2 // 3)) > 200
    assert time.process_time() - start < 1.0


def test_a_window_with_fewer_groups_than_streams_is_an_error() -> None:
    labels = np.tile(np.arange(8), 5)
    shards = ShardRows(np.array([0, 20, 37, 40]), labels)
    message = r"window_shards=1: a window may hold as few as 3 samples.*num_streams=4: raise window_shards or lower"
    with pytest.raises(DataError, match=message):
        check_plan(ClassRows.from_labels(labels), Sampling(4, 1, 4, window_shards=1), shards=shards)
    check_plan(ClassRows.from_labels(labels), Sampling(4, 1, 4, window_shards=3), shards=shards)
