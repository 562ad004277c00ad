from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.plan import EpochPlan, check_plan, num_steps, plan_epoch, streams_of_rank

Case = tuple[NDArray[np.int64], dict[str, int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels in any order and options that ``check_plan`` accepts."""
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    classes_per_batch = draw(st.integers(1, len(counts)))
    divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0]
    options = {
        "classes_per_batch": classes_per_batch,
        "samples_per_class": draw(st.integers(1, max(counts))),
        "num_streams": draw(st.sampled_from(divisors)),
    }
    return labels, options


def groups_of_batch(plan: EpochPlan, labels: NDArray[np.int64], step: int) -> list[NDArray[np.int64]]:
    """The runs of one class in each sub-batch of a step."""
    groups = []
    for stream in range(plan.num_streams):
        members = plan.sub_batch(stream, step)
        cuts = np.flatnonzero(np.diff(labels[members])) + 1
        groups += [group for group in np.split(members, cuts) if len(group)]
    return groups


@given(cases(), st.integers(0, 3))
def test_epoch_has_every_sample_once(case: Case, epoch: int) -> None:
    labels, options = case
    check_plan(labels, **options)
    plan = plan_epoch(labels, **options, seed=7, epoch=epoch)
    assert np.array_equal(np.sort(plan.order), np.arange(len(labels)))
    assert plan.num_steps == num_steps(labels, **options)
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == len(labels)


@given(cases())
def test_no_stream_is_ever_empty(case: Case) -> None:
    labels, options = case
    plan = plan_epoch(labels, **options, seed=7, epoch=0)
    assert (np.diff(plan.bounds) >= 1).all()


@given(cases())
def test_batches_and_streams_are_even_and_classes_differ(case: Case) -> None:
    labels, options = case
    per_class, streams = options["samples_per_class"], options["num_streams"]
    plan = plan_epoch(labels, **options, seed=7, epoch=0)
    num_groups = -(-np.bincount(labels) // per_class)
    sizes = np.bincount(labels) // num_groups
    lowest = num_groups.sum() // plan.num_steps
    if streams < options["classes_per_batch"]:
        assert -(-num_groups.sum() // plan.num_steps) <= options["classes_per_batch"]
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


def test_labels_may_begin_anywhere_and_have_gaps() -> None:
    labels = np.repeat(np.arange(20), 6)
    options = {"classes_per_batch": 4, "samples_per_class": 3, "num_streams": 2}
    check_plan(1000 + 7 * labels, **options)
    plan = plan_epoch(labels, **options, seed=0, epoch=0)
    assert np.array_equal(plan_epoch(1000 + 7 * labels, **options, seed=0, epoch=0).order, plan.order)


def test_extra_group_wanders_over_the_streams() -> None:
    labels = np.repeat(np.arange(70), 8)
    plan = plan_epoch(labels, classes_per_batch=16, samples_per_class=4, num_streams=8, seed=0, epoch=0)
    per_stream = np.diff(plan.bounds).reshape(plan.num_steps, 8).sum(axis=0)
    assert per_stream.max() - per_stream.min() <= 8


def test_groups_of_a_class_are_spread_over_the_epoch() -> None:
    labels = np.repeat(np.arange(400), 16)
    plan = plan_epoch(labels, classes_per_batch=16, samples_per_class=4, num_streams=4, seed=0, epoch=0)
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
        options = {"classes_per_batch": 4, "samples_per_class": 3, "num_streams": 2}
        return plan_epoch(labels, **options, seed=seed, epoch=epoch).order.tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(st.integers(1, 64), st.data())
def test_ranks_share_the_streams(num_streams: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, num_streams))
    served = [stream for rank in range(num_ranks) for stream in streams_of_rank(rank, num_ranks, num_streams)]
    assert sorted(served) == list(range(num_streams))


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 100))
def test_as_many_classes_as_places_fill_every_batch(seed: int) -> None:
    labels = np.repeat(np.arange(10), 80)
    plan = plan_epoch(labels, classes_per_batch=10, samples_per_class=8, num_streams=5, seed=seed, epoch=0)
    assert plan.num_steps == 10
    for step in range(10):
        assert np.array_equal(np.bincount(labels[plan.batch(step)]), np.full(10, 8))


def test_million_samples_are_planned_in_seconds() -> None:
    labels = np.random.default_rng(0).integers(0, 50_000, 1_000_000)
    start = time.process_time()
    plan_epoch(labels, classes_per_batch=64, samples_per_class=4, num_streams=32, seed=0, epoch=0)
    assert time.process_time() - start < 3.0


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
    names = ("classes_per_batch", "samples_per_class", "num_streams")
    with pytest.raises(DataError, match=message):
        check_plan(labels, **dict(zip(names, options, strict=True)))


def test_check_plan_refuses_an_empty_split() -> None:
    with pytest.raises(DataError, match="no samples"):
        check_plan(np.empty(0, np.int64), classes_per_batch=2, samples_per_class=2, num_streams=1)


def test_more_ranks_than_streams_is_an_error() -> None:
    with pytest.raises(DataError, match="5 workers share num_streams=4"):
        streams_of_rank(0, 5, 4)
    with pytest.raises(DataError, match="rank 4"):
        streams_of_rank(4, 4, 4)
