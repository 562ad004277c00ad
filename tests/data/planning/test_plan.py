from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning.checks import check_plan
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.plan import EpochPlan, streams_of_rank
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling

Case = tuple[NDArray[np.int64], Sampling]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels in any order and options that ``check_plan`` accepts."""
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    classes_per_batch = draw(st.integers(1, len(counts)))
    divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0]
    return labels, Sampling(classes_per_batch, draw(st.integers(1, max(counts))), draw(st.sampled_from(divisors)))


def planned(labels: NDArray[np.int64], sampling: Sampling, *, seed: int = 7, epoch: int = 0) -> EpochPlan:
    return EpochPlanner(ClassRows.from_labels(labels), sampling, seed=seed).plan(epoch)


def all_rows(plan: EpochPlan) -> NDArray[np.int64]:
    return np.concatenate([plan.batch(step) for step in range(plan.num_steps)])


def stream_sizes(plan: EpochPlan) -> NDArray[np.int64]:
    """(T, N) samples."""
    streams = range(plan.num_streams)
    return np.array([[len(plan.sub_batch(stream, step)) for stream in streams] for step in range(plan.num_steps)])


@settings(deadline=None)
@given(cases(), st.integers(0, 3))
def test_epoch_has_every_sample_once(case: Case, epoch: int) -> None:
    labels, sampling = case
    plan = planned(labels, sampling, epoch=epoch)
    assert np.array_equal(np.sort(all_rows(plan)), np.arange(len(labels)))
    num_groups = int((-(-np.bincount(labels) // sampling.samples_per_class)).sum())
    assert plan.num_steps == sampling.num_steps(num_groups)


@settings(deadline=None)
@given(cases())
def test_no_stream_is_ever_empty(case: Case) -> None:
    assert (stream_sizes(planned(*case)) >= 1).all()


@settings(deadline=None)
@given(cases())
def test_batches_and_streams_are_even_and_classes_differ(case: Case) -> None:
    labels, sampling = case
    per_class, streams = sampling.samples_per_class, sampling.num_streams
    plan = planned(labels, sampling)
    num_groups = -(-np.bincount(labels) // per_class)
    sizes = np.bincount(labels) // num_groups
    lowest = num_groups.sum() // plan.num_steps
    if streams < sampling.classes_per_batch:
        assert -(-num_groups.sum() // plan.num_steps) <= sampling.classes_per_batch
    for step in range(plan.num_steps):
        counts = np.bincount(labels[plan.batch(step)], minlength=len(num_groups))
        present = counts > 0
        may_repeat = num_groups > plan.num_steps
        # One group of each class, all its groups of equal size up to one sample.
        assert (counts[present & ~may_repeat] <= per_class).all()
        assert (counts[present & ~may_repeat] >= sizes[present & ~may_repeat]).all()
        if not may_repeat.any():
            assert present.sum() in (lowest, lowest + 1)
            groups = [len(np.unique(labels[plan.sub_batch(s, step)])) for s in range(streams)]
            assert max(groups) - min(groups) <= 1


@settings(deadline=None)
@given(cases(), st.integers(1, 4), st.integers(0, 2))
def test_any_number_of_ranks_shares_the_same_batches(case: Case, num_ranks: int, epoch: int) -> None:
    plan = planned(*case, epoch=epoch)
    num_ranks = min(num_ranks, plan.num_streams)
    for step in range(plan.num_steps):
        served = []
        for rank in range(num_ranks):
            streams = streams_of_rank(rank, num_ranks, plan.num_streams)
            parts = plan.sub_batches(streams, step)
            assert all(np.array_equal(part, plan.sub_batch(s, step)) for s, part in zip(streams, parts, strict=True))
            served += parts
        rows = np.concatenate(served)
        assert len(np.unique(rows)) == len(rows)
        assert np.array_equal(np.sort(rows), np.sort(plan.batch(step)))


@settings(deadline=None)
@given(cases(), st.data())
def test_any_batch_can_be_had_without_those_before_it(case: Case, data: st.DataObject) -> None:
    plan = planned(*case, epoch=1)
    in_order = [plan.batch(step) for step in range(plan.num_steps)]
    step = data.draw(st.integers(0, plan.num_steps - 1))
    assert np.array_equal(planned(*case, epoch=1).batch(step), in_order[step])


def test_labels_may_begin_anywhere_and_have_gaps() -> None:
    labels = 1000 + 7 * np.repeat(np.arange(20), 6)
    plan = planned(labels, Sampling(4, 3, 2))
    assert np.array_equal(np.sort(all_rows(plan)), np.arange(120))
    assert all(len(np.unique(labels[plan.batch(step)])) == 4 for step in range(plan.num_steps))


def test_rows_have_the_ids_that_they_were_given() -> None:
    labels, row_ids = np.repeat(np.arange(20), 6), 50 + 2 * np.arange(120)
    in_ids = EpochPlanner(ClassRows.from_labels(labels, row_ids), Sampling(4, 3, 2), seed=7).plan(0)
    assert np.array_equal(all_rows(in_ids), row_ids[all_rows(planned(labels, Sampling(4, 3, 2)))])


def test_extra_group_wanders_over_the_streams() -> None:
    plan = planned(np.repeat(np.arange(70), 8), Sampling(16, 4, 8))
    per_stream = stream_sizes(plan).sum(axis=0)
    assert per_stream.max() - per_stream.min() <= 8


def test_groups_of_a_class_are_spread_over_the_epoch() -> None:
    labels = np.repeat(np.arange(400), 16)
    plan = planned(labels, Sampling(16, 4, 4))
    step_of = np.empty(len(labels), np.int64)
    for step in range(plan.num_steps):
        step_of[plan.batch(step)] = step
    quarter = step_of.reshape(400, 16) * 4 // plan.num_steps
    in_each = np.stack([np.bincount(row, minlength=4) for row in quarter])
    # One group of four in each quarter, but for the jitter at the borders of the quarters.
    assert (in_each == 4).mean() > 0.7


def test_order_depends_on_seed_and_epoch() -> None:
    labels = np.repeat(np.arange(20), 6)

    def order(seed: int, epoch: int) -> list[int]:
        return all_rows(planned(labels, Sampling(4, 3, 2), seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_samples_of_a_class_meet_in_other_groups_in_other_epochs() -> None:
    labels = np.repeat(np.arange(20), 8)
    partners: list[set[int]] = [set() for _ in labels]
    for epoch in range(12):
        plan = planned(labels, Sampling(4, 4, 2), epoch=epoch)
        for step in range(plan.num_steps):
            batch = plan.batch(step)
            for row in batch:
                partners[row] |= set(batch[labels[batch] == labels[row]].tolist())
    # 3 of 7 others each time: all of them after 12 epochs, but for 1 in 100.
    assert np.mean([len(others) for others in partners]) > 7.9


@given(st.integers(1, 64), st.data())
def test_ranks_share_the_streams(num_streams: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, num_streams))
    served = [stream for rank in range(num_ranks) for stream in streams_of_rank(rank, num_ranks, num_streams)]
    assert sorted(served) == list(range(num_streams))


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 100))
def test_as_many_classes_as_places_fill_every_batch(seed: int) -> None:
    labels = np.repeat(np.arange(10), 80)
    plan = planned(labels, Sampling(10, 8, 5), seed=seed)
    assert plan.num_steps == 10
    for step in range(10):
        assert np.array_equal(np.bincount(labels[plan.batch(step)]), np.full(10, 8))


def test_planner_walks_through_the_epochs() -> None:
    labels = np.repeat(np.arange(20), 6)
    planner = EpochPlanner(ClassRows.from_labels(labels), Sampling(4, 3, 2), seed=0)
    place, seen = (0, 0), []
    for _ in range(2 * planner.num_steps(0)):
        seen.append(planner.plan(place[0]).batch(place[1]))
        place = planner.after(*place)
    assert place == (2, 0)
    assert np.array_equal(np.bincount(np.concatenate(seen)), np.full(120, 2))
    assert planner.plan(1) is planner.plan(1)


def test_a_place_in_a_million_samples_is_found_in_a_second() -> None:
    labels = np.random.default_rng(0).integers(0, 50_000, 1_000_000)
    class_rows = ClassRows.from_labels(labels)
    start = time.process_time()
    plan = EpochPlanner(class_rows, Sampling(64, 4, 32), seed=0).plan(3)
    for step in (0, 1234, plan.num_steps - 1):
        assert len(plan.batch(step)) > 200
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((6, 2, 3), r"classes_per_batch=6, but there are 5 classes"),
        ((4, 4, 2), r"samples_per_class=4, but the largest class has 3 samples"),
        ((4, 2, 3), r"num_streams=3 does not divide classes_per_batch=4: choose one of 1, 2, 4"),
        ((4, 0, 2), r"samples_per_class=0, must be at least 1"),
        ((0, 2, 2), r"classes_per_batch=0, must be at least 1"),
        ((4, 2, 0), r"num_streams=0, must be at least 1"),
    ],
)
def test_check_plan_names_option_and_value(options: tuple[int, int, int], message: str) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    with pytest.raises(DataError, match=message):
        check_plan(ClassRows.from_labels(labels), Sampling(*options))


def test_check_plan_refuses_an_empty_split() -> None:
    with pytest.raises(DataError, match="no samples"):
        check_plan(ClassRows.from_labels(np.empty(0, np.int64)), Sampling(2, 2, 1))


def test_check_plan_refuses_more_groups_than_can_be_numbered() -> None:
    starts = np.array([0, 2**31, 2**31 + 5])
    rows = np.broadcast_to(np.int64(0), starts[-1])
    with pytest.raises(DataError, match=r"samples_per_class=1 makes 2147483653 groups"):
        check_plan(ClassRows(rows, starts), Sampling(2, 1, 1))


def test_more_ranks_than_streams_is_an_error() -> None:
    with pytest.raises(DataError, match="5 workers share num_streams=4"):
        streams_of_rank(0, 5, 4)
    with pytest.raises(DataError, match="rank 4"):
        streams_of_rank(4, 4, 4)
